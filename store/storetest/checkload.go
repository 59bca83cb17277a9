package storetest

import (
	"context"
	"sync"
	"sync/atomic"

	"rewindmq/schema"
	"rewindmq/store"
)

// sent is one message of a load, with what was answered.
type sent struct {
	msg     *schema.Message
	mark    schema.Mark
	outcome store.Outcome
	before  int64 // stamps of the load's clock: before Append, and in done
	after   int64
}

// load is what publishers appended, in their order.
type load struct {
	mu    sync.Mutex
	by    map[string][]*sent
	clock atomic.Int64
}

func (l *load) all() []*sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*sent
	for _, list := range l.by {
		out = append(out, list...)
	}
	return out
}

func clients(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = string(rune('a' + i))
	}
	return out
}

// topics of the load. Some begin with `$`, some are a prefix of another.
var topics = [...]string{"t/1", "t/2", "t", "u/x/y", "u/x/z", "u", "$SYS/a", "t/1/x"}

// publish lets each client publish `each` messages, several at once under way,
// and returns when all are answered, or when quit is closed.
func (c *check) publish(l *load, names []string, each int, quit <-chan struct{}) {
	var wg sync.WaitGroup
	for k, name := range names {
		msgs := make([]*schema.Message, each)
		for i := range msgs {
			msgs[i] = c.message(name, topics[(i*7+k)%len(topics)])
		}
		wg.Go(func() { c.publishOne(l, name, msgs, quit) })
	}
	wg.Wait()
}

func (c *check) publishOne(l *load, name string, msgs []*schema.Message, quit <-chan struct{}) {
	p, room := publisher(name), make(chan struct{}, 8) // at most 8 Appends are open
	ctx, cancel := c.wait()
	defer cancel()
	enter := func() bool {
		select {
		case room <- struct{}{}:
			return true
		case <-quit: // killed: what is open is not answered any more
		case <-ctx.Done():
			c.Errorf("appends of %s were not answered within %v", name, c.h.Patience)
		}
		return false
	}
	for i := 0; i < len(msgs) && enter(); {
		n := min(1+i%3, len(msgs)-i)
		part := make([]*sent, n)
		l.mu.Lock()
		for j := range part {
			part[j] = &sent{msg: msgs[i+j], before: l.clock.Add(1)}
		}
		l.by[name] = append(l.by[name], part...)
		l.mu.Unlock()
		c.s.Append(context.Background(), p, msgs[i:i+n:i+n], func(got []store.Appended) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for j, a := range got {
				part[j].outcome, part[j].mark, part[j].after = a.Outcome, a.Mark, l.clock.Add(1)
			}
			select {
			case <-room:
			default: // a second answer blocks nobody
			}
		})
		if c.h.Disturb != nil && i%20 == 0 {
			c.h.Disturb()
		}
		i += n
	}
	for range cap(room) { // all are answered
		if !enter() {
			return
		}
	}
}

func newLoad() *load { return &load{by: map[string][]*sent{}} }

// wantLog holds the events of a tail from `from` against what was appended: each
// message once, n ascending in each lane, each publisher's in its order, each
// event's H exact, and every stored message there.
func (c *check) wantLog(l *load, from schema.Cursor, events []store.Event) {
	c.Helper()
	seen := map[schema.ID]*schema.Message{}
	last := map[schema.Lane]uint64{}
	h := from
	for i, e := range events {
		if !e.H.Covers(h) {
			c.Fatalf("event %d moves H from %v to %v", i, h, e.H)
		}
		if m := e.Message; m != nil {
			if seen[m.ID] != nil {
				c.Fatalf("event %d: %v (%s) at %v came before, at %v", i, m.ID, m.Payload, m.Mark, seen[m.ID].Mark)
			}
			if m.Mark.N <= last[m.Mark.Lane] {
				c.Fatalf("event %d: %v behind n %d of its lane", i, m.Mark, last[m.Mark.Lane])
			}
			if !h.After(m.Mark) || e.H.After(m.Mark) {
				c.Fatalf("event %d: %v is not between H %v and %v", i, m.Mark, h, e.H)
			}
			seen[m.ID], last[m.Mark.Lane] = m, m.Mark.N
		}
		h = e.H
	}
	for name, list := range l.by {
		c.wantPublisher(name, list, messages(events), seen)
	}
	c.wantExactH(events)
}

func (c *check) wantPublisher(name string, list []*sent, got []*schema.Message, seen map[schema.ID]*schema.Message) {
	c.Helper()
	place := map[schema.ID]int{}
	for i, s := range list {
		place[s.msg.ID] = i
		m := seen[s.msg.ID]
		switch {
		case s.outcome == store.Stored && m == nil:
			c.Fatalf("%s: message %d (%s), stored at %v, is not in the log", name, i, s.msg.Payload, s.mark)
		case s.outcome == store.Refused && m != nil:
			c.Fatalf("%s: message %d was refused and is in the log at %v", name, i, m.Mark)
		case s.outcome == store.Stored && m.Mark != s.mark:
			c.Fatalf("%s: message %d, stored at %v, stands at %v", name, i, s.mark, m.Mark)
		}
	}
	at := -1
	for _, m := range got {
		if m.ClientID != name {
			continue
		}
		i, ok := place[m.ID]
		if !ok {
			c.Fatalf("%s never appended %v (%s)", name, m.ID, m.Payload)
		}
		if i < at {
			c.Fatalf("%s: message %d came behind message %d (at %v)", name, i, at, m.Mark)
		}
		at = i
	}
}

// wantExactH wants that all that is not after an event's H has been yielded up to
// it, for some of the events.
func (c *check) wantExactH(events []store.Event) {
	c.Helper()
	step := max(len(events)/40, 1)
	for i := 0; i < len(events); i += step {
		for j := i + 1; j < len(events); j++ {
			if m := events[j].Message; m != nil && !events[i].H.After(m.Mark) {
				c.Fatalf("H %v of event %d has passed %v, which is yielded as event %d", events[i].H, i, m.Mark, j)
			}
		}
	}
}
