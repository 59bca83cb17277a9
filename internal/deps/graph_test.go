package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

const module = "rewindmq"

// pkg is what the rules need to know of a package.
type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// graph are the packages of the module by their path below it.
type graph map[string]*pkg

// load asks the go tool for the module's packages, also those that do not compile at the moment.
func load(t *testing.T) graph {
	t.Helper()
	g, err := listed()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

var listed = sync.OnceValues(func() (graph, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.New(stderr.String())
	}
	g := graph{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, err
		}
		g[below(p.ImportPath)] = &p
	}
})

// below returns a package of this module by its path below it, and any other path as it is.
func below(path string) string { return strings.TrimPrefix(path, module+"/") }

// ours says whether an import path belongs to this module.
func ours(path string) bool { return strings.HasPrefix(path, module+"/") }

// tests returns what only the tests of p import.
func (p *pkg) tests() []string {
	return append(append([]string{}, p.TestImports...), p.XTestImports...)
}

// within says whether path is prefix or lies below it.
func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// withinAny says whether path lies in one of the prefixes.
func withinAny(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if within(path, p) {
			return true
		}
	}
	return false
}

// reach returns everything that the non-test code of a package imports, directly or not, as far as it is ours, and what
// that imports from outside.
func (g graph) reach(path string) map[string]bool {
	seen := map[string]bool{}
	var walk func(string)
	walk = func(at string) {
		p := g[at]
		if p == nil {
			return
		}
		for _, i := range p.Imports {
			if next := below(i); !seen[next] {
				seen[next] = true
				walk(next)
			}
		}
	}
	walk(path)
	return seen
}
