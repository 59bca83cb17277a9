package publish

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func all(t testing.TB, s Source) []string {
	var list []string
	for {
		m, err := s.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("row %d: %v", len(list)+1, err)
		}
		list = append(list, string(m.Payload))
		if m.Row != int64(len(list)) {
			t.Fatalf("row %d has the number %d", len(list), m.Row)
		}
	}
}

func TestCSV(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", nil},
		{"plain", "a,b\n1,2\n", []string{"a,b", "1,2"}},
		{"no last line end", "a,b\n1,2", []string{"a,b", "1,2"}},
		{"CRLF", "a,b\r\n1,2\r\n", []string{"a,b", "1,2"}},
		{"a lone CR stays", "a\rb\n", []string{"a\rb"}},
		{"line end in quotes", "a,\"x\ny\"\n1,2\n", []string{"a,\"x\ny\"", "1,2"}},
		{"CRLF in quotes stays", "\"x\r\ny\"\r\n1\r\n", []string{"\"x\r\ny\"", "1"}},
		{"doubled quotes", "\"a\"\"\n\"\"b\",c\nd\n", []string{"\"a\"\"\n\"\"b\",c", "d"}},
		{"a quote in the middle of a field", "5\" pipe,1\n6\" pipe,2\n", []string{"5\" pipe,1", "6\" pipe,2"}},
		{"empty line", "a\n\nb\n", []string{"a", "", "b"}},
		{"spaces stay", " a , b \n", []string{" a , b "}},
		{"not UTF-8", "\xff,\xfe\n", []string{"\xff,\xfe"}},
	}
	for _, tt := range tests {
		if got := all(t, CSV(strings.NewReader(tt.text), ',')); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCSVDelimiter(t *testing.T) {
	t.Parallel()
	got := all(t, CSV(strings.NewReader("a;\"x\ny\"\n1;2\n"), ';'))
	if want := []string{"a;\"x\ny\"", "1;2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOpenQuote(t *testing.T) {
	t.Parallel()
	s := CSV(strings.NewReader("a\n\"b\nc\n"), ',')
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); err == nil || !strings.Contains(err.Error(), "line 2: a quote is not closed") {
		t.Errorf("got %v", err)
	}
	s = CSV(io.MultiReader(strings.NewReader("\""), zeros{}), ',')
	if _, err := s.Next(); err == nil || !strings.Contains(err.Error(), "longer than 8 MiB") {
		t.Errorf("got %v", err)
	}
}

// zeros is an endless text without a line end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// Whatever rows a CSV writer makes are cut apart again where it put them together, byte for byte.
func TestCSVRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var text bytes.Buffer
		var want []string
		for range rapid.IntRange(0, 20).Draw(t, "rows") {
			fields := rapid.SliceOfN(rapid.StringMatching(`[a",\n x]{0,8}`), 1, 4).Draw(t, "fields")
			var one bytes.Buffer
			w := csv.NewWriter(&one)
			if err := w.Write(fields); err != nil {
				t.Fatal(err)
			}
			w.Flush()
			text.Write(one.Bytes())
			want = append(want, strings.TrimSuffix(one.String(), "\n"))
		}
		s := CSV(&text, ',')
		for i, w := range want {
			m, err := s.Next()
			if err != nil || string(m.Payload) != w {
				t.Fatalf("row %d: got %q and %v, want %q", i, m.Payload, err, w)
			}
		}
		if _, err := s.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last row: %v", err)
		}
	})
}

func TestLines(t *testing.T) {
	t.Parallel()
	got := all(t, Lines(strings.NewReader("a \"b\nc\"\n\nd")))
	if want := []string{"a \"b", "c\"", "", "d"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Real readings: what the rows make is the file.
func TestReadings(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "integration", "testdata", "sf-temps.csv"))
	if err != nil {
		t.Fatal(err)
	}
	rows := all(t, CSV(bytes.NewReader(text), ','))
	if got := strings.Join(rows, "\n") + "\n"; got != string(text) || len(rows) != 8760 {
		t.Errorf("%d bytes became %d rows and %d bytes", len(text), len(rows), len(got))
	}
}
