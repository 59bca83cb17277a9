package storetest

import (
	"context"
	"errors"
	"runtime"
	"strings"

	"rewindmq/schema"
	"rewindmq/store"
)

// done is called once for each Append, in the order of a publisher's Appends, and
// may append.
func answersInOrder(c *check) {
	p := publisher("p")
	const n = 40
	order := make(chan int, 4*n)
	nested := make(chan []store.Appended, 4)
	for i := range n {
		m := c.message("p", "t/1")
		extra := c.message("p", "t/2")
		c.s.Append(context.Background(), p, []*schema.Message{m}, func([]store.Appended) {
			order <- i
			if i == 0 && calledBy("storetest.answersInOrder") {
				c.Errorf("done is called by the caller of Append, who may hold its locks")
			}
			if i == n/2 {
				c.s.Append(context.Background(), p, []*schema.Message{extra}, func(a []store.Appended) { nested <- a })
			}
		})
	}
	c.s.Append(context.Background(), p, nil, func(a []store.Appended) {
		if len(a) != 0 {
			c.Errorf("%d answers for no message", len(a))
		}
		order <- n
	})
	for i := range n + 1 {
		if got := c.nextAnswer(order); got != i {
			c.Fatalf("answer %d is that of Append %d", i, got)
		}
	}
	if a := c.answers(nested); len(a) != 1 || a[0].Outcome != store.Stored {
		c.Fatalf("an Append in done: %+v", a)
	}
	c.stored(p, c.message("p", "t/1")) // what was answered twice was answered by now
	select {
	case i := <-order:
		c.Fatalf("Append %d was answered twice", i)
	default:
	}
}

// calledBy tells whether a function is on the stack.
func calledBy(name string) bool {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, name) {
			return true
		}
		if !more {
			return false
		}
	}
}

func (c *check) nextAnswer(ch <-chan int) int {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	select {
	case i := <-ch:
		return i
	case <-ctx.Done():
		c.Fatalf("an Append was not answered within %v", c.h.Patience)
	}
	return 0
}

// wantOnce wants a message exactly once in the log after `from`, at a mark.
func (c *check) wantOnce(from schema.Cursor, id schema.ID, mark schema.Mark) {
	c.Helper()
	n := 0
	for _, m := range messages(c.events(from, c.head())) {
		if m.ID == id {
			n++
			if m.Mark != mark {
				c.Errorf("%v stands at %v, want %v", id, m.Mark, mark)
			}
		}
	}
	if n != 1 {
		c.Errorf("%v is %d times in the log", id, n)
	}
}

// Promise 2: the same ID again is one message; the answer is the mark of the first.
func idempotentTwice(c *check) {
	from := c.head()
	m := c.message("p", "t/1")
	copies := []*schema.Message{again(m), again(m), again(m), again(m)}
	mark := c.stored(publisher("p"), m)[0]
	other := c.message("p", "t/1")
	for _, got := range [][]schema.Mark{
		c.stored(publisher("p"), copies[0]),
		c.stored(publisher("q"), copies[1]), // from elsewhere
		c.stored(publisher("p"), copies[2], other, copies[3])[:1],
	} {
		if got[0] != mark {
			c.Errorf("appended again: stands at %v, want %v", got[0], mark)
		}
	}
	c.wantOnce(from, m.ID, mark)
	twice := c.message("p", "t/1")
	marks := c.stored(publisher("p"), twice, again(twice))
	if marks[0] != marks[1] {
		c.Errorf("twice in one Append: %v and %v", marks[0], marks[1])
	}
	c.wantOnce(from, twice.ID, marks[0])
}

func idempotentAtOnce(c *check) {
	from := c.head()
	for range 20 * c.h.Rounds {
		m := c.message("p", "t/1")
		var waits []<-chan []store.Appended
		for _, name := range clients(4) {
			waits = append(waits, c.submit(context.Background(), publisher(name), again(m)))
		}
		var mark schema.Mark
		for i, w := range waits {
			a := c.answers(w)
			if a[0].Outcome != store.Stored || i > 0 && a[0].Mark != mark {
				c.Fatalf("appended at once: %+v, the first at %v", a[0], mark)
			}
			mark = a[0].Mark
		}
		c.wantOnce(from, m.ID, mark)
		from = c.head()
	}
}

