package mongo

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// ledger is what publishers were told, and what a tail yielded. It is checked at
// the end: nothing lost, doubled, overtaken or invented.
type ledger struct {
	t  *testing.T
	mu sync.Mutex
	by map[string][]*entry
}

type entry struct {
	msg *schema.Message
	got store.Appended
	ok  bool // answered
}

func newLedger(t *testing.T) *ledger { return &ledger{t: t, by: map[string][]*entry{}} }

// publish appends n messages of one publisher to s, at most window unanswered, and
// returns when all are answered or ctx ends. A publisher that failed goes on under
// a new claim's, as after a reconnect, without sending again.
func (l *ledger) publish(ctx context.Context, s *Store, name string, n, window int) {
	room := make(chan struct{}, window)
	pub := &store.Publisher{Owner: schema.Owner{ClientID: name}}
	for i := 0; i < n; i++ {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if pub.Failed() {
			for range window - 1 { // what is behind the failure is answered
				room <- struct{}{}
			}
			for range window - 1 {
				<-room
			}
			pub = &store.Publisher{Owner: schema.Owner{ClientID: name}}
		}
		l.mu.Lock()
		e := &entry{msg: &schema.Message{
			ID: s.ids.Next(time.Now()), Topic: "t/" + name, Payload: fmt.Appendf(nil, "%s %d", name, len(l.by[name])), ClientID: name, QoS: 1,
			Created: time.Now().Truncate(time.Millisecond),
		}}
		l.by[name] = append(l.by[name], e)
		l.mu.Unlock()
		s.Append(context.Background(), pub, []*schema.Message{e.msg}, func(a []store.Appended) {
			l.mu.Lock()
			e.got, e.ok = a[0], true
			l.mu.Unlock()
			<-room
		})
	}
	for range window {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// counts tells how many were answered each way.
func (l *ledger) counts() (stored, refused, doubt, open int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, list := range l.by {
		for _, e := range list {
			switch {
			case !e.ok:
				open++
			case e.got.Outcome == store.Stored:
				stored++
			case e.got.Outcome == store.Refused:
				refused++
			default:
				doubt++
			}
		}
	}
	return
}

// follow collects what a tail yields from a cursor until it has passed upTo.
func follow(ctx context.Context, t *testing.T, s *Store, after, upTo schema.Cursor) []store.Event {
	t.Helper()
	tl, err := s.Tail(ctx, after)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	var out []store.Event
	for h := after; !h.Covers(upTo); {
		got, err := tl.Next(ctx)
		if err != nil {
			t.Fatalf("tail at %v on its way to %v: %v", h, upTo, err)
		}
		out = append(out, got...)
		h = got[len(got)-1].H
	}
	return out
}

// check holds events of a tail against the ledger.
func (l *ledger) check(what string, events []store.Event) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	place := map[schema.ID]int{}
	owner := map[schema.ID]string{}
	for name, list := range l.by {
		for i, e := range list {
			place[e.msg.ID], owner[e.msg.ID] = i, name
		}
	}
	seen := map[schema.ID]schema.Mark{}
	last := map[string]int{}
	n := map[schema.Lane]uint64{}
	for _, e := range events {
		m := e.Message
		if m == nil {
			continue
		}
		if at, twice := seen[m.ID]; twice {
			l.t.Errorf("%s: %s at %v, and before at %v", what, m.Payload, m.Mark, at)
		}
		seen[m.ID] = m.Mark
		if m.Mark.N <= n[m.Mark.Lane] {
			l.t.Errorf("%s: %v behind n %d of its lane", what, m.Mark, n[m.Mark.Lane])
		}
		n[m.Mark.Lane] = m.Mark.N
		name, ok := owner[m.ID]
		if !ok {
			l.t.Errorf("%s: %v (%s) was never appended", what, m.ID, m.Payload)
			continue
		}
		if p, ok := last[name]; ok && place[m.ID] < p {
			l.t.Errorf("%s: %s behind %s %d", what, m.Payload, name, p)
		}
		last[name] = place[m.ID]
	}
	for name, list := range l.by {
		for i, e := range list {
			at, there := seen[e.msg.ID]
			switch {
			case !e.ok:
			case e.got.Outcome == store.Stored && !there:
				l.t.Errorf("%s: %s %d, stored at %v, is lost", what, name, i, e.got.Mark)
			case e.got.Outcome == store.Stored && at != e.got.Mark:
				l.t.Errorf("%s: %s %d, stored at %v, stands at %v", what, name, i, e.got.Mark, at)
			case e.got.Outcome == store.Refused && there:
				l.t.Errorf("%s: %s %d was refused (%v) and stands at %v", what, name, i, e.got.Err, at)
			}
		}
	}
}
