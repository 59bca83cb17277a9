package field

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root     = "../.."
	document = root + "/docs/RELIABILITY.md"
	section  = "## Field reports"
	reports  = 30
)

var (
	first    = regexp.MustCompile(`^F-([0-9]{2})$`)
	quote    = regexp.MustCompile("`([^` ]+) (Test[^` ]+)`")
	function = regexp.MustCompile(`(?m)^func (TestF([0-9]{2})[A-Za-z0-9_]*)\(`)
)

// cited gives the tests that the table names, by number of the report, as "dir name".
func cited(text string) (map[string][]string, error) {
	_, rest, ok := strings.Cut(text, "\n"+section+"\n")
	if !ok {
		return nil, fmt.Errorf("no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	out := map[string][]string{}
	for line := range strings.Lines(rest) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		m := first.FindStringSubmatch(strings.TrimSpace(cells[1]))
		if m == nil {
			continue
		}
		if out[m[1]] != nil {
			return nil, fmt.Errorf("F-%s has two rows", m[1])
		}
		out[m[1]] = []string{}
		for _, q := range quote.FindAllStringSubmatch(cells[2], -1) {
			out[m[1]] = append(out[m[1]], q[1]+" "+q[2])
		}
		if strings.TrimSpace(cells[3]) == "" || strings.TrimSpace(cells[4]) == "" {
			return nil, fmt.Errorf("F-%s has an empty cell", m[1])
		}
	}
	return out, nil
}

// existing gives the tests that there are, in the same way.
func existing(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			out[m[2]] = append(out[m[2]], filepath.ToSlash(dir)+" "+m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestEveryReportHasATest: each report has a row with a test of its number, each test that
// a row names exists, and each test that there is stands in the row of its number.
func TestEveryReportHasATest(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	table, err := cited(string(text))
	if err != nil {
		t.Fatal(err)
	}
	tests := existing(t)
	for n := 1; n <= reports; n++ {
		id := fmt.Sprintf("%02d", n)
		if len(table[id]) == 0 {
			t.Errorf("F-%s: the table names no test", id)
		}
		for _, name := range table[id] {
			if !slices.Contains(tests[id], name) {
				t.Errorf("F-%s: there is no %s", id, name)
			}
		}
		for _, name := range tests[id] {
			if !slices.Contains(table[id], name) {
				t.Errorf("F-%s: %s is not in the table", id, name)
			}
		}
	}
	if len(table) != reports {
		t.Errorf("%d rows, want %d", len(table), reports)
	}
}

// TestCited: a table that is wrong is found.
func TestCited(t *testing.T) {
	t.Parallel()
	row := "| F-07 | `a/b TestF07_X`, `c TestF07` | both | nothing |\n"
	head := "\n" + section + "\n| id | tests | stores | left out |\n"
	if got, err := cited(head + row); err != nil || !slices.Equal(got["07"], []string{"a/b TestF07_X", "c TestF07"}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, text := range map[string]string{
		"no section": row, "two rows": head + row + row, "an empty cell": head + "| F-07 | `a TestF07` | | nothing |\n",
	} {
		if _, err := cited(text); err == nil {
			t.Errorf("%s is not found", name)
		}
	}
}
