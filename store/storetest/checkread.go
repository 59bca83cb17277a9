package storetest

import (
	"context"
	"errors"
	"io"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

func readChecks() []item {
	return []item{
		{"Read/Exact", 0, readExact},
		{"Read/UnderLoad", 0, readUnderLoad},
		{"Read/T7_CutAndResumed", 0, readCut},
		{"Read/Bounds", 0, readBounds},
		{"Read/Filters", 0, readFilters},
		{"Read/Reopen", needsReopen, readReopen},
		{"Read/Lookup", 0, lookup},
		{"Read/Trimmed", needsTrim, trimmed},
	}
}

func (c *check) open(after, upTo schema.Cursor, filters ...string) store.Messages {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	r, err := c.s.Read(ctx, after, upTo, filters)
	c.must(err, "Read(%v, %v, %q)", after, upTo, filters)
	return r
}

// pull takes up to n messages of an open read; fewer: it is at its end.
func (c *check) pull(r store.Messages, n int) []*schema.Message {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	var out []*schema.Message
	for len(out) < n {
		m, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		c.must(err, "Next of a read after %d messages", len(out))
		out = append(out, m)
	}
	return out
}

const whole = 1 << 30

func (c *check) read(after, upTo schema.Cursor, filters ...string) []*schema.Message {
	c.Helper()
	r := c.open(after, upTo, filters...)
	out := c.pull(r, whole)
	if n := r.Trimmed(); n != 0 && c.h.Trim == nil {
		c.Errorf("Trimmed is %d, and nothing was removed", n)
	}
	c.must(r.Close(), "Close of a read")
	return out
}

func (c *check) lookup(refs ...store.Ref) []*schema.Message {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	got, err := c.s.Lookup(ctx, refs)
	c.must(err, "Lookup")
	if len(got) != len(refs) {
		c.Fatalf("Lookup gave %d for %d", len(got), len(refs))
	}
	return got
}

// wantRead holds a read against the events of a tail, one by one.
func (c *check) wantRead(events []store.Event, after, upTo schema.Cursor, filters []string, got []*schema.Message) {
	c.Helper()
	want := map[schema.ID]int{}
	for i, m := range messages(events) {
		match := slices.ContainsFunc(filters, func(f string) bool { return schema.Match(f, m.Topic) })
		if match && after.After(m.Mark) && !upTo.After(m.Mark) {
			want[m.ID] = i
		}
	}
	lane, client := map[schema.Lane]uint64{}, map[string]int{}
	for _, m := range got {
		i, ok := want[m.ID]
		if !ok {
			c.Fatalf("Read(%v, %v, %q): %v (%s) does not belong there, or is there twice", after, upTo, filters, m.Mark, m.Topic)
		}
		delete(want, m.ID)
		if m.Mark.N <= lane[m.Mark.Lane] {
			c.Fatalf("Read(%v, %v, %q): %v behind n %d of its lane", after, upTo, filters, m.Mark, lane[m.Mark.Lane])
		}
		if last, ok := client[m.ClientID]; ok && i < last {
			c.Fatalf("Read(%v, %v, %q): %v inverts its publisher's", after, upTo, filters, m.Mark)
		}
		lane[m.Mark.Lane], client[m.ClientID] = m.Mark.N, i
	}
	for id, i := range want {
		c.Fatalf("Read(%v, %v, %q): %v at %v is missing", after, upTo, filters, id, messages(events)[i].Mark)
	}
}

// filterSets are asked for in turn: none, exact, wildcards, overlapping, broad.
var filterSets = [...][]string{
	{"#"},
	{"t/1"},
	{"t/+"},
	{"t/#"},
	{"+"},
	{"t/1", "t/2", "u"},
	{"t/#", "t/1", "#"},
	{"$SYS/#"},
	{"+/x/#"},
	{"u/x/y", "u/x/z"},
	{"no/such"},
	{"no/+", "t"},
	{},
	{"#", "$SYS/a"},
}

// vector draws a cursor between two that a tail reached: as a session has it that
// is further in one lane than in another.
func (c *check) vector(events []store.Event) schema.Cursor {
	cur := events[c.rng.IntN(len(events))].H.Clone()
	far := events[c.rng.IntN(len(events))].H
	for _, m := range far.Marks() {
		if n, ok := cur.N(m.Lane); ok && m.N > n && c.rng.IntN(2) == 0 {
			cur.Advance(schema.Mark{Lane: m.Lane, N: n + 1 + c.rng.Uint64N(m.N-n)})
		}
	}
	return cur
}

func (c *check) readSome(events []store.Event, from schema.Cursor, rounds int) {
	c.Helper()
	for i := range rounds {
		after, upTo := from, events[c.rng.IntN(len(events))].H
		if i%5 != 0 {
			after = c.vector(events)
		}
		filters := filterSets[i%len(filterSets)]
		c.wantRead(events, after, upTo, filters, c.read(after, upTo, filters...))
	}
}

// Promise 4 between any two cursors, for any filters.
func readExact(c *check) {
	l, from := newLoad(), c.head()
	c.publish(l, clients(5), 40*c.h.Rounds, nil)
	head := c.head()
	events := c.events(from, head)
	c.readSome(events, from, 140)
	for _, filters := range filterSets {
		c.wantRead(events, from, head, filters, c.read(from, head, filters...))
		c.wantRead(events, schema.Cursor{}, head, filters, c.read(schema.Cursor{}, head, filters...))
	}
}

// ... also while appends go on.
func readUnderLoad(c *check) {
	l, from := newLoad(), c.head()
	c.stored(publisher("z"), c.message("z", "t/1"))
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		c.publish(l, clients(4), 60*c.h.Rounds, quit)
	}()
	for range 6 {
		events := c.events(from, c.head())
		c.readSome(events, from, 20)
	}
	<-gone
	close(quit)
	c.readSome(c.events(from, c.head()), from, 20)
}

