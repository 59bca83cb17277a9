package conformance

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/CONFORMANCE.md anew")

//go:embed statements5.tsv
var table5 string

//go:embed statements311.tsv
var table311 string

//go:embed choices.md
var choices string

const (
	root     = "../.."
	document = root + "/docs/CONFORMANCE.md"
)

// version is a version of the standard.
type version string

const (
	v5   version = "5.0"
	v311 version = "3.1.1"
)

// key names a statement.
type key struct {
	version version
	id      string
}

func (k key) String() string { return fmt.Sprintf("[MQTT-%s] of %s", k.id, k.version) }

// statement is one line of a table.
type statement struct {
	key
	client bool // it binds clients only
	words  string
	same   string // the statement of 5.0 that says the same
	reason string // why no code, or no test, cites it
}

// statements reads the tables.
func statements(t *testing.T) []statement {
	t.Helper()
	var out []statement
	for v, table := range map[version]string{v5: table5, v311: table311} {
		for i, line := range strings.Split(strings.Trim(table, "\n"), "\n") {
			f := strings.Split(line, "\t")
			if i == 0 {
				continue
			}
			s := statement{key: key{v, f[0]}, client: f[1] == "client", words: f[2], reason: f[len(f)-1]}
			switch {
			case v == v5 && len(f) != 4, v == v311 && len(f) != 5, f[1] != "client" && f[1] != "server" && f[1] != "both":
				t.Fatalf("line %d of %s: %q", i+1, v, line)
			case v == v311:
				s.same = f[3]
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b statement) int {
		if a.version != b.version {
			return strings.Compare(string(b.version), string(a.version))
		}
		return compareIDs(a.id, b.id)
	})
	return out
}

// compareIDs orders ids as the standard does.
func compareIDs(a, b string) int {
	numbers := func(s string) []int {
		var out []int
		for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r == '.' || r == '-' }) {
			n, _ := strconv.Atoi(f)
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(numbers(a), numbers(b))
}

// citations are the files that cite each statement.
type citations struct {
	code, tests map[key][]string
	unknown     []string // ids that no version has, with their file
}

// scan reads all Go files and golden traces below dir.
func scan(t *testing.T, dir string, known map[key]bool) *citations {
	t.Helper()
	c := &citations{code: map[key][]string{}, tests: map[key][]string{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if strings.HasPrefix(name, ".") && name != "." && name != ".." || name == "conformance" || name == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		golden := strings.Contains(filepath.ToSlash(path), "/testdata/golden/")
		if !strings.HasSuffix(name, ".go") && !golden {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		// store/storetest is a suite of tests in the form of code.
		where := c.code
		if golden || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(rel, "store/storetest/") {
			where = c.tests
		}
		cited, unknown := cite(string(text), known)
		for _, k := range cited {
			if strings.HasPrefix(rel, "cmd/") {
				break // a client's side
			}
			if !slices.Contains(where[k], rel) {
				where[k] = append(where[k], rel)
			}
		}
		for _, id := range unknown {
			c.unknown = append(c.unknown, rel+": "+id)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	comment = regexp.MustCompile(`\n[\t ]*(//|#) ?`)
	bracket = regexp.MustCompile(`\[([^\[\]]*MQTT-\d+\.\d+\.\d+-[^\[\]]*)\](\)? \(?of 3\.1\.1| \(3\.1\.1\))?`)
	item    = regexp.MustCompile(`(3\.1\.1:)|(to )?(?:MQTT-)?(?:(\d+\.\d+\.\d+)(?:-(\d+))?|-(\d+))`)
)

// cite finds the citations in a text.
func cite(text string, known map[key]bool) (cited []key, unknown []string) {
	for _, m := range bracket.FindAllStringSubmatch(comment.ReplaceAllString(text, " "), -1) {
		v := v5
		if m[2] != "" {
			v = v311
		}
		section, last := "", 0
		for _, it := range item.FindAllStringSubmatch(m[1], -1) {
			if it[1] != "" {
				v = v311
				continue
			}
			number := it[4] + it[5]
			if it[3] != "" {
				section = it[3]
			}
			n, err := strconv.Atoi(number)
			if err != nil {
				unknown = append(unknown, m[0])
				continue
			}
			first := n
			if it[2] != "" {
				first = last + 1
			}
			for ; first <= n; first++ {
				k := key{v, fmt.Sprintf("%s-%d", section, first)}
				if !known[k] && known[key{v311, k.id}] {
					k.version = v311
				}
				if !known[k] {
					unknown = append(unknown, m[0])
					continue
				}
				cited = append(cited, k)
			}
			last = n
		}
	}
	return cited, unknown
}

// TestCite: how citations are written.
func TestCite(t *testing.T) {
	t.Parallel()
	known := map[key]bool{}
	for _, s := range statements(t) {
		known[s.key] = true
	}
	for text, want := range map[string]string{
		"// x [MQTT-3.1.0-1]: y":                                   "5.0 3.1.0-1",
		"// [MQTT-3.1.0-1, MQTT-3.1.0-2]":                          "5.0 3.1.0-1, 5.0 3.1.0-2",
		"// [MQTT-4.3.3-8 to -10] z":                               "5.0 4.3.3-8, 5.0 4.3.3-9, 5.0 4.3.3-10",
		"// [MQTT-3.1.2-8] of 3.1.1":                               "3.1.1 3.1.2-8",
		"// [MQTT-3.9.3-2] (3.1.1)":                                "3.1.1 3.9.3-2",
		"// [MQTT-3.1.2-4; 3.1.1: 3.1.2-6, 3.1.2-7]":               "5.0 3.1.2-4, 3.1.1 3.1.2-6, 3.1.1 3.1.2-7",
		"\t// a [MQTT-3.1.4-3,\n\t// 3.1.3-9; 3.1.1:\n// 3.1.4-2]": "5.0 3.1.4-3, 5.0 3.1.3-9, 3.1.1 3.1.4-2",
		"// [MQTT-1.5.3-1]":                                        "3.1.1 1.5.3-1",
		"// [MQTT-9.9.9-9]":                                        "? [MQTT-9.9.9-9]",
		"// MQTT-3.1.0-1 without brackets":                         "",
	} {
		cited, unknown := cite(text, known)
		var got []string
		for _, k := range cited {
			got = append(got, fmt.Sprint(k.version, " ", k.id))
		}
		for _, u := range unknown {
			got = append(got, "? "+u)
		}
		if g := strings.Join(got, ", "); g != want {
			t.Errorf("%q: got %q, want %q", text, g, want)
		}
	}
}

// TestConformance: every statement that concerns a server is cited beside code and
// in a test, or there is a reason; and the document says how it is now.
func TestConformance(t *testing.T) {
	t.Parallel()
	all := statements(t)
	known := map[key]bool{}
	for _, s := range all {
		if known[s.key] {
			t.Errorf("%v is there twice", s.key)
		}
		known[s.key] = true
	}
	found := scan(t, root, known)
	for _, u := range found.unknown {
		t.Errorf("no such statement: %s", u)
	}
	for _, s := range all {
		if s.same != "" && !known[key{v5, s.same}] {
			t.Errorf("%v: no statement %s of 5.0", s.key, s.same)
		}
		if s.client || s.reason != "" {
			continue
		}
		code, tests := found.of(s)
		if len(code) == 0 {
			t.Errorf("%v: no code cites it, and there is no reason: %s", s.key, s.words)
		}
		if len(tests) == 0 {
			t.Errorf("%v: no test cites it, and there is no reason: %s", s.key, s.words)
		}
	}
	want := render(all, found)
	if *update {
		if err := os.WriteFile(document, want, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not fresh: go test ./internal/conformance -update", document)
	}
}

// of gives the files that cite a statement, or the one that says the same.
func (c *citations) of(s statement) (code, tests []string) {
	pick := func(m map[key][]string) []string {
		all := map[string]bool{}
		for _, f := range m[s.key] {
			all[f] = true
		}
		if s.same != "" {
			for _, f := range m[key{v5, s.same}] {
				all[f] = true
			}
		}
		return slices.Sorted(maps.Keys(all))
	}
	return pick(c.code), pick(c.tests)
}

// render writes the document.
func render(all []statement, found *citations) []byte {
	var b bytes.Buffer
	b.WriteString("# MQTT conformance\n\nWritten by `go test ./internal/conformance -update`; do not edit it by hand.\n\n" + strings.TrimSpace(choices) + "\n")
	for _, v := range []version{v5, v311} {
		title := "MQTT " + string(v)
		fmt.Fprintf(&b, "\n## Statements of %s\n\nWhere each statement that concerns a server is obeyed, and which tests show it", title)
		if v == v311 {
			b.WriteString(". Where 5.0 says the same, its id stands in brackets, and citations of either count")
		}
		b.WriteString(".\n\n| statement | what it asks | code | tests |\n| --- | --- | --- | --- |\n")
		var uncovered, clients []statement
		for _, s := range all {
			if s.version != v {
				continue
			}
			code, tests := found.of(s)
			switch {
			case s.client:
				clients = append(clients, s)
				continue
			case len(code) == 0 || len(tests) == 0:
				uncovered = append(uncovered, s)
				if len(code) == 0 {
					continue
				}
			}
			id := s.id
			if s.same != "" && s.same != s.id {
				id += " (" + s.same + ")"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", id, escape(s.words), files(code), files(tests))
		}
		fmt.Fprintf(&b, "\n### Not covered in %s\n\n", title)
		if len(uncovered) > 0 {
			b.WriteString("| statement | what it asks | reason |\n| --- | --- | --- |\n")
		}
		for _, s := range uncovered {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", s.id, escape(s.words), escape(s.reason))
		}
		fmt.Fprintf(&b, "\n### For clients only in %s\n\n", title)
		for _, s := range clients {
			fmt.Fprintf(&b, "- %s: %s\n", s.id, s.words)
		}
	}
	return b.Bytes()
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// files lists files, but for those that the others make unnecessary: at most four.
func files(list []string) string {
	const most = 4
	more := ""
	if len(list) > most {
		list, more = list[:most], fmt.Sprintf(", and %d more", len(list)-most)
	}
	quoted := make([]string, len(list))
	for i, f := range list {
		quoted[i] = "`" + f + "`"
	}
	return strings.Join(quoted, ", ") + more
}
