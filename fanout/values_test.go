package fanout

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestListsNeverChange: a list that a reader has loaded stays as it was, whatever
// is added and removed afterwards.
func TestListsNeverChange(t *testing.T) {
	t.Parallel()
	all := func(l *list[int]) []int {
		var s values[int]
		s.list.Store(l)
		return s.appendTo(nil)
	}
	rapid.Check(t, func(t *rapid.T) {
		var s values[int]
		n := rapid.SampledFrom([]int{3, indexMax, chunkLen + 1, 2*chunkLen + 1}).Draw(t, "n")
		for i := range n {
			s.add(i)
		}
		type loaded struct {
			l    *list[int]
			want []int
		}
		var old []loaded
		there := map[int]bool{}
		for i := range n {
			there[i] = true
		}
		for range 60 {
			if l := s.list.Load(); l != nil {
				old = append(old, loaded{l, all(l)})
			}
			v := rapid.OneOf(rapid.IntRange(n-2, n+1), rapid.IntRange(0, n+1)).Draw(t, "value")
			if rapid.Bool().Draw(t, "add") {
				if s.add(v) == there[v] {
					t.Fatalf("add(%d) = %v", v, there[v])
				}
				there[v] = true
			} else {
				if s.remove(v) != there[v] {
					t.Fatalf("remove(%d) = %v", v, !there[v])
				}
				delete(there, v)
			}
			if checkValues(t, &s) != len(there) {
				t.Fatalf("%d values, want %d", len(s.appendTo(nil)), len(there))
			}
		}
		for i, o := range old {
			if !slices.Equal(all(o.l), o.want) {
				t.Fatalf("the list that was loaded before change %d has changed", i)
			}
		}
	})
}
