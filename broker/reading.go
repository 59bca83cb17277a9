package broker

import (
	"context"
	"errors"

	"rewindmq/broker/session"
	"rewindmq/replay"
	"rewindmq/schema"
)

// startReplay lets the session read the log until it is live.
func (cl *client) startReplay() {
	cl.mu.Lock()
	if cl.reading || cl.s.Closing() {
		cl.mu.Unlock()
		return
	}
	cl.reading = true
	cl.mu.Unlock()
	cl.b.tasks.Go(func() {
		o := cl.b.replay
		if cl.lived {
			o.Trigger = replay.Slow
		}
		result, err := replay.CatchUp(cl.c.ctx, cl.b.source, (*reading)(cl), o)
		cl.b.m.trimmed(result.Trimmed)
		cl.mu.Lock()
		cl.reading, cl.lived = false, cl.lived || result.Live
		again := err == nil && !cl.s.Live() && !cl.s.Closing()
		cl.mu.Unlock()
		switch {
		case again:
			// Let go of while CatchUp was returning.
			cl.startReplay()
		case err != nil && !errors.Is(err, errGone) && !errors.Is(err, context.Canceled):
			cl.b.storeTrouble("replay", cl.id, err)
			cl.input(func(s *session.Session) { s.Close(session.ReasonStore) })
		}
	})
}

// errGone ends a replay whose session has ended.
var errGone = errors.New("broker: session ended")

// reading is the client as the target of a replay.
type reading client

var _ replay.Target = (*reading)(nil)

// Attach makes the hub offer what comes after its cursor, which it returns.
func (r *reading) Attach() (from, upTo schema.Cursor, filters []string, ok bool) {
	cl := (*client)(r)
	cl.membership.Attach(func(h schema.Cursor) {
		upTo = h
		cl.input(func(s *session.Session) { from, filters, ok = s.OnAttach() })
	})
	return from, upTo, filters, ok
}

// Deliver feeds the session and waits until it has taken something, or all.
func (r *reading) Deliver(ctx context.Context, msgs []*schema.Message) (taken int, filters []string, err error) {
	cl := (*client)(r)
	stop := context.AfterFunc(ctx, func() {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		cl.changed.Broadcast()
	})
	defer stop()
	for {
		cl.input(func(s *session.Session) { taken = s.Feed(msgs) })
		cl.mu.Lock()
		for taken < len(msgs) && !cl.s.Hungry() && !cl.s.Closing() && ctx.Err() == nil {
			cl.changed.Wait()
		}
		closing := cl.s.Closing()
		filters = cl.s.Filters()
		cl.mu.Unlock()
		switch {
		case closing:
			return taken, filters, errGone
		case ctx.Err() != nil:
			return taken, filters, ctx.Err()
		case taken > 0:
			return taken, filters, nil
		}
	}
}

// Done tells the session that it has all up to upTo.
func (r *reading) Done(upTo schema.Cursor) (live bool, err error) {
	closing := false
	(*client)(r).input(func(s *session.Session) { live, closing = s.OnCaughtUp(upTo), s.Closing() })
	if closing {
		return false, errGone
	}
	return live, nil
}
