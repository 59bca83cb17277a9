package schema

import (
	"testing"

	"pgregory.net/rapid"
)

// naive is a cursor as its definition says it: a map and the newest lane.
type naive struct {
	at     map[Lane]uint64
	newest Lane
}

func (c *naive) after(m Mark) bool {
	if n, ok := c.at[m.Lane]; ok {
		return m.N > n
	}
	return m.Lane > c.newest
}

func (c *naive) advance(m Mark) {
	for k := c.newest + 1; k <= m.Lane; k++ {
		c.at[k] = 0
	}
	c.newest = max(c.newest, m.Lane)
	if n, ok := c.at[m.Lane]; ok {
		c.at[m.Lane] = max(n, m.N)
	}
}

func (c *naive) retire(k Lane) {
	c.advance(Mark{Lane: k})
	delete(c.at, k)
}

func (c *naive) merge(o *naive) {
	at := map[Lane]uint64{}
	for k, n := range c.at {
		if m, ok := o.at[k]; ok {
			at[k] = max(n, m)
		} else if k > o.newest {
			at[k] = n
		}
	}
	for k, n := range o.at {
		if k > c.newest {
			at[k] = n
		}
	}
	c.at, c.newest = at, max(c.newest, o.newest)
}

func (c *naive) cursor() Cursor {
	marks := []Mark{}
	for k, n := range c.at {
		marks = append(marks, Mark{k, n})
	}
	return NewCursor(c.newest, marks)
}

// The universe of marks in which cursors are compared reaches beyond every entry
// that drawNaive makes.
const (
	lanes  = 6
	depth  = 4
	beyond = depth + 2
)

func universe(fn func(Mark)) {
	for k := Lane(1); k <= lanes+2; k++ {
		for n := uint64(1); n <= beyond; n++ {
			fn(Mark{k, n})
		}
	}
}

func drawNaive(t *rapid.T, label string) *naive {
	c := &naive{at: map[Lane]uint64{}, newest: Lane(rapid.IntRange(0, lanes).Draw(t, label+" newest"))}
	for k := Lane(1); k <= c.newest; k++ {
		if n := rapid.IntRange(-1, depth).Draw(t, label+" entry"); n >= 0 {
			c.at[k] = uint64(n)
		}
	}
	return c
}

func drawCursor(t *rapid.T, label string) Cursor { return drawNaive(t, label).cursor() }

func drawMark(t *rapid.T) Mark {
	return Mark{Lane(rapid.IntRange(1, lanes).Draw(t, "lane")), uint64(rapid.IntRange(1, depth).Draw(t, "n"))}
}

func wantSame(t *rapid.T, c Cursor, n *naive) {
	t.Helper()
	if c.Newest() != n.newest || len(c.Marks()) != len(n.at) {
		t.Fatalf("got %v, want newest %d of %v", c, n.newest, n.at)
	}
	last := Lane(0)
	for _, m := range c.Marks() {
		if m.Lane <= last || m.Lane > c.Newest() {
			t.Fatalf("entries of %v are not sorted below the newest", c)
		}
		last = m.Lane
		if got, ok := c.N(m.Lane); !ok || got != n.at[m.Lane] {
			t.Fatalf("N(%d) of %v = %d, %v; want %d", m.Lane, c, got, ok, n.at[m.Lane])
		}
	}
	universe(func(m Mark) {
		if c.After(m) != n.after(m) {
			t.Fatalf("%v.After(%v) = %v, want %v", c, m, c.After(m), n.after(m))
		}
	})
}

// A cursor goes through any steps as its definition does.
func TestCursorIsItsDefinition(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := &naive{at: map[Lane]uint64{}}
		var c Cursor
		if rapid.Bool().Draw(t, "from parts") {
			n = drawNaive(t, "first")
			c = n.cursor()
		}
		t.Repeat(map[string]func(*rapid.T){
			"advance": func(t *rapid.T) {
				m := drawMark(t)
				n.advance(m)
				c.Advance(m)
			},
			"retire": func(t *rapid.T) {
				k := drawMark(t).Lane
				n.retire(k)
				c.Retire(k)
			},
			"merge": func(t *rapid.T) {
				o := drawNaive(t, "other")
				oc := o.cursor()
				before := oc.Clone()
				n.merge(o)
				c.Merge(oc)
				if !oc.Equal(before) {
					t.Fatalf("Merge changed its argument from %v to %v", before, oc)
				}
			},
			"clone": func(t *rapid.T) { // what happens to a clone does not touch the original
				d := c.Clone()
				d.Advance(drawMark(t))
				d.Retire(drawMark(t).Lane)
			},
			"": func(t *rapid.T) { wantSame(t, c, n) },
		})
	})
}

