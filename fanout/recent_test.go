package fanout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"rewindmq/schema"
	"rewindmq/store"
)

// behind is the store behind a Source: what a test expects of it.
type behind struct {
	store.Reader
	after   []schema.Cursor
	trimmed uint64
	fail    error
}

func (b *behind) Read(_ context.Context, after, upTo schema.Cursor, _ []string) (store.Messages, error) {
	b.after = append(b.after, after.Clone())
	from, _ := after.N(1)
	end, _ := upTo.N(1)
	return &behindRead{b: b, n: from, end: end}, b.fail
}

type behindRead struct {
	b      *behind
	n, end uint64
}

func (r *behindRead) Next(context.Context) (*schema.Message, error) {
	if r.n == r.end {
		return nil, io.EOF
	}
	r.n++
	return event(int(r.n), "t").Message, nil
}
func (r *behindRead) Trimmed() uint64 { return r.b.trimmed }
func (r *behindRead) Close() error    { return nil }

// flow lets the hub process events from to to, all of topic "t", each fourth "x".
func flow(h *Hub, from, to int) {
	for n := from; n <= to; n++ {
		topic := "t"
		if n%4 == 0 {
			topic = "x"
		}
		h.step([]store.Event{event(n, topic)})
	}
}

func drain(t *testing.T, r store.Messages) (got []string) {
	t.Helper()
	for {
		m, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			if _, err := r.Next(t.Context()); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Payload))
	}
}

func numbers(from, to int, but int) (out []string) {
	for n := from; n <= to; n++ {
		if but == 0 || n%but != 0 {
			out = append(out, fmt.Sprint(n))
		}
	}
	return out
}

func TestRecentBounds(t *testing.T) {
	t.Parallel()
	size := event(1, "t").Message.Size() + cachedOverhead
	h := stepped(Options{CacheBytes: int64(5*size + size/2)})
	for _, tt := range []struct {
		now, after, upTo int
		ok               bool
	}{
		{0, 0, 0, true},
		{3, 0, 3, true},
		{3, 0, 2, true},
		{3, 2, 3, true},
		{3, 3, 3, true},
		{3, 0, 4, false}, // the hub is not there yet
		{20, 14, 20, false},
		{20, 15, 20, true},
		{20, 16, 18, true},
		{20, 25, 20, true}, // a session that is ahead of the hub
		{20, 0, 3, false},
	} {
		n, _ := h.H().N(1)
		flow(h, int(n)+1, tt.now)
		got, ok := h.Recent(schema.At(1, uint64(tt.after)), schema.At(1, uint64(tt.upTo)))
		if ok != tt.ok {
			t.Errorf("at %d: Recent(%d, %d): ok = %v, want %v", tt.now, tt.after, tt.upTo, ok, tt.ok)
		}
		if ok && len(got) != max(0, tt.upTo-tt.after) {
			t.Errorf("at %d: Recent(%d, %d): %d messages", tt.now, tt.after, tt.upTo, len(got))
		}
	}
	if h.recent.bytes > h.recent.bound {
		t.Errorf("%d bytes held, the bound is %d", h.recent.bytes, h.recent.bound)
	}

	none := stepped(Options{CacheBytes: -1})
	flow(none, 1, 9)
	if _, ok := none.Recent(schema.At(1, 8), schema.At(1, 9)); ok {
		t.Error("a hub without memory has a recent message")
	}
	if _, ok := none.Recent(schema.At(1, 9), schema.At(1, 9)); !ok {
		t.Error("nothing is not in the memory")
	}
}

// TestRecentPageEnds: a page does not look further than upTo.
func TestRecentPageEnds(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	flow(h, 1, 100)
	after, upTo := schema.At(1, 10), schema.At(1, 14)
	k, ok := h.recent.find(after, upTo)
	if !ok || k != 10 {
		t.Fatalf("find = %d, %v, want 10", k, ok)
	}
	msgs, next, end, ok := h.recent.page(k, after, upTo, 3, nil)
	if len(msgs) != 3 || next != 13 || end || !ok {
		t.Errorf("page = %d messages, %d, %v, %v", len(msgs), next, end, ok)
	}
	msgs, next, end, ok = h.recent.page(next, after, upTo, 50, msgs[:0])
	if len(msgs) != 1 || next != 14 || !end || !ok {
		t.Errorf("second page = %d messages, %d, %v, %v", len(msgs), next, end, ok)
	}
}

func TestSourceReadsMemory(t *testing.T) {
	t.Parallel()
	h := stepped(Options{})
	flow(h, 1, 1000)
	many := []string{"t"}
	for i := range linearMax {
		many = append(many, fmt.Sprint("other/", i))
	}
	for name, filters := range map[string][]string{"few": {"other", "t"}, "many": many} {
		b := &behind{}
		after := schema.At(1, 7)
		r, err := h.Source(b).Read(t.Context(), after, schema.At(1, 901), filters)
		if err != nil {
			t.Fatal(err)
		}
		want(t, drain(t, r), numbers(8, 901, 4)...)
		if len(b.after) != 0 || r.Trimmed() != 0 || r.Close() != nil {
			t.Errorf("%s: the store was read after %v", name, b.after)
		}
		if !after.Equal(schema.At(1, 7)) {
			t.Errorf("%s: the caller's cursor was moved to %v", name, after)
		}
	}
	r, err := h.Source(&behind{}).Read(t.Context(), schema.At(1, 7), schema.At(1, 901), nil)
	if err != nil {
		t.Fatal(err)
	}
	want(t, drain(t, r))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err = h.Source(&behind{}).Read(ctx, schema.At(1, 7), schema.At(1, 901), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next without a context: %v", err)
	}
}

// TestSourceFallsBehind: the memory lets go of what an open read has not seen: it
// goes on in the store, from its own place.
func TestSourceFallsBehind(t *testing.T) {
	t.Parallel()
	size := event(100, "t").Message.Size() + cachedOverhead
	h := stepped(Options{CacheBytes: int64(600 * size)})
	flow(h, 1, 500)
	b := &behind{trimmed: 3}
	r, err := h.Source(b).Read(t.Context(), schema.At(1, 0), schema.At(1, 500), []string{"t"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 100 {
		m, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.Payload))
	}
	flow(h, 501, 1200)
	got = append(got, drain(t, r)...)
	// The first page of the memory had been copied; the store has "t" only.
	want(t, got, append(numbers(1, sourcePage, 4), numbers(sourcePage+1, 500, 0)...)...)
	if len(b.after) != 1 || !b.after[0].Equal(schema.At(1, sourcePage)) || r.Trimmed() != 3 || r.Close() != nil {
		t.Errorf("the store was read after %v, trimmed %d", b.after, r.Trimmed())
	}

	broken := &behind{fail: errBroken}
	if _, err := h.Source(broken).Read(t.Context(), schema.At(1, 0), schema.At(1, 500), []string{"t"}); !errors.Is(err, errBroken) {
		t.Errorf("Read of a broken store: %v", err)
	}
}