// T7: a read that is cut and resumed at the reader's own vector, again and again,
// gives each message once.
func readCut(c *check) {
	l, from := newLoad(), c.head()
	c.publish(l, clients(5), 30*c.h.Rounds, nil)
	upTo := c.head()
	events := c.events(from, upTo)
	for i := range 3 * len(filterSets) {
		filters := filterSets[i%len(filterSets)]
		own := from.Clone()
		var got []*schema.Message
		for {
			r := c.open(own, upTo, filters...)
			part := c.pull(r, 1+c.rng.IntN(20))
			c.must(r.Close(), "Close of a read that is not at its end")
			if len(part) == 0 {
				break
			}
			for _, m := range part {
				own.Advance(m.Mark)
			}
			if got = append(got, part...); len(got) > len(events) {
				c.Fatalf("a read that is cut and resumed at %v repeats itself: %d messages of %d", own, len(got), len(events))
			}
		}
		c.wantRead(events, from, upTo, filters, got)
	}
}

// The bounds are exact: what stands at `after` is not read, what stands at upTo
// is.
func readBounds(c *check) {
	from := c.head()
	var msgs []*schema.Message
	var at []schema.Cursor
	p := publisher("p")
	for range 12 {
		m := c.message("p", "t/1")
		c.stored(p, m)
		msgs = append(msgs, m)
		at = append(at, c.head())
	}
	for i := range at {
		for j := i; j < len(at); j++ {
			got := c.read(at[i], at[j], "t/1")
			if len(got) != j-i {
				c.Fatalf("between message %d and %d: %d messages", i, j, len(got))
			}
			for k, m := range got {
				if m.ID != msgs[i+1+k].ID {
					c.Fatalf("between message %d and %d: %v in place %d", i, j, m.Mark, k)
				}
			}
		}
		if got := c.read(from, at[i], "t/1"); len(got) != i+1 {
			c.Fatalf("up to message %d: %d messages", i, len(got))
		}
	}
	if got := c.read(at[5], at[2], "#"); len(got) != 0 {
		c.Errorf("up to a cursor that lies before: %d messages", len(got))
	}
	if got := c.read(from, at[11]); len(got) != 0 {
		c.Errorf("without a filter: %d messages", len(got))
	}
}

