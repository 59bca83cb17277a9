package schema

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func drawMessage(t *rapid.T, label string) *Message {
	small := rapid.IntRange(0, 2)
	return &Message{
		ID: ID{11: byte(small.Draw(t, label+" id"))}, TS: uint64(small.Draw(t, label+" ts")),
		Mark: Mark{Lane(small.Draw(t, label+" lane")), uint64(small.Draw(t, label+" n"))},
	}
}

// R4: of two retained messages of a topic one wins, in whatever order they are
// met: Supersedes is a strict total order.
func TestR4_SupersedesIsStrictTotalOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawMessage(t, "a"), drawMessage(t, "b"), drawMessage(t, "c")
		if a.Supersedes(a) {
			t.Fatal("not irreflexive")
		}
		same := a.ID == b.ID && a.TS == b.TS && a.Mark == b.Mark
		if wins, loses := a.Supersedes(b), b.Supersedes(a); wins && loses || !same && !wins && !loses || same && wins {
			t.Fatalf("%+v and %+v: %v, %v", a, b, wins, loses)
		}
		if a.Supersedes(b) && b.Supersedes(c) && !a.Supersedes(c) {
			t.Fatal("not transitive")
		}
		if !a.Supersedes(nil) {
			t.Fatal("nothing wins over a message")
		}
	})
	older := &Message{ID: id(9), TS: 1, Mark: Mark{9, 9}}
	for name, newer := range map[string]*Message{
		"ts":   {ID: id(1), TS: 2, Mark: Mark{1, 1}},
		"lane": {ID: id(1), TS: 1, Mark: Mark{10, 1}},
		"n":    {ID: id(1), TS: 1, Mark: Mark{9, 10}},
		"id":   {ID: id(10), TS: 1, Mark: Mark{9, 9}},
	} {
		if !newer.Supersedes(older) || older.Supersedes(newer) {
			t.Errorf("the larger %s does not win", name)
		}
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	m := &Message{}
	if m.Expired(at) {
		t.Error("a message without expiry has expired")
	}
	m.Expiry = at
	if m.Expired(at.Add(-1)) || !m.Expired(at) || !m.Expired(at.Add(time.Hour)) {
		t.Error("expiry at 1000 s is not judged at 1000 s")
	}
}

// R6: QoS 1, replaced by 0, replaced by 1 while the backlog waits: it is judged by
// the highest so far, what lies behind the replacement by the new one.
func TestR6_EffectiveBeforeReplacement(t *testing.T) {
	t.Parallel()
	s := Subscription{QoS: 0, Since: At(1, 10), Before: &Before{QoS: 1, UpTo: At(1, 20)}}
	for _, tt := range []struct {
		sub, before uint8
		n           uint64
		qos, want   uint8
		ok          bool
	}{
		{0, 1, 10, 1, 0, false}, // not after since
		{0, 1, 11, 1, 1, true},
		{0, 1, 20, 2, 1, true},
		{0, 1, 20, 0, 0, true},
		{0, 1, 21, 1, 0, true},
		{2, 1, 15, 2, 2, true}, // the new one is higher: it holds at once
		{2, 1, 21, 2, 2, true},
		{1, 2, 15, 2, 2, true},
		{1, 2, 15, 1, 1, true},
		{1, 2, 21, 2, 1, true},
	} {
		s.QoS, s.Before.QoS = tt.sub, tt.before
		got, ok := s.Effective(&Message{QoS: tt.qos, Mark: Mark{1, tt.n}})
		if got != tt.want || ok != tt.ok {
			t.Errorf("QoS %d (before %d), message %d at QoS %d: %d, %v; want %d, %v", tt.sub, tt.before, tt.n, tt.qos, got, ok, tt.want, tt.ok)
		}
	}
	s.Before = nil
	s.QoS = 1
	if q, ok := s.Effective(&Message{QoS: 2, Mark: Mark{2, 1}}); q != 1 || !ok {
		t.Errorf("a lane newer than since: %d, %v", q, ok)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 5)
	a, b := NewIDSource(), NewIDSource()
	var mu sync.Mutex
	seen := map[ID]bool{}
	var wg sync.WaitGroup
	for _, s := range []*IDSource{a, a, b, b} {
		wg.Go(func() {
			for range 500 {
				id := s.Next(at)
				mu.Lock()
				if seen[id] || id.IsZero() || id.Seconds() != at.Unix() {
					t.Errorf("id %v: seen %v", id, seen[id])
				}
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	id := a.Next(at)
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("ParseID(%v) = %v, %v", id, got, err)
	}
	for _, s := range []string{"", "00", id.String() + "0", id.String()[:23] + "g"} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) took it", s)
		}
	}
}
