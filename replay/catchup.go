package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Source reads the log (store.Reader's method, and its promise 4): the recent
// memory first, then the store.
type Source interface {
	Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error)
}

// Target is a session that catches up. Its methods are called by CatchUp's
// goroutine only.
type Target interface {
	// Attach makes the hub hold what comes after upTo in the session's bounded
	// buffer, and returns the session's own place, the hub's, and the session's
	// present filters. from is a copy, which the session does not move. ok=false:
	// the session has ended.
	Attach() (from, upTo schema.Cursor, filters []string, ok bool)
	// Deliver hands over messages in order. It takes what the session has room
	// for, and waits until it has taken them all or has room for at least one
	// more; the rest is offered again. It returns how many it took, also with an
	// error, and the session's present filters (the slice is not changed later:
	// a session makes a new one when its subscriptions change). A message that
	// the session drops (not after its own vector, expired, no longer matched)
	// counts as taken. err ends the replay. msgs is CatchUp's: valid until the
	// return.
	Deliver(ctx context.Context, msgs []*schema.Message) (taken int, filters []string, err error)
	// Done tells that everything up to upTo has been delivered: the session
	// merges its vector with it. live=true: the buffer held, the session is live
	// now; false: the buffer overflowed: go round again with a new H.
	Done(upTo schema.Cursor) (live bool, err error)
}

// Options tune a replay. The zero value is usable.
type Options struct {
	PageMessages int // most messages in a page; 0: 256
	// PageBytes ends a page at the message that reaches it; 0: 256 KiB. Bytes as
	// schema.Message.Size counts them.
	PageBytes int
	// Hold is how long a read of the log stays open while its session takes a
	// page; 0: 50 ms; negative: it is closed after each page.
	Hold time.Duration
	// Gate is shared by the replays of a node; nil: this one reads unbounded.
	Gate    *Gate
	Trigger string   // Resume or Slow; "": Resume
	Metrics *Metrics // nil: nobody counts
}

// Result tells what a replay did, also when it ended with an error.
type Result struct {
	Live     bool   // the session is live; else it has ended, or there is an error
	Messages uint64 // taken by the session
	// Trimmed counts what retention had removed before it was delivered
	// (retention_trimmed_backlog).
	Trimmed  uint64
	Rounds   int
	Duration time.Duration
}

// CatchUp brings t up to the present. It returns when the session is live, when
// it has ended, or with the error of the source, of the target, or of ctx.
//
// # A round
//
//  1. Attach: the hub's H is the end of the round; what comes after it waits in
//     the session's buffer.
//  2. Read what is after the session's own vector and not after H, a page at a
//     time. Deliver each page before the next is read, at the pace of the
//     client's window. The vector advances by the mark of each message taken.
//  3. Done: all up to H is delivered. If the buffer has held, its content is what
//     comes next, and the session is live. If it overflowed, the session stays a
//     reader: a new round, from its vector merged with H to a new H.
//
// # Why it is exact
//
// A read yields n ascending in each lane. So when the session has taken some
// messages of it, all that it has taken of a lane is a prefix of what the read
// has there, and the vector, advanced by each, has passed those and no others: a
// second read from the vector goes on exactly there, although the first had
// yielded lanes in turns, and the second may take other turns (T7). A publisher's
// messages stay in order, as each read keeps it, and so does its rest.
//
// The vector does not pass what did not match. That is found again, and not
// delivered again; after Done the vector has passed all of it.
//
// Filters are asked for after each delivery. A new filter cannot miss anything
// here: its subscription begins at or behind the H of a later moment than this
// round's. A filter that is gone only saves reading: the session looks up its
// subscriptions at each delivery.
//
// A gap between the read and the buffer, or an overlap, would have to be at H:
// see fanout.Hub.
func CatchUp(ctx context.Context, src Source, t Target, o Options) (Result, error) {
	start := time.Now()
	c := &catchUp{src: src, target: t, o: o.withDefaults()}
	c.o.Metrics.active.Inc()
	err := c.run(ctx)
	c.o.Metrics.active.Dec()
	c.result.Duration = time.Since(start)
	how := "ended"
	switch {
	case err != nil && ctx.Err() == nil:
		how = "failed"
	case c.result.Live:
		how = "live"
	}
	c.o.Metrics.replays.WithLabelValues(c.o.Trigger, how).Inc()
	c.o.Metrics.duration.WithLabelValues(c.o.Trigger).Observe(c.result.Duration.Seconds())
	return c.result, err
}

func (o Options) withDefaults() Options {
	if o.PageMessages <= 0 {
		o.PageMessages = 256
	}
	if o.PageBytes <= 0 {
		o.PageBytes = 256 << 10
	}
	if o.Hold == 0 {
		o.Hold = 50 * time.Millisecond
	}
	if o.Gate == nil {
		o.Gate = NewGate(1)
	}
	if o.Trigger == "" {
		o.Trigger = Resume
	}
	if o.Metrics == nil {
		o.Metrics, _ = NewMetrics(nil) // without a registry it cannot fail
	}
	return o
}

// catchUp is one call of CatchUp.
type catchUp struct {
	src    Source
	target Target
	o      Options
	result Result
	buf    []*schema.Message // the page's memory
}

func (c *catchUp) run(ctx context.Context) error {
	for !c.result.Live {
		from, upTo, filters, ok := c.target.Attach()
		if !ok {
			return nil
		}
		c.result.Rounds++
		if err := c.round(ctx, from.Clone(), upTo, filters); err != nil {
			return err
		}
		live, err := c.target.Done(upTo)
		if err != nil {
			return fmt.Errorf("replay: up to %v: %w", upTo, err)
		}
		c.result.Live = live
	}
	return nil
}

// round reads and delivers what lies between at and upTo. It moves at.
func (c *catchUp) round(ctx context.Context, at, upTo schema.Cursor, filters []string) (err error) {
	r := &reading{gate: c.o.Gate}
	defer func() { err = errors.Join(err, r.close()) }()
	var trimmed uint64 // what the last read had found missing
	// Without a filter, or with nothing in between, there is nothing to read.
	for len(filters) > 0 && !at.Covers(upTo) {
		if err := r.open(ctx, c.src, at, upTo, filters); err != nil {
			return err
		}
		page, end, err := r.page(ctx, c.buf, c.o.PageMessages, c.o.PageBytes)
		c.buf = page
		if err != nil {
			return err
		}
		// A second read of the same stretch finds the same missing.
		if n := r.msgs.Trimmed(); n != trimmed {
			c.result.Trimmed += max(n, trimmed) - trimmed
			trimmed = n
		}
		if end {
			err = r.close()
		} else {
			err = r.keep(c.o.Hold)
		}
		if err != nil {
			return err
		}
		now, err := c.deliver(ctx, page, &at, filters)
		clear(page)
		if err := errors.Join(err, r.resume()); err != nil || end {
			return err
		}
		if !slices.Equal(now, filters) {
			filters = now
			if err := r.close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// deliver hands a page over, and gives the filters that hold afterwards.
func (c *catchUp) deliver(ctx context.Context, page []*schema.Message, at *schema.Cursor, filters []string) ([]string, error) {
	for len(page) > 0 {
		n, now, err := c.target.Deliver(ctx, page)
		for _, m := range page[:n] {
			at.Advance(m.Mark)
		}
		c.result.Messages += uint64(n)
		c.o.Metrics.messages.WithLabelValues(c.o.Trigger).Add(float64(n))
		if err != nil {
			return nil, fmt.Errorf("replay: deliver: %w", err)
		}
		page, filters = page[n:], now
	}
	return filters, nil
}
