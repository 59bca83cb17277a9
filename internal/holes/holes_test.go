package holes

import (
	"bufio"
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
	section  = "## Holes and their tests"
)

// series are the holes that there are: 1 to the number, for each letter.
var series = []struct {
	letter string
	last   int
}{{"L", 12}, {"T", 16}, {"S", 25}, {"Q", 3}, {"R", 7}, {"W", 3}, {"G", 4}, {"P", 6}}

// cited is a test that a row names.
type cited struct{ dir, name string }

// row is a line of the table.
type row struct {
	id    string
	tests []cited
}

var (
	first = regexp.MustCompile(`^([LTSQRWGP][0-9]+) \[[AEM]\]$`)
	quote = regexp.MustCompile("`([^` ]+) ([^` ]+)`")
)

// table reads the rows of the section.
func table(t *testing.T) []row {
	t.Helper()
	f, err := os.Open(document)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []row
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "## ") {
			inside = line == section
		}
		cells := strings.Split(line, " | ")
		if !inside || len(cells) != 3 || strings.HasPrefix(line, "| hole ") {
			continue
		}
		id := first.FindStringSubmatch(strings.TrimPrefix(cells[0], "| "))
		if id == nil {
			t.Errorf("no hole: %q", line)
			continue
		}
		r := row{id: id[1]}
		for _, m := range quote.FindAllStringSubmatch(cells[2], -1) {
			r.tests = append(r.tests, cited{m[1], m[2]})
		}
		out = append(out, r)
	}
	return out
}

// sources gives the text of a package: its tests, or all of it.
func sources(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

// missing tells what is wrong with a test that is named; "": it is there.
func missing(t *testing.T, c cited) string {
	t.Helper()
	fn, rule, isRule := strings.Cut(c.name, "/")
	switch {
	case !strings.HasPrefix(c.name, "Test"):
		if !strings.Contains(sources(t, c.dir, "*.go"), `"`+c.name) {
			return "no such check"
		}
	case !strings.Contains(sources(t, c.dir, "*_test.go"), "\nfunc "+fn+"(t *testing.T) {"):
		return "no such function"
	case isRule:
		hole, name, _ := strings.Cut(rule, "_")
		if !strings.Contains(sources(t, c.dir, "*_test.go"), fmt.Sprintf("%q, %q", hole, name)) {
			return "no such rule"
		}
	}
	return ""
}

// carries tells whether the name of a test has the id of a hole in it.
func (c cited) carries(id string) bool {
	name := strings.TrimPrefix(strings.TrimPrefix(c.name, "Test"), "Hub")
	parts := strings.FieldsFunc(name, func(r rune) bool { return r == '_' || r == '/' })
	return slices.Contains(parts, id)
}

// TestTable: every hole has its row, every row a test that carries the id, and every
// test that is named exists.
func TestTable(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range table(t) {
		if seen[r.id] {
			t.Errorf("%s has two rows", r.id)
		}
		seen[r.id] = true
		if !slices.ContainsFunc(r.tests, func(c cited) bool { return c.carries(r.id) }) {
			t.Errorf("%s: none of its tests carries its id: %v", r.id, r.tests)
		}
		for _, c := range r.tests {
			if why := missing(t, c); why != "" {
				t.Errorf("%s: %s in %s: %s", r.id, c.name, c.dir, why)
			}
		}
	}
	for _, s := range series {
		for n := 1; n <= s.last; n++ {
			if id := fmt.Sprint(s.letter, n); !seen[id] {
				t.Errorf("%s has no row", id)
			}
		}
	}
}

// TestCitedExists: also what other sections name as a package and a test of it.
func TestCitedExists(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range quote.FindAllSubmatch(text, -1) {
		c := cited{string(m[1]), string(m[2])}
		if info, err := os.Stat(filepath.Join(root, c.dir)); err != nil || !info.IsDir() || !strings.HasPrefix(c.name, "Test") {
			continue
		}
		n++
		if why := missing(t, c); why != "" {
			t.Errorf("%s in %s: %s", c.name, c.dir, why)
		}
	}
	if n < 100 {
		t.Errorf("only %d tests are named", n)
	}
}

var hole = regexp.MustCompile(`(?m)^func (TestHole_[A-Za-z0-9_]+)\(`)

// TestEveryHoleTestIsNamed: a test that is named after a hole stands in the table.
func TestEveryHoleTestIsNamed(t *testing.T) {
	t.Parallel()
	named := map[string]bool{}
	for _, r := range table(t) {
		for _, c := range r.tests {
			named[c.name] = true
		}
	}
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && strings.HasPrefix(name, ".") && name != ".." {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range hole.FindAllSubmatch(text, -1) {
			if n++; !named[string(m[1])] {
				t.Errorf("%s of %s is not in the table", m[1], path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 50 {
		t.Errorf("only %d tests are named after holes", n)
	}
}