func idempotentReopen(c *check) {
	from := c.head()
	m := c.message("p", "t/1")
	mark := c.stored(publisher("p"), again(m))[0]
	c.reopen()
	if got := c.stored(publisher("p"), again(m))[0]; got != mark {
		c.Errorf("appended again after Reopen: %v, want %v", got, mark)
	}
	c.wantOnce(from, m.ID, mark)
}

// wantRefused wants all answers refused, with an error, and nothing in the log.
func (c *check) wantRefused(from schema.Cursor, msgs []*schema.Message, got []store.Appended, want error) {
	c.Helper()
	if len(got) != len(msgs) {
		c.Fatalf("%d answers for %d messages", len(got), len(msgs))
	}
	for i, a := range got {
		if a.Outcome != store.Refused || !errors.Is(a.Err, want) {
			c.Errorf("answer %d: outcome %d, %v; want refused, %v", i, a.Outcome, a.Err, want)
		}
	}
	c.wantAbsent(from, msgs)
}

func (c *check) wantAbsent(from schema.Cursor, msgs []*schema.Message) {
	c.Helper()
	c.stored(publisher("zz"), c.message("zz", "t/1"))
	for _, m := range messages(c.events(from, c.head())) {
		for i := range msgs {
			if m.ID == msgs[i].ID {
				c.Errorf("message %d was refused and is in the log at %v", i, m.Mark)
			}
		}
	}
}

// L5: once a publisher has failed, nothing of it is stored any more.
func failedPublisher(c *check) {
	from := c.head()
	p := publisher("p")
	c.stored(p, c.message("p", "t/1"))
	p.Fail()
	msgs := []*schema.Message{c.message("p", "t/1"), c.message("p", "t/1")}
	c.wantRefused(from, msgs, c.append(p, msgs...), store.ErrPublisherFailed)
	c.stored(publisher("p"), c.message("p", "t/1")) // another claim's publisher goes on
}

// Fail while much is waiting: what is stored is a prefix of what was appended.
func failWhileWaiting(c *check) {
	for range 5 * c.h.Rounds {
		from, p := c.head(), publisher("p")
		const n = 60
		order := make(chan int, n)
		got := make([][]store.Appended, n)
		var msgs []*schema.Message
		for i := range n {
			m := c.message("p", "t/1")
			msgs = append(msgs, m)
			c.s.Append(context.Background(), p, []*schema.Message{m}, func(a []store.Appended) {
				got[i] = append([]store.Appended(nil), a...)
				if i == 3 {
					p.Fail()
				}
				order <- i
			})
		}
		failed := -1
		for range n {
			i := c.nextAnswer(order)
			switch a := got[i][0]; {
			case a.Outcome == store.Stored && failed >= 0:
				c.Fatalf("message %d overtook message %d, which failed", i, failed)
			case a.Outcome == store.Refused && errors.Is(a.Err, store.ErrPublisherFailed):
				if failed < 0 {
					failed = i
				}
			case a.Outcome != store.Stored:
				c.Fatalf("message %d: outcome %d, %v", i, a.Outcome, a.Err)
			}
		}
		late := c.message("p", "t/1")
		c.wantRefused(from, []*schema.Message{late}, c.append(p, late), store.ErrPublisherFailed)
		if failed >= 0 {
			c.wantAbsent(from, msgs[failed:])
		}
	}
}

// A refusal that the client can be told lets the publisher go on.
func tooLarge(c *check) {
	from, p := c.head(), publisher("p")
	big := c.message("p", "t/1")
	big.Payload = make([]byte, c.h.MaxPayload+1)
	full := c.message("p", "t/1")
	full.Payload = make([]byte, c.h.MaxPayload)
	got := c.append(p, c.message("p", "t/1"), big, full)
	if got[0].Outcome != store.Stored || got[2].Outcome != store.Stored {
		c.Errorf("beside one that is too large: %+v", got)
	}
	c.wantRefused(from, []*schema.Message{big}, got[1:2], store.ErrTooLarge)
	c.stored(p, c.message("p", "t/1"))
}

