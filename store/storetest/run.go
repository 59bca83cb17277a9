package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Harness is a store under test.
type Harness struct {
	// Store is running and empty.
	Store store.Store
	// Reopen kills the store as a SIGKILL does, without letting it finish
	// anything, and gives the same store running again; nil: it cannot.
	Reopen func() store.Store
	// Clock moves the store's clock on; nil: it cannot.
	Clock func(d time.Duration)
	// Trim lets retention remove about what is not after upTo; nil: it cannot.
	Trim func(upTo schema.Cursor)
	// Disturb opens, retires or stalls something now and then while load runs;
	// nil: nothing.
	Disturb func()
	// MaxPayload: a message whose payload is longer, in bytes, is refused with
	// store.ErrTooLarge; 0: there is no bound worth a test.
	MaxPayload int
	// Rounds multiplies the sizes of loads; 0: 1.
	Rounds int
	// Patience bounds each wait; 0: 30 s.
	Patience time.Duration
}

// Run holds a store against its contract. open gives a new, empty, running store
// for each test, and stops it by t.Cleanup.
//
//	func TestContract(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) storetest.Harness {
//			s := start(t, vfs.NewMem())
//			return storetest.Harness{Store: s, Reopen: ...}
//		})
//	}
func Run(t *testing.T, open func(t *testing.T) Harness) {
	t.Helper()
	for _, ch := range checks() {
		t.Run(ch.name, func(t *testing.T) {
			t.Parallel()
			h := open(t)
			if missing := ch.needs.of(h); missing != "" {
				t.Skipf("the store has no %s", missing)
			}
			ch.run(newCheck(t, h))
		})
	}
}

// tb is what the suite takes of a *testing.T. The suite's own tests collect
// failures through it.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

type needs uint8

const (
	needsReopen needs = 1 << iota
	needsClock
	needsTrim
	needsMaxPayload
)

// of tells what a harness lacks.
func (n needs) of(h Harness) string {
	switch {
	case n&needsReopen != 0 && h.Reopen == nil:
		return "Reopen"
	case n&needsClock != 0 && h.Clock == nil:
		return "Clock"
	case n&needsTrim != 0 && h.Trim == nil:
		return "Trim"
	case n&needsMaxPayload != 0 && h.MaxPayload == 0:
		return "MaxPayload"
	}
	return ""
}

type item struct {
	name  string
	needs needs
	run   func(*check)
}

func checks() []item {
	var out []item
	for _, part := range [][]item{logChecks(), readChecks(), sessionChecks(), stateChecks(), fenceChecks(), recoverChecks(), groupChecks(), willChecks(), retainedChecks(), directoryChecks(), historyChecks(), messageChecks()} {
		out = append(out, part...)
	}
	return out
}

// check is one test on one store.
type check struct {
	tb
	h   Harness
	s   store.Store
	ids *schema.IDSource
	rng *rand.Rand
	n   atomic.Int64
}

func newCheck(t tb, h Harness) *check {
	h.Rounds = max(h.Rounds, 1)
	if h.Patience == 0 {
		h.Patience = 30 * time.Second
	}
	return &check{tb: t, h: h, s: h.Store, ids: schema.NewIDSource(), rng: rand.New(rand.NewPCG(7, 7))}
}

// wait gives a context for one wait.
func (c *check) wait() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.h.Patience)
}

// must fails the test on an error.
func (c *check) must(err error, format string, args ...any) {
	c.Helper()
	if err != nil {
		c.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

func (c *check) reopen() {
	c.Helper()
	c.s = c.h.Reopen()
	ctx, cancel := c.wait()
	defer cancel()
	_, err := c.s.Head(ctx) // also waits until Run has begun
	c.must(err, "Head after Reopen")
}

func (c *check) newID() schema.ID { return c.ids.Next(created()) }

// created is a time that every store can keep.
func created() time.Time { return time.UnixMilli(1_700_000_000_123).UTC() }

// message makes a message that nobody else makes.
func (c *check) message(client, topic string) *schema.Message {
	n := c.n.Add(1)
	return &schema.Message{
		ID: c.newID(), Topic: topic, Payload: fmt.Appendf(nil, "%s %d", client, n), ClientID: client,
		QoS: uint8(n % 3), Created: created(), Host: "h",
	}
}

// again makes a copy of a message as it was before it was appended.
func again(m *schema.Message) *schema.Message {
	c := *m
	c.Mark, c.TS = schema.Mark{}, 0
	return &c
}

func publisher(client string) *store.Publisher {
	return &store.Publisher{Owner: schema.Owner{ClientID: client}}
}

// append appends and waits for the answers.
func (c *check) append(p *store.Publisher, msgs ...*schema.Message) []store.Appended {
	c.Helper()
	return c.answers(c.submit(context.Background(), p, msgs...))
}

// submit appends; the channel gets the answers.
func (c *check) submit(ctx context.Context, p *store.Publisher, msgs ...*schema.Message) <-chan []store.Appended {
	ch := make(chan []store.Appended, 4) // more answers than one block nobody
	c.s.Append(ctx, p, msgs, func(a []store.Appended) { ch <- append([]store.Appended(nil), a...) })
	return ch
}

func (c *check) answers(ch <-chan []store.Appended) []store.Appended {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	select {
	case a := <-ch:
		return a
	case <-ctx.Done():
		c.Fatalf("an Append was not answered within %v", c.h.Patience)
	}
	return nil
}

// stored appends, and wants all of it stored.
func (c *check) stored(p *store.Publisher, msgs ...*schema.Message) []schema.Mark {
	c.Helper()
	got := c.append(p, msgs...)
	if len(got) != len(msgs) {
		c.Fatalf("%d answers for %d messages", len(got), len(msgs))
	}
	marks := make([]schema.Mark, len(msgs))
	for i, a := range got {
		if a.Outcome != store.Stored || a.Err != nil || a.Mark.Lane == 0 || a.Mark.N == 0 {
			c.Fatalf("answer %d of %d: outcome %d at %v, %v", i, len(got), a.Outcome, a.Mark, a.Err)
		}
		marks[i] = a.Mark
	}
	return marks
}

func (c *check) head() schema.Cursor {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	h, err := c.s.Head(ctx)
	c.must(err, "Head")
	return h
}

// events tails from after until it has passed upTo.
func (c *check) events(after, upTo schema.Cursor) []store.Event {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	t, err := c.s.Tail(ctx, after)
	c.must(err, "Tail(%v)", after)
	var out []store.Event
	h := after
	for !h.Covers(upTo) {
		got, err := t.Next(ctx)
		c.must(err, "Next of a tail that stands at %v on its way to %v", h, upTo)
		if len(got) == 0 {
			c.Fatalf("Next of a tail returned nothing")
		}
		out = append(out, got...)
		h = got[len(got)-1].H
	}
	c.must(t.Close(), "Close of a tail")
	return out
}

// messages gives those of events.
func messages(events []store.Event) []*schema.Message {
	var out []*schema.Message
	for _, e := range events {
		if e.Message != nil {
			out = append(out, e.Message)
		}
	}
	return out
}

func errIsCtx(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
