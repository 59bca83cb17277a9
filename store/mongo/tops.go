package mongo

import (
	"context"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"
)

// tops keeps the field `top` in the documents of lanes: up to where all in the lane was
// settled. A lane's numbering outlives its messages by it. Retention takes messages by
// `created`, and so, in a lane in which nothing was appended for as long, all of them;
// and where `created` does not rise with n, the newest before others. Without it the
// lane would seem to begin anew: an `end` or a stopper would go to a place that was
// used, behind which the tails stand already; a node that starts would stand at 0 for
// ever, and a retired lane's `last` would hide what was trimmed.
//
// What is the greatest n of a lane is the larger of its `top` and of its newest document.
//
// Invariant: `top` never lies above what a majority has, and only rises.
//
// Invariant: while an insert is under way, for less than a quarter of the retention, the
// greatest n of its lane is found as its sender knew it. A document lives for at least
// half of the retention after it was made: its `created` is not older than that
// (notOlder, and the update that adopts). A writer, and an adopter, sends nothing behind a
// document that is older than a quarter of it: it opens another lane. So whoever looks
// finds that document, for another quarter.
//
// That needs no clock of others, no keeper, no node that lives, and not even `top`. A
// write that is under way for more than a quarter of the retention, or a batch that is
// in doubt for as long while retention goes on, is outside of it; attempts are given up
// after Options.Attempt.
//
// The rounds see to it that `top` is there long before retention takes the newest
// document: for those that read. Each node stores it for its own lanes, by what it
// knows; the keeper for all lanes, by what is there: also for nodes that are gone or
// stopped. Only where nobody has made a round between an append and half the retention
// after it is too little known of that lane. Nothing that was acknowledged is lost by
// that. But what was trimmed of it may not be counted, and a node that starts may stay
// below a cursor that was given out, until the lane is retired: by the keeper, if its
// node has gone, else when its writer goes on, and opens another.
type tops struct {
	s    *Store
	kept []laneTop // by writer, what this node has stored
}

// laneTop is up to where all in a lane is settled.
type laneTop struct {
	id laneID
	n  uint64
}

// topsEach bounds the pause between two rounds; a sixtieth of the retention is enough.
const (
	minTopsEach = time.Second
	maxTopsEach = time.Minute
)

// run is the goroutine of the rounds. Store.Run waits for it.
func (t *tops) run() {
	t.kept = make([]laneTop, len(t.s.writers))
	each := min(max(t.s.o.RetainMessages/60, minTopsEach), maxTopsEach)
	for rest(t.s.life, each) == nil {
		ctx, cancel := context.WithTimeout(t.s.life, t.s.o.Attempt)
		err := t.round(ctx)
		cancel()
		if err != nil && t.s.life.Err() == nil {
			t.s.log.Warn("the ends of lanes are not kept; retention may take them first", zap.Error(err))
		}
	}
}

// round stores what has moved.
func (t *tops) round(ctx context.Context) error {
	for i, w := range t.s.writers {
		w.mu.Lock()
		last := w.last
		w.mu.Unlock()
		if last == t.kept[i] || last.n == 0 {
			continue
		}
		if err := t.s.keepTop(ctx, last.id, last.n); err != nil {
			return err
		}
		t.kept[i] = last
	}
	if !t.s.keeper.holds() {
		return nil
	}
	return t.s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
		lanes, err := t.s.readLanes(ctx, fields("retired", nil))
		if err != nil {
			return err
		}
		newest, err := t.s.tops(ctx, t.s.c.message, lanes)
		if err != nil {
			return err
		}
		var moved []mongo.WriteModel
		for i := range lanes {
			d := &lanes[i]
			if n := newest[d.id().number()]; n > uint64(d.Top) {
				moved = append(moved, mongo.NewUpdateOneModel().SetFilter(fields("_id", d.Number)).SetUpdate(topUpdate(n)))
			}
		}
		if len(moved) == 0 {
			return nil
		}
		_, err = t.s.c.lane.BulkWrite(ctx, moved, options.BulkWrite().SetOrdered(false))
		if err != nil {
			return fmt.Errorf("mongo: tops of lanes: %w", err)
		}
		return nil
	})
}

// keepTop stores that all up to n is settled in a lane. It does no harm late.
func (s *Store) keepTop(ctx context.Context, id laneID, n uint64) error {
	if _, err := s.c.lane.UpdateOne(ctx, fields("_id", int64(id.number())), topUpdate(n)); err != nil {
		return fmt.Errorf("mongo: top of lane %d: %w", id.number(), err)
	}
	return nil
}

// topUpdate only raises it.
func topUpdate(n uint64) bson.D { return fields("$max", fields("top", int64(n))) }

// oldest gives how old a message may say to be when it is stored: limit, or half of the
// retention.
func (s *Store) oldest(limit time.Duration) time.Duration {
	if s.o.RetainMessages > 0 {
		limit = min(limit, s.o.RetainMessages/2)
	}
	return limit
}

// notOlder has the batch's messages live for half of the retention at least.
func (w *laneWriter) notOlder() {
	if w.s.o.RetainMessages <= 0 {
		return
	}
	oldest := w.s.Now().Add(-w.s.o.RetainMessages / 2).Truncate(time.Millisecond)
	for i := range w.m.Len() {
		if m := w.m.Message(i); m.Created.Before(oldest) {
			m.Created = oldest
		}
	}
}
