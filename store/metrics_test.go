package store

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// naming are the calls in a store that name an operation for the metrics.
var naming = map[string][]struct {
	call          string
	arg           int // which argument is the name
	timed, failed bool
}{
	"embedded": {
		{"observe", 0, true, true}, {"look", 1, true, true}, {"do", 1, true, true}, {"count", 0, false, true},
	},
	"mongodb": {
		{"Operation", 0, true, false}, {"Error", 0, false, true}, {"failed", 1, false, true}, {"again", 1, true, true},
	},
}

// TestVocabulary: the names that the sources of a store give to the metrics are those
// that are made beforehand, neither more nor fewer.
func TestVocabulary(t *testing.T) {
	t.Parallel()
	for backend, dir := range map[string]string{"embedded": "embedded", "mongodb": "mongo"} {
		timed, failed := map[string]bool{}, map[string]bool{}
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				for _, by := range naming[backend] {
					if op, ok := named(call, by.call, by.arg); ok {
						timed[op] = timed[op] || by.timed
						failed[op] = failed[op] || by.failed
					}
				}
				return true
			})
		}
		words, _ := vocabularyOf(backend)
		compare(t, backend+", timed", words.timed, timed)
		compare(t, backend+", failed", words.failed, failed)
	}
}

// named gives the literal argument of a call to a method of this name. A log's Error has
// fields, and no second string.
func named(call *ast.CallExpr, method string, arg int) (string, bool) {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != method || len(call.Args) <= arg {
		return "", false
	}
	if x, ok := f.X.(*ast.SelectorExpr); method == "Error" && (!ok || x.Sel.Name != "Metrics") {
		return "", false
	}
	l, ok := call.Args[arg].(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	op, err := strconv.Unquote(l.Value)
	return op, err == nil
}

func compare(t *testing.T, what string, words []string, found map[string]bool) {
	t.Helper()
	var listed []string
	for _, w := range words {
		if !strings.HasPrefix(w, command) { // made from the command's name
			listed = append(listed, w)
		}
	}
	slices.Sort(listed)
	maps.DeleteFunc(found, func(_ string, is bool) bool { return !is })
	if used := slices.Sorted(maps.Keys(found)); !slices.Equal(listed, used) {
		t.Errorf("%s: made beforehand are\n%q, used are\n%q", what, listed, used)
	}
}

// TestMetricsCommands: a failed command without a name of its own makes no label value.
func TestMetricsCommands(t *testing.T) {
	t.Parallel()
	m, err := NewMetrics(prometheus.NewRegistry(), "mongodb")
	if err != nil {
		t.Fatal(err)
	}
	before := testutil.CollectAndCount(m.errors)
	m.Error("command_insert", "timeout")
	m.Error("command_createIndexes", "other")
	m.Error("command_endSessions", "other")
	if n := testutil.CollectAndCount(m.errors); n != before {
		t.Errorf("%d label values, %d before", n, before)
	}
	if n := testutil.ToFloat64(m.errors.WithLabelValues("mongodb", "command_insert", "timeout")); n != 1 {
		t.Errorf("insert: %v, want 1", n)
	}
	if n := testutil.ToFloat64(m.errors.WithLabelValues("mongodb", otherCommand, "other")); n != 2 {
		t.Errorf("others: %v, want 2", n)
	}
}

func TestMetricsUnknownBackend(t *testing.T) {
	t.Parallel()
	if _, err := NewMetrics(prometheus.NewRegistry(), "paper"); err == nil {
		t.Error("metrics of a store that is not there")
	}
}
