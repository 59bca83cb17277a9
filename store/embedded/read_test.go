package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
)

// levels make topics and filters that meet each other often.
var levels = []string{"a", "b", "c", "", "$s"}

func drawTopic(t *rapid.T) string {
	parts := rapid.SliceOfN(rapid.SampledFrom(levels), 1, 4).Draw(t, "topic")
	name := strings.Join(parts, "/")
	if name == "" {
		return "a"
	}
	return name
}

func drawFilter(t *rapid.T) string {
	parts := rapid.SliceOfN(rapid.SampledFrom(append(slices.Clone(levels), "+", "+")), 1, 4).Draw(t, "filter")
	if rapid.Bool().Draw(t, "hash") {
		parts[len(parts)-1] = "#"
	}
	if f := strings.Join(parts, "/"); f != "" {
		return f
	}
	return "+"
}

// Promise 4 against a linear matcher: by topic index and by scan, over epochs,
// with a catalog that holds all topics or few of them.
func TestReadAgainstLinearMatch(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1_000_000, 3} {
		rapid.Check(t, func(rt *rapid.T) {
			clock := newTestClock()
			r := start(t, Options{Now: clock.Now, topicLimit: limit})
			defer r.stop()
			var want []*schema.Message
			p := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
			for range rapid.IntRange(1, 12).Draw(rt, "appends") {
				topic := drawTopic(rt)
				var msgs []*schema.Message
				for range rapid.IntRange(1, 40).Draw(rt, "messages") {
					msgs = append(msgs, r.message(topic, fmt.Sprint(len(want)+len(msgs)), 1))
				}
				for _, a := range r.append(p, msgs...) {
					if a.Outcome != store.Stored {
						rt.Fatal(a.Err)
					}
				}
				want = append(want, msgs...)
				if rapid.Bool().Draw(rt, "next day") {
					clock.add(day)
				}
			}
			if rapid.Bool().Draw(rt, "start again") {
				r = r.again()
				defer r.stop()
			}
			for range 5 {
				filters := rapid.SliceOfN(rapid.Custom(drawFilter), 0, 4).Draw(rt, "filters")
				after := rapid.Uint64Range(0, uint64(len(want))).Draw(rt, "after")
				upTo := rapid.Uint64Range(0, uint64(len(want))+2).Draw(rt, "upTo")
				var expect []string
				for i, m := range want {
					if n := uint64(i + 1); n > after && n <= upTo && slices.ContainsFunc(filters, func(f string) bool { return schema.Match(f, m.Topic) }) {
						expect = append(expect, string(m.Payload))
					}
				}
				got, trimmed := r.read(after, upTo, filters...)
				if !slices.Equal(got, expect) || trimmed != 0 {
					rt.Fatalf("read(%d, %d, %q) gave %q, trimmed %d; want %q", after, upTo, filters, got, trimmed, expect)
				}
			}
		})
	}
}

