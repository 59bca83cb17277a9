package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every command in the README exists, with the flags that stand there, and every link leads somewhere.
func TestReadme(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			args, found := strings.CutPrefix(strings.TrimSpace(line), "./rewindmq ")
			if !found {
				continue
			}
			commands++
			cmd, rest, err := newRoot(assemble).Find(words(args))
			if err != nil {
				t.Errorf("%q: %v", args, err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", args, err)
			} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
				t.Errorf("%q: %v", args, err)
			}
		}
	}
	if commands < 10 {
		t.Errorf("only %d commands were found", commands)
	}
	for _, page := range []string{"README.md", "docs/mongodb.md", "docs/operations.md"} {
		for _, broken := range brokenLinks(t, root, page) {
			t.Error(broken)
		}
	}
}

// brokenLinks gives the links of a page that lead to no file, or to no heading in it.
func brokenLinks(t *testing.T, root, page string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	var broken []string
	for _, link := range regexp.MustCompile(`\]\(([^):]+)\)`).FindAllStringSubmatch(string(text), -1) {
		path, anchor, hasAnchor := strings.Cut(link[1], "#")
		target := filepath.Join(root, page)
		if path != "" {
			target = filepath.Join(root, filepath.Dir(page), path)
		}
		there, err := os.ReadFile(target)
		if err != nil || (hasAnchor && !slices.Contains(anchors(string(there)), anchor)) {
			broken = append(broken, page+": the link "+link[1]+" leads nowhere")
		}
	}
	return broken
}

// anchors gives the names of a page's headings in links.
func anchors(text string) []string {
	var list []string
	for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
		list = append(list, strings.ReplaceAll(name, " ", "-"))
	}
	return list
}

// words cuts a line as a shell does, with single quotes only.
func words(line string) []string {
	var list []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			list = append(list, part)
		} else {
			list = append(list, strings.Fields(part)...)
		}
	}
	return list
}
