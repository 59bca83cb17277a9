package deps

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines     = 500
	maxFunctionLines = 60
	maxExported      = 19
	maxMethods       = 3
)

// longFunctions may be longer than the limit: a switch over packet types reads better in one piece.
var longFunctions = map[string]string{
	"wire.String": "the names of all reason codes in one switch",
}

// manyNames may export more than the limit, up to a limit of their own.
var manyNames = map[string]struct {
	limit int
	why   string
}{
	"wire":             {200, "it names every packet, property and reason code of the protocol"},
	"schema":           {30, "it is the vocabulary: every recorded document and what one can ask of it"},
	"store":            {58, "it is the whole contract in one place: interfaces, their values and their sentinel errors"},
	"broker/session":   {63, "its interface is a type for each input and each action of the state machine"},
	"store/mongo/lane": {55, "five state machines, and a name for each action and each outcome"},
}

// emptyNames say nothing about what is inside.
var emptyNames = []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base"}

// emptySuffixes make a type's name longer and no clearer.
var emptySuffixes = []string{"Manager", "Handler", "Impl", "Service"}

// source is one parsed file.
type source struct {
	pkg  string // package path below the module
	name string
	test bool
	file *ast.File
	fset *token.FileSet
}

// position names a place for people.
func (s source) position(p token.Pos) string {
	return fmt.Sprintf("%s/%s:%d", s.pkg, s.name, s.fset.Position(p).Line)
}

func sources(t *testing.T, g graph) []source {
	t.Helper()
	var list []source
	for _, path := range slices.Sorted(maps.Keys(g)) {
		p := g[path]
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			text, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			s, err := parse(path, name, string(text))
			if err != nil {
				t.Error(err)
				continue
			}
			list = append(list, s)
		}
	}
	return list
}

func parse(path, name, text string) (source, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path+"/"+name, text, parser.ParseComments|parser.SkipObjectResolution)
	return source{pkg: path, name: name, test: strings.HasSuffix(name, "_test.go"), file: file, fset: fset}, err
}

// brokenSources returns everything that is too large, badly named or otherwise against the rules.
func brokenSources(list []source) []string {
	var broken []string
	exported := map[string]int{}
	described := map[string]bool{}
	for _, s := range list {
		if last := s.pkg[strings.LastIndexByte(s.pkg, '/')+1:]; slices.Contains(emptyNames, last) {
			broken = append(broken, fmt.Sprintf("%s: the package name %s does not say what is inside", s.pkg, last))
		}
		if s.test {
			broken = append(broken, sleeps(s)...)
			continue
		}
		if lines := s.fset.File(s.file.Pos()).LineCount(); lines > maxFileLines {
			broken = append(broken, fmt.Sprintf("%s/%s has %d lines, %d is the limit: a file is one noun", s.pkg, s.name, lines, maxFileLines))
		}
		described[s.pkg] = described[s.pkg] || s.file.Doc != nil
		broken = append(broken, declarations(s, exported)...)
	}
	for path, n := range exported {
		limit := maxExported
		if own, ok := manyNames[path]; ok {
			limit = own.limit
		}
		if n > limit {
			broken = append(broken, fmt.Sprintf("%s exports %d names, %d is the limit: a package is one idea", path, n, limit))
		}
	}
	for path, ok := range described {
		if !ok {
			broken = append(broken, path+" has no package comment: its nouns, invariants and goroutine owners")
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

// declarations judges what a file declares, and counts the exported names by package.
func declarations(s source, exported map[string]int) []string {
	var broken []string
	count := func(name *ast.Ident) {
		if name.IsExported() {
			exported[s.pkg]++
		}
	}
	for _, d := range s.file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			broken = append(broken, function(s, d)...)
			if d.Recv == nil {
				count(d.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					count(spec.Name)
					broken = append(broken, typeName(s, spec)...)
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						count(name)
					}
				}
			}
		}
	}
	return broken
}