// "#" stands for every topic that does not begin with `$` [MQTT-4.7.2-1]; a
// message that matches several filters comes once.
func readFilters(c *check) {
	from := c.head()
	names := []string{"a", "a/b", "a/b/c", "/a", "a/", "$SYS", "$SYS/a", "$x/b", "ab", "a b", "A", "ü/b", "+", "b"}
	var all []*schema.Message
	for _, n := range names {
		if schema.ValidTopic(n) == nil {
			all = append(all, c.message("p", n))
		}
	}
	c.stored(publisher("p"), all...)
	upTo := c.head()
	events := c.events(from, upTo)
	filters := []string{"a", "a/b", "a/#", "+", "+/+", "/+", "#", "a/+", "+/b", "$SYS/#", "$SYS/+", "$x/+", "+/#", "+/b/#", "A", "a/+/c", "$SYS", "ab", "ü/#", "b", "a b"}
	for i, f := range filters {
		c.wantRead(events, from, upTo, []string{f}, c.read(from, upTo, f))
		two := []string{f, filters[(i*5+1)%len(filters)]}
		c.wantRead(events, from, upTo, two, c.read(from, upTo, two...))
	}
	c.wantRead(events, from, upTo, filters, c.read(from, upTo, filters...))
	many := make([]string, 0, 300)
	for i := range 150 {
		many = append(many, "a/"+string(rune('b'+i%3)), "none/"+string(rune('a'+i%26))+"/+")
	}
	c.wantRead(events, from, upTo, many, c.read(from, upTo, many...))
}

func readReopen(c *check) {
	l, from := newLoad(), c.head()
	c.publish(l, clients(3), 20, nil)
	upTo := c.head()
	events := c.events(from, upTo)
	c.reopen()
	c.readSome(events, from, 40)
	c.wantRead(events, from, upTo, []string{"#"}, c.read(from, upTo, "#"))
}

// Lookup answers in the order of refs, with nil for what is not there.
func lookup(c *check) {
	msgs := make([]*schema.Message, 30)
	refs := make([]store.Ref, 0, 31)
	for i := range msgs {
		msgs[i] = c.message("p", topics[i%len(topics)])
	}
	marks := c.stored(publisher("p"), msgs...)
	for i, m := range marks {
		refs = append(refs, store.Ref{ID: msgs[i].ID, Mark: m})
	}
	c.rng.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
	refs = append(refs, refs[3]) // twice in one call
	last := marks[len(marks)-1]
	refs = slices.Insert(refs, 5, store.Ref{ID: c.newID(), Mark: schema.Mark{Lane: last.Lane, N: last.N + 1000}})
	for i, m := range c.lookup(refs...) {
		switch {
		case i == 5 && m != nil:
			c.Errorf("Lookup of what is not there: %v", m.ID)
		case i != 5 && m == nil:
			c.Errorf("Lookup of %v at %v: nothing", refs[i].ID, refs[i].Mark)
		case i != 5 && (m.ID != refs[i].ID || m.Mark != refs[i].Mark):
			c.Errorf("Lookup of %v: %v at %v", refs[i].ID, m.ID, m.Mark)
		}
	}
	if got := c.lookup(); len(got) != 0 {
		c.Errorf("Lookup of nothing: %d", len(got))
	}
}

// What retention removed is counted, and nothing else is missing.
func trimmed(c *check) {
	from := c.head()
	p := publisher("p")
	var marks []schema.Mark
	var refs []store.Ref
	var middle schema.Cursor
	for i := range 60 {
		m := c.message("p", "t/1")
		marks = append(marks, c.stored(p, m)...)
		refs = append(refs, store.Ref{ID: m.ID, Mark: marks[i]})
		if i == 39 {
			middle = c.head()
		}
	}
	upTo := c.head()
	c.h.Trim(middle)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := c.s.Read(ctx, from, upTo, []string{"t/1"})
	c.must(err, "Read")
	got, gone := c.pull(r, whole), int(r.Trimmed())
	if len(got)+gone != len(marks) || gone > 40 {
		c.Fatalf("%d read and %d trimmed of %d, of which 40 may go", len(got), gone, len(marks))
	}
	for i, m := range got {
		if m.Mark != marks[gone+i] {
			c.Fatalf("message %d is %v, want %v", i, m.Mark, marks[gone+i])
		}
	}
	for i, m := range c.lookup(refs...) {
		if (m == nil) != (i < gone) {
			c.Errorf("Lookup of message %d with %d trimmed: found %v", i, gone, m != nil)
		}
	}
	if n := c.open(from, upTo, "no/such"); n.Trimmed() != uint64(gone) {
		c.Errorf("Trimmed is %d for a filter that matches nothing, want %d", n.Trimmed(), gone)
	}
	if n := c.open(middle, upTo, "t/1"); n.Trimmed() != 0 {
		c.Errorf("Trimmed is %d behind what was removed", n.Trimmed())
	}
}