// T5: a vector that advances to (8, 5) keeps an entry for 7: not all of lane 7
// counts as retired.
func TestT5_AdvanceFillsLanesBetween(t *testing.T) {
	t.Parallel()
	c := NewCursor(6, []Mark{{6, 3}})
	c.Advance(Mark{8, 5})
	for _, tt := range []struct {
		m    Mark
		want bool
	}{
		{Mark{5, 99}, false}, // retired before
		{Mark{6, 3}, false},
		{Mark{6, 4}, true},
		{Mark{7, 1}, true},
		{Mark{8, 5}, false},
		{Mark{8, 6}, true},
		{Mark{9, 1}, true},
	} {
		if got := c.After(tt.m); got != tt.want {
			t.Errorf("%v.After(%v) = %v, want %v", c, tt.m, got, tt.want)
		}
	}
	c.Advance(Mark{5, 100})
	if c.After(Mark{5, 101}) {
		t.Error("a retired lane came back")
	}
	if n, _ := c.N(6); n != 3 {
		t.Errorf("entry of lane 6 is %d", n)
	}
	c.Advance(Mark{8, 2})
	if n, _ := c.N(8); n != 5 {
		t.Errorf("entry of lane 8 fell to %d", n)
	}
}

// T4: Retire of a lane that was never met retires nothing else.
func TestRetireUnknownLane(t *testing.T) {
	t.Parallel()
	var c Cursor
	c.Retire(3)
	if c.After(Mark{3, 1}) || !c.After(Mark{2, 1}) || !c.After(Mark{1, 1}) || !c.After(Mark{4, 1}) {
		t.Errorf("after Retire(3): %v", c)
	}
}

// Invariant: a cursor only advances or merges: what it has passed it has passed.
func TestCursorOnlyAdvances(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		before := drawCursor(t, "before")
		c := before.Clone()
		switch rapid.IntRange(0, 2).Draw(t, "op") {
		case 0:
			m := drawMark(t)
			c.Advance(m)
			if c.After(m) {
				t.Fatalf("%v after Advance(%v)", c, m)
			}
		case 1:
			c.Merge(drawCursor(t, "other"))
		case 2:
			c.Retire(drawMark(t).Lane)
		}
		universe(func(m Mark) {
			if c.After(m) && !before.After(m) {
				t.Fatalf("%v is after %v and was not after %v", m, c, before)
			}
		})
		if !c.Covers(before) {
			t.Fatalf("%v does not cover %v, from which it came", c, before)
		}
	})
}

func TestMerge(t *testing.T) {
	t.Parallel()
	merged := func(a, b Cursor) Cursor {
		c := a.Clone()
		c.Merge(b)
		return c
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawCursor(t, "a"), drawCursor(t, "b"), drawCursor(t, "c")
		ab := merged(a, b)
		if ba := merged(b, a); !ab.Equal(ba) {
			t.Fatalf("not commutative: %v and %v", ab, ba)
		}
		if x, y := merged(ab, c), merged(a, merged(b, c)); !x.Equal(y) {
			t.Fatalf("not associative: %v and %v", x, y)
		}
		if x := merged(ab, b); !x.Equal(ab) {
			t.Fatalf("not idempotent: %v and %v", x, ab)
		}
		if x := merged(a, Cursor{}); !x.Equal(a) {
			t.Fatalf("merged with nothing: %v", x)
		}
		universe(func(m Mark) { // it has passed what either has passed, and nothing else
			if ab.After(m) != (a.After(m) && b.After(m)) {
				t.Fatalf("%v merged with %v is %v; After(%v) = %v", a, b, ab, m, ab.After(m))
			}
		})
		if !ab.Covers(a) || !ab.Covers(b) {
			t.Fatalf("%v covers not both %v and %v", ab, a, b)
		}
	})
}

// Covers is the inclusion of what was passed. An entry 0 counts as passed
// everywhere.
func TestCovers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c, o := drawCursor(t, "c"), drawCursor(t, "o")
		if rapid.Bool().Draw(t, "near") {
			c = o.Clone()
			c.Advance(drawMark(t))
		}
		want := true
		universe(func(m Mark) { want = want && (o.After(m) || !c.After(m)) })
		if got := c.Covers(o); got != want {
			t.Fatalf("%v.Covers(%v) = %v, want %v", c, o, got, want)
		}
	})
	empty := NewCursor(3, []Mark{{1, 4}, {2, 0}, {3, 0}})
	if c := NewCursor(1, []Mark{{1, 4}}); !c.Covers(empty) {
		t.Error("an empty lane holds somebody up")
	}
}

func TestAtIn(t *testing.T) {
	t.Parallel()
	slots := make([]Mark, 2)
	a, b := AtIn(slots[:1], 1, 7), AtIn(slots[1:], 1, 8)
	if !a.Equal(At(1, 7)) || !b.Equal(At(1, 8)) {
		t.Fatalf("got %v and %v", a, b)
	}
	a.Advance(Mark{2, 1}) // does not grow into the next slot
	if !b.Equal(At(1, 8)) {
		t.Errorf("advancing one cursor changed its neighbour to %v", b)
	}
}

func TestNewCursorRefuses(t *testing.T) {
	t.Parallel()
	for name, marks := range map[string][]Mark{
		"lane 0":           {{0, 1}},
		"above the newest": {{3, 1}},
		"twice":            {{1, 1}, {2, 1}, {1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			NewCursor(2, marks)
		})
	}
}
