package config

import (
	"cmp"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// Where is the file with its line, the name of the environment variable or the flag.
	Where string
	// Path is the key path of the setting, or the unknown key.
	Path string
	// Value is what was given, without a password. It may be empty.
	Value string
	// What says what is wrong, as the end of a sentence that begins with the path.
	What string
	// Try says what to do about it.
	Try string
}

// String returns the problem as one line: what, where, and what to try.
func (p Problem) String() string {
	var b strings.Builder
	if p.Where != "" {
		b.WriteString(p.Where + ": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + " ")
	}
	b.WriteString(p.What)
	if p.Value != "" {
		b.WriteString(" (got " + p.Value + ")")
	}
	b.WriteString(".")
	if p.Try != "" {
		b.WriteString(" Try: " + p.Try)
	}
	return b.String()
}

// Problems is all that is wrong with a configuration. It is never empty when it is an error.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// nearest returns the candidate that key was probably meant to be, or an empty string. It knows, in this order, wrong
// separators (store_data for store.data), one or two wrong letters (first of a setting in the same section), a missing
// or wrong section (data for store.data), and a few more wrong letters.
func nearest(key string, candidates []string) string {
	flat := strings.NewReplacer(".", "", "_", "", "-", "")
	for _, c := range candidates {
		if strings.EqualFold(flat.Replace(c), flat.Replace(key)) {
			return c
		}
	}
	best := slices.MinFunc(candidates, func(a, b string) int {
		return cmp.Or(cmp.Compare(distance(key, a), distance(key, b)), cmp.Compare(away(key, a), away(key, b)))
	})
	if distance(key, best) <= 2 {
		return best
	}
	last := key[strings.LastIndexByte(key, '.')+1:]
	for _, c := range candidates {
		if c == last || strings.HasSuffix(c, "."+last) {
			return c
		}
	}
	if distance(key, best) > len(key)/4 {
		return ""
	}
	return best
}

// away is 0 where two keys are of the same section, else 1.
func away(a, b string) int {
	if a[:strings.LastIndexByte(a, '.')+1] == b[:strings.LastIndexByte(b, '.')+1] {
		return 0
	}
	return 1
}

// distance is the Levenshtein distance of two short texts in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