// Many topics, one filter that matches few of them: by index; hundreds of
// filters; large messages in chunks; a cut in the middle.
func TestReadStrategies(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	for i := range 30 {
		var msgs []*schema.Message
		for k := range 100 {
			msgs = append(msgs, r.message(fmt.Sprintf("dev/%d/temp", k), fmt.Sprint(i*100+k), 1))
		}
		r.append(&store.Publisher{Owner: schema.Owner{SID: 1}}, msgs...)
	}
	ctx := context.Background()
	open := func(filters ...string) *reader {
		m, err := r.Read(ctx, schema.Cursor{}, schema.At(1, 3000), filters)
		if err != nil {
			t.Fatal(err)
		}
		return m.(*reader)
	}
	if rd := open("dev/7/temp"); rd.merge == nil {
		t.Error("one topic of a hundred is read by scan")
	}
	var many []string
	for k := range 300 {
		many = append(many, fmt.Sprintf("dev/%d/temp", k))
	}
	if got, _ := r.read(0, 3000, many...); len(got) != 3000 {
		t.Errorf("300 filters: %d messages", len(got))
	}
	if rd, _ := r.Read(ctx, schema.At(1, 2990), schema.At(1, 3000), many); rd.(*reader).merge != nil {
		t.Error("a hundred topics over ten messages are read by index")
	}
	if got, _ := r.read(2990, 3000, many...); len(got) != 10 {
		t.Errorf("ten messages: %q", got)
	}
	whole, _ := r.read(0, 3000, "dev/7/temp", "dev/8/+")
	first, _ := r.read(0, 1400, "dev/7/temp", "dev/8/+")
	rest, _ := r.read(1400, 3000, "dev/7/temp", "dev/8/+")
	if !slices.Equal(whole, append(first, rest...)) || len(whole) != 60 {
		t.Errorf("cut in the middle: %d and %d of %d", len(first), len(rest), len(whole))
	}
	big := strings.Repeat("x", 300<<10)
	for range 12 {
		r.put("big", big)
	}
	for _, filter := range []string{"big", "+"} {
		if got, _ := r.read(0, 4000, filter); len(got) != 12 || got[11] != big {
			t.Errorf("%s: %d of 12 large messages", filter, len(got))
		}
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	a, b := r.message("t", "a", 1), r.message("u", "b", 1)
	r.append(&store.Publisher{}, a, b)
	got, err := r.Lookup(context.Background(), []store.Ref{
		{ID: b.ID, Mark: b.Mark},
		{ID: a.ID, Mark: b.Mark}, // not there
		{ID: a.ID, Mark: schema.Mark{Lane: 2, N: 1}},
		{ID: a.ID, Mark: schema.Mark{Lane: 1, N: 77}},
		{ID: a.ID},
		{ID: a.ID, Mark: a.Mark},
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		if m == nil {
			names = append(names, "-")
		} else {
			names = append(names, m.Topic+string(m.Payload))
		}
	}
	if want := "ub - - - - ta"; strings.Join(names, " ") != want {
		t.Errorf("got %q, want %q", names, want)
	}
}

// A tail that is behind the ring reads the engine, then joins the ring.
func TestTailBehindTheRing(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	const n = 3 * ringMessages
	r.fill("t", n, 5)
	tail, err := r.Tail(context.Background(), schema.At(1, 5))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var cursors []schema.Cursor
	want := uint64(6)
	for want <= n+1 {
		events, err := tail.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) > tailEvents {
			t.Fatalf("%d events at once", len(events))
		}
		for _, e := range events {
			if e.Message.Mark.N != want || !e.H.Equal(schema.At(1, want)) {
				t.Fatalf("got %v at %v, want %d", e.Message.Mark, e.H, want)
			}
			cursors = append(cursors, e.H)
			want++
		}
		if want == n+1 {
			r.put("t", "live")
		}
	}
	for i, c := range cursors { // they stay valid
		if !c.Equal(schema.At(1, uint64(i+6))) {
			t.Fatalf("cursor %d has become %v", i, c)
		}
	}
	if err := tail.Close(); err != nil {
		t.Error(err)
	}
	if n := len(r.ring.tails); n != 0 {
		t.Errorf("%d tails held", n)
	}
}

// The ring is bounded in bytes too.
func TestRingIsBounded(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	for range 80 {
		r.put("t", strings.Repeat("x", 1<<20))
	}
	r.ring.mu.Lock()
	held, bytes := r.headN()+1-r.ring.first, r.ring.bytes
	r.ring.mu.Unlock()
	if bytes > ringBytes || held < 20 || held > 32 {
		t.Errorf("%d messages, %d bytes", held, bytes)
	}
	tail, err := r.Tail(context.Background(), schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for n := 0; n < 80; {
		events, err := tail.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		n += len(events)
	}
}

// A hole in the log is corruption, whoever meets it.
func TestHoleIsCorrupt(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	r.fill("t/1", 50, 5)
	r.put("t/2", "x")
	r.inside(func(c *committer) error {
		id := c.l.topics.named("t/1").id
		c.delete(messageKey(nil, 20, id))
		return nil
	})
	for _, filter := range []string{"t/1", "#"} {
		if _, _, err := r.tryRead(0, 99, filter); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: %v", filter, err)
		}
	}
	r.stop()
	if _, err := Open(r.o); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Open: %v", err)
	}
}

// Closing a read at any point is allowed, and so is what comes behind it.
func TestReadClosedEarly(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	r.fill("t", 1000, 5)
	ctx, cancel := context.WithCancel(context.Background())
	m, err := r.Read(ctx, schema.Cursor{}, schema.At(1, 1000), []string{"t"})
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if _, err := m.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for range 1000 {
		if _, err = m.Next(ctx); err != nil {
			break
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Next(context.Background()); !errors.Is(err, io.EOF) {
		t.Errorf("after Close: %v", err)
	}
}

// T8: a read of many topics is merged before it is delivered: n ascends over all of
// them. So a reader that is cut anywhere goes on from its vector, and no older message
// of another topic is left behind.
func TestT8_ManyTopicsAreMerged(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	const topics, total = 300, 1500
	filters := make([]string, topics)
	for i := range filters {
		filters[i] = fmt.Sprintf("t8/%03d", i)
	}
	for i := range total {
		r.put(filters[(i*7)%topics], fmt.Sprint(i))
	}
	ctx := context.Background()
	at, upTo, seen := schema.Cursor{}, schema.At(1, total), 0
	for cut := 1; seen < total; cut = cut*2 + 1 {
		m, err := r.Read(ctx, at, upTo, filters)
		if err != nil {
			t.Fatal(err)
		}
		for range cut {
			msg, err := m.Next(ctx)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if seen++; msg.Mark.N != uint64(seen) || string(msg.Payload) != fmt.Sprint(seen-1) {
				t.Fatalf("message %d is %v %q", seen, msg.Mark, msg.Payload)
			}
			at.Advance(msg.Mark)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
