package main

import (
	"os"
	"path/filepath"
	"regexp"
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
	for _, link := range regexp.MustCompile(`\]\(([^):]+)\)`).FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(filepath.Join(root, link[1])); err != nil {
			t.Errorf("the link %s leads nowhere: %v", link[1], err)
		}
	}
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