func function(s source, d *ast.FuncDecl) []string {
	if d.Recv == nil && d.Name.Name == "init" {
		return []string{s.position(d.Pos()) + ": func init: what is done on import cannot be left out or ordered"}
	}
	name := s.pkg + "." + d.Name.Name
	lines := s.fset.Position(d.End()).Line - s.fset.Position(d.Pos()).Line
	if lines > maxFunctionLines && longFunctions[name] == "" {
		return []string{fmt.Sprintf("%s: %s has %d lines, %d is the limit", s.position(d.Pos()), name, lines, maxFunctionLines)}
	}
	return nil
}

func typeName(s source, spec *ast.TypeSpec) []string {
	var broken []string
	for _, suffix := range emptySuffixes {
		if strings.HasSuffix(spec.Name.Name, suffix) {
			broken = append(broken, fmt.Sprintf("%s: the name %s says nothing with its %s", s.position(spec.Pos()), spec.Name.Name, suffix))
		}
	}
	i, ok := spec.Type.(*ast.InterfaceType)
	if !ok {
		return broken
	}
	methods := 0
	for _, m := range i.Methods.List {
		methods += len(m.Names)
	}
	if methods > maxMethods {
		broken = append(broken, fmt.Sprintf("%s: the interface %s has %d methods, %d is the limit: cut it for its consumers", s.position(spec.Pos()), spec.Name.Name, methods, maxMethods))
	}
	return broken
}

// sleeps finds time.Sleep in a test. In a testing/synctest bubble time stands still, so there it is a step and no wait;
// and a measurement may leave the broker alone for a while.
func sleeps(s source) []string {
	if within(s.pkg, "bench") {
		return nil
	}
	for _, i := range s.file.Imports {
		if i.Path.Value == `"testing/synctest"` {
			return nil
		}
	}
	var broken []string
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && sel.Sel.Name == "Sleep" {
			broken = append(broken, s.position(n.Pos())+": time.Sleep in a test: wait for a condition")
		}
		return true
	})
	return broken
}

func TestSources(t *testing.T) {
	t.Parallel()
	for _, b := range brokenSources(sources(t, load(t))) {
		t.Error(b)
	}
}

// Each rule is broken once in a made-up source, and noticed.
func TestSourceRulesNotice(t *testing.T) {
	t.Parallel()
	many := "// Package a is.\npackage a\n\nconst (\n"
	for i := range maxExported + 1 {
		many += fmt.Sprintf("\tName%d = %d\n", i, i)
	}
	many += ")\n"
	long := "// Package a is.\npackage a\n\nfunc f() {\n" + strings.Repeat("\t_ = 1\n", maxFunctionLines) + "}\n"
	const fine = "// Package a is.\npackage a\n"
	tests := []struct{ path, name, text, want string }{
		{"a", "a.go", fine, ""},
		{"a", "a.go", fine + strings.Repeat("\n", maxFileLines), "lines, 500 is the limit"},
		{"a", "a.go", long, "a.f has 61 lines"},
		{"a", "a.go", strings.Replace(long, "\t_ = 1\n", "", 1), ""},
		{"a", "a.go", many, "exports 20 names"},
		{"wire", "a.go", many, ""},
		{"a", "a.go", strings.Replace(many, "Name0 ", "name0 ", 1), ""},
		{"a", "a.go", "package a\n", "no package comment"},
		{"x/util", "a.go", fine, "does not say what is inside"},
		{"a", "a.go", fine + "type ConnManager struct{}\n", "says nothing with its Manager"},
		{"a", "a.go", fine + "type handler interface{ A(); B(); C() }\n", ""},
		{"a", "a.go", fine + "type I interface{ A(); B(); C(); D() }\n", "has 4 methods"},
		{"a", "a.go", fine + "func init() {}\n", "func init"},
		{"a", "a_test.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", "time.Sleep in a test"},
		{"bench", "a_test.go", "package bench\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", ""},
		{"a", "a_test.go", "package a\nimport (\"time\"; \"testing/synctest\")\nfunc f() { time.Sleep(1) }\n", ""},
	}
	for _, tt := range tests {
		s, err := parse(tt.path, tt.name, tt.text)
		if err != nil {
			t.Fatalf("%v\n%s", err, tt.text)
		}
		got := strings.Join(brokenSources([]source{s}), "\n")
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("want %q, said %q for\n%.300s", tt.want, got, tt.text)
		}
	}
}