// L5: a strict publisher's refused message fails all behind it, in the same
// Append and in those that wait.
func strictFailsBehind(c *check) {
	from, p := c.head(), publisher("p")
	p.Strict = true
	big := c.message("p", "t/1")
	big.Payload = make([]byte, c.h.MaxPayload+1)
	first, second, third := c.message("p", "t/1"), c.message("p", "t/1"), c.message("p", "t/1")
	a := c.submit(context.Background(), p, first, big, second)
	b := c.submit(context.Background(), p, third)
	got := c.answers(a)
	if got[0].Outcome != store.Stored {
		c.Errorf("before the one that is too large: %+v", got[0])
	}
	c.wantRefused(from, []*schema.Message{big}, got[1:2], store.ErrTooLarge)
	c.wantRefused(from, []*schema.Message{second}, got[2:], store.ErrPublisherFailed)
	c.wantRefused(from, []*schema.Message{third}, c.answers(b), store.ErrPublisherFailed)
	late := c.message("p", "t/1")
	c.wantRefused(from, []*schema.Message{late}, c.append(p, late), store.ErrPublisherFailed)
}

// When ctx ends, what is not yet being written is refused, the rest is answered.
func appendContextEnds(c *check) {
	from := c.head()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dead := []*schema.Message{c.message("p", "t/1")}
	if a := c.answers(c.submit(ctx, publisher("p"), dead...)); a[0].Outcome == store.Refused {
		c.wantRefused(from, dead, a, context.Canceled)
	}
	for range 3 * c.h.Rounds {
		ctx, cancel := context.WithCancel(context.Background())
		p := publisher("p")
		var msgs []*schema.Message
		var waits []<-chan []store.Appended
		for i := range 40 {
			m := c.message("p", "t/1")
			msgs = append(msgs, m)
			waits = append(waits, c.submit(ctx, p, m))
			if i == 30 {
				cancel()
			}
		}
		var refused []*schema.Message
		for i, w := range waits {
			switch a := c.answers(w)[0]; {
			case a.Outcome == store.Refused && (errIsCtx(a.Err) || errors.Is(a.Err, store.ErrPublisherFailed)):
				refused = append(refused, msgs[i])
			case a.Outcome != store.Stored:
				c.Fatalf("message %d: outcome %d, %v", i, a.Outcome, a.Err)
			}
		}
		c.wantAbsent(from, refused)
		cancel()
	}
}

// Calls whose ctx has ended, or ends while they wait, return.
func callContextEnds(c *check) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	from := c.head()
	back := make(chan error, 1)
	wait := func(name string, fn func() error) {
		c.Helper()
		go func() { back <- fn() }()
		ctx, stop := c.wait()
		defer stop()
		select {
		case err := <-back:
			if err != nil && !errIsCtx(err) {
				c.Errorf("%s: %v", name, err)
			}
		case <-ctx.Done():
			c.Fatalf("%s did not return within %v of the end of its ctx", name, c.h.Patience)
		}
	}
	wait("Head", func() error { _, err := c.s.Head(ended); return err })
	wait("Claim", func() error { return c.s.Claim(ended, []store.Claim{{ClientID: "c", At: from}})[0].Err })
	wait("Read", func() error {
		r, err := c.s.Read(ended, schema.Cursor{}, from, []string{"#"})
		if err == nil {
			err = r.Close()
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	t, err := c.s.Tail(ctx, from)
	c.must(err, "Tail")
	wait("Next of a tail", func() error {
		context.AfterFunc(ctx, func() {})
		go cancel()
		got, err := t.Next(ctx)
		if err == nil && len(messages(got)) > 0 {
			c.Errorf("Next of a tail yields %v", got[0].Message.Mark)
		}
		return err
	})
	c.must(t.Close(), "Close of a tail")
	cancel()
}
