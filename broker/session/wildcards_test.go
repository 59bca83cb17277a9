package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
)

// newIdle makes a clean session with subscriptions; each has its number as identifier.
func newIdle(t interface{ Fatal(...any) }) *Session {
	s, err := New(Options{
		Owner: schema.Owner{ClientID: "c", SID: 1, Epoch: 1}, Clean: true, Window: 1, Quota: 1, ReceiveMaximum: 1,
		Now: func() time.Time { return time.Unix(1, 0) }, H: func() schema.Cursor { return schema.At(1, 0) },
	}, &store.Claimed{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What a session matches is what schema.Match says of each of its filters, however many
// there are, and whatever came and went before.
func TestWildcardsMatchAsSchema(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, names := newIdle(t), []string{"a", "b", "", "$s"}
		draw := func(label string, from ...string) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom(from), 1, 4).Draw(t, label), "/")
		}
		var filters []string
		for n := range uint32(rapid.IntRange(0, 60).Draw(t, "changes")) {
			if len(filters) > 0 && rapid.IntRange(0, 2).Draw(t, "out") == 0 {
				i := rapid.IntRange(0, len(filters)-1).Draw(t, "which")
				if !s.deleteSubscription(filters[i]) {
					t.Fatalf("%q was not there", filters[i])
				}
				filters = slices.Delete(filters, i, i+1)
				continue
			}
			f := draw("filter", append(names, "+", "+")...)
			if rapid.Bool().Draw(t, "all below") {
				f += "/#"
			}
			if schema.ValidFilter(f) != nil {
				continue
			}
			s.setSubscription(&subscription{Subscription: schema.Subscription{Filter: f, Identifier: n + 1}})
			if !slices.Contains(filters, f) {
				filters = append(filters, f)
			}
		}
		for range 10 {
			m := &schema.Message{Topic: draw("topic", names...), Mark: schema.Mark{Lane: 1, N: 1}}
			var want []uint32
			for _, f := range filters {
				if schema.Match(f, m.Topic) {
					want = append(want, s.subs[f].Identifier)
				}
			}
			got := s.match(m)
			slices.Sort(want)
			slices.Sort(got.ids)
			if !slices.Equal(got.ids, want) || got.ok != (len(want) > 0) {
				t.Fatalf("%q matches %v, want %v of %q", m.Topic, got.ids, want, filters)
			}
		}
		wild := slices.DeleteFunc(slices.Clone(filters), func(f string) bool { return schema.Wildcard(f) == "" })
		switch w := &s.wild; {
		case len(w.few) > fewWildcards, len(w.few) > 0 && w.many != nil:
			t.Fatalf("%d few, many %v", len(w.few), w.many != nil)
		case w.many == nil && len(w.few) != len(wild), w.many != nil && w.many.n != len(wild):
			t.Fatalf("%d are held, want %d", len(w.few), len(wild))
		}
		for _, f := range filters {
			s.deleteSubscription(f)
		}
		if s.wild.many != nil || len(s.wild.few) > 0 {
			t.Fatal("something is left of what was taken out")
		}
	})
}

// What is cut off of the levels leaves nothing behind.
func TestLevelsAreCutOff(t *testing.T) {
	t.Parallel()
	l := levels{below: make(map[edge]*level)}
	var subs []*subscription
	for i := range 100 {
		for _, f := range []string{"a/+/%d/#", "a/+/%d", "+/x%d/b/+/c", "%d/#"} {
			sub := &subscription{Subscription: schema.Subscription{Filter: fmt.Sprintf(f, i)}}
			l.add(sub)
			subs = append(subs, sub)
		}
	}
	if got := l.all(); len(got) != len(subs) || l.n != len(subs) {
		t.Errorf("%d of %d", len(got), len(subs))
	}
	for _, sub := range subs {
		l.remove(sub)
		l.remove(sub) // once more changes nothing
	}
	if l.n != 0 || len(l.below) != 0 || l.root.kids != 0 {
		t.Errorf("left: %d subscriptions, %d levels, %d below the root", l.n, len(l.below), l.root.kids)
	}
}

// Few wildcards, or many that do not match: no allocation. One identifier that many
// filters have comes once. Not parallel: it counts allocations.
func TestWildcardsCost(t *testing.T) {
	for _, n := range []int{1, fewWildcards, 10_000} {
		s := newIdle(t)
		for i := range n {
			s.setSubscription(&subscription{Subscription: schema.Subscription{Filter: fmt.Sprintf("live/+/%d/#", i)}})
		}
		if got := len(s.wild.few); got > 64 {
			t.Errorf("%d filters: a message is compared with %d", n, got)
		}
		m := &schema.Message{Topic: "live/a/b/c", Mark: schema.Mark{Lane: 1, N: 1}}
		if got := testing.AllocsPerRun(10, func() { s.match(m) }); got > 0 && !raceEnabled {
			t.Errorf("%d filters: %v allocations", n, got)
		}
	}
	s := newIdle(t)
	for i := range 1 << 7 { // all that match
		f := make([]string, 7)
		for k := range f {
			f[k] = []string{"a", "+"}[i>>k&1]
		}
		s.setSubscription(&subscription{Subscription: schema.Subscription{Filter: strings.Join(f, "/"), Identifier: uint32(1 + i%50)}})
	}
	r := s.match(&schema.Message{Topic: "a/a/a/a/a/a/a", Mark: schema.Mark{Lane: 1, N: 1}})
	if !r.ok || len(r.ids) != 50 {
		t.Errorf("%d identifiers, want 50", len(r.ids))
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, fewWildcards, fewWildcards + 1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := newIdle(b)
			for i := range n {
				s.setSubscription(&subscription{Subscription: schema.Subscription{Filter: fmt.Sprintf("live/+/+/c/%d/#", i)}})
			}
			m := &schema.Message{Topic: "live/a/b/c", Mark: schema.Mark{Lane: 1, N: 1}}
			b.ReportAllocs()
			for b.Loop() {
				s.match(m)
			}
		})
	}
}
