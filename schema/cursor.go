package schema

import (
	"fmt"
	"slices"
	"strings"
)

// Lane numbers a lane, from 1. Lane 0 is history: what was there before the
// first start. It lies before every cursor.
type Lane uint32

// Mark says where a message stands: the n-th message of its lane, from 1.
type Mark struct {
	Lane Lane   `bson:"lane"`
	N    uint64 `bson:"n"`
}

// IsZero tells whether m is no place.
func (m Mark) IsZero() bool { return m == Mark{} }

// String gives "lane/n".
func (m Mark) String() string { return fmt.Sprintf("%d/%d", m.Lane, m.N) }

// Cursor says how far a reader has got: an n for every lane that is not
// retired, and the newest lane known. The zero Cursor stands before everything.
//
// A copy shares its entries with the original: Clone before changing a cursor
// that somebody else holds. Reading is safe for concurrent use.
type Cursor struct {
	newest Lane
	// at is sorted by lane. Invariant: no lane is above newest, none is 0.
	at []Mark
}

// NewCursor builds a cursor from its parts. It takes marks and sorts it.
// REQUIRES: each lane at most once, in 1..newest.
func NewCursor(newest Lane, marks []Mark) Cursor {
	slices.SortFunc(marks, func(a, b Mark) int { return int(int64(a.Lane) - int64(b.Lane)) })
	for i, m := range marks {
		if m.Lane == 0 || m.Lane > newest || i > 0 && marks[i-1].Lane == m.Lane {
			panic(fmt.Sprintf("schema: cursor with newest %d and marks %v", newest, marks))
		}
	}
	return Cursor{newest: newest, at: marks}
}

// At gives the cursor of a log with one lane that has reached n. It takes one
// allocation; within a batch, slots (see AtIn) takes none.
func At(lane Lane, n uint64) Cursor {
	return Cursor{newest: lane, at: []Mark{{lane, n}}}
}

// AtIn is At with the entry in slot, which the cursor keeps: a tail that yields
// a cursor for each of many events allocates their slots at once.
func AtIn(slot []Mark, lane Lane, n uint64) Cursor {
	slot[0] = Mark{lane, n}
	return Cursor{newest: lane, at: slot[:1:1]}
}

// Newest gives the newest lane known.
func (c Cursor) Newest() Lane { return c.newest }

// Marks gives the entries by lane. The slice is the cursor's own: only read it.
func (c Cursor) Marks() []Mark { return c.at }

// IsZero tells whether c stands before everything.
func (c Cursor) IsZero() bool { return c.newest == 0 }

// Clone gives a cursor that shares nothing with c.
func (c Cursor) Clone() Cursor { return Cursor{newest: c.newest, at: slices.Clone(c.at)} }

// N gives the entry of lane, and whether there is one.
func (c Cursor) N(lane Lane) (uint64, bool) {
	if i, ok := c.find(lane); ok {
		return c.at[i].N, true
	}
	return 0, false
}

// find gives the place of lane among the entries. Vectors are short, and the
// lane asked for is mostly a late one: a scan from the end beats a search.
func (c Cursor) find(lane Lane) (int, bool) {
	for i := len(c.at) - 1; i >= 0; i-- {
		if c.at[i].Lane <= lane {
			if c.at[i].Lane == lane {
				return i, true
			}
			return i + 1, false
		}
	}
	return 0, false
}

// After tells whether m lies after the cursor: its lane has an entry and n is
// greater, or its lane is newer than the newest known. A lane that is not newer
// and has no entry is retired, and all of it lies before.
func (c Cursor) After(m Mark) bool {
	if m.Lane > c.newest {
		return true
	}
	i, ok := c.find(m.Lane)
	return ok && m.N > c.at[i].N
}

// Advance moves the cursor to m. Every lane between the newest known and this
// one gets entry 0 (else all of it would count as retired: T5); then n rises,
// never falls. A retired lane stays retired.
func (c *Cursor) Advance(m Mark) {
	for k := c.newest + 1; k <= m.Lane; k++ {
		c.at = append(c.at, Mark{Lane: k})
	}
	c.newest = max(c.newest, m.Lane)
	if i, ok := c.find(m.Lane); ok {
		c.at[i].N = max(c.at[i].N, m.N)
	}
}

// Retire drops the entry of a lane that has been read to its end (T4).
func (c *Cursor) Retire(lane Lane) {
	c.Advance(Mark{Lane: lane})
	if i, ok := c.find(lane); ok {
		c.at = slices.Delete(c.at, i, i+1)
	}
}

// Merge moves the cursor to where both have passed: the newest is the larger; a
// lane known to both has an entry only if both have one, the larger n; a lane
// above one's newest is taken from the other.
func (c *Cursor) Merge(o Cursor) {
	out := make([]Mark, 0, max(len(c.at), len(o.at)))
	i, j := 0, 0
	for i < len(c.at) || j < len(o.at) {
		switch {
		case j == len(o.at) || i < len(c.at) && c.at[i].Lane < o.at[j].Lane:
			if c.at[i].Lane > o.newest {
				out = append(out, c.at[i])
			}
			i++
		case i == len(c.at) || o.at[j].Lane < c.at[i].Lane:
			if o.at[j].Lane > c.newest {
				out = append(out, o.at[j])
			}
			j++
		default:
			out = append(out, Mark{c.at[i].Lane, max(c.at[i].N, o.at[j].N)})
			i, j = i+1, j+1
		}
	}
	c.at, c.newest = out, max(c.newest, o.newest)
}

// Covers tells whether all that is not after o is not after c: c has passed all
// that o has. An entry 0 counts as passed everywhere: an empty lane holds nobody
// up.
func (c Cursor) Covers(o Cursor) bool {
	for _, m := range o.at {
		if m.N > 0 && c.After(m) {
			return false
		}
	}
	// Lanes that o holds retired (no entry, not above its newest) must be
	// retired for c too, or unknown to neither.
	for _, m := range c.at {
		if m.Lane <= o.newest {
			if _, ok := o.find(m.Lane); !ok {
				return false
			}
		}
	}
	for k := c.newest + 1; k <= o.newest; k++ {
		if _, ok := o.find(k); !ok {
			return false
		}
	}
	return true
}

// Equal tells whether both stand at the same place.
func (c Cursor) Equal(o Cursor) bool { return c.newest == o.newest && slices.Equal(c.at, o.at) }

// String gives "newest[lane/n lane/n]", for logs and tests.
func (c Cursor) String() string {
	parts := make([]string, len(c.at))
	for i, m := range c.at {
		parts[i] = m.String()
	}
	return fmt.Sprintf("%d[%s]", c.newest, strings.Join(parts, " "))
}
