package main

import (
	"errors"
	"strings"
	"testing"
)

// A list that nobody gave is not begun; one that is empty is.
func TestPrinter(t *testing.T) {
	t.Parallel()
	gone := errors.New("nobody answers")
	for _, tt := range []struct {
		output string
		rows   int
		err    error
		want   string
	}{
		{"text", 0, nil, "A  B\n"},
		{"text", 0, gone, ""},
		{"text", 2, gone, "A  B\n1  2\n1  2\n"},
		{"json", 0, nil, "[]\n"},
		{"json", 0, gone, ""},
		{"json", 1, nil, "[\n7\n]\n"},
		{"json", 2, gone, "[\n7,\n7\n]\n"},
	} {
		var b strings.Builder
		p := (&operator{output: tt.output}).printer(&b, "A", "B")
		for range tt.rows {
			if err := p.print(7, "1", "2"); err != nil {
				t.Error(err)
			}
		}
		if err := p.end(tt.err); !errors.Is(err, tt.err) || b.String() != tt.want {
			t.Errorf("%+v: %q, %v", tt, b.String(), err)
		}
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0 rows", 1: "1 row", 2: "2 rows"} {
		if got := count(n, "row"); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
