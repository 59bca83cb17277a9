package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The table in the README is the one that the settings make. REWINDMQ_TEST_UPDATE=1 writes it.
func TestReadmeTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "..", "README.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), "<!-- settings:")
	head, rest, found2 := strings.Cut(rest, "-->\n")
	table, after, found3 := strings.Cut(rest, "<!-- end of settings -->")
	if !found || !found2 || !found3 {
		t.Fatal("the README has no place for the table")
	}
	if table == Markdown() {
		return
	}
	if os.Getenv("REWINDMQ_TEST_UPDATE") == "" {
		t.Fatal("the table of settings in the README is not up to date: REWINDMQ_TEST_UPDATE=1 go test ./cmd/internal/config")
	}
	text = []byte(before + "<!-- settings:" + head + "-->\n" + Markdown() + "<!-- end of settings -->" + after)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
