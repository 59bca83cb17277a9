package mongo

import (
	"context"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	// sweepEvery is the pause between two rounds.
	sweepEvery = time.Second
	// maxSweeps bounds the sessions that wait for it. What finds no room is swept
	// after a later save, or by the TTL.
	maxSweeps = 10_000
)

// sweeper removes the records that a saved cursor has made superfluous, with
// Options.SweepRecords. It is no part of any promise: what it leaves, the TTL takes.
//
// Invariant: it takes only records of sessions that this node saved, below that
// cursor's seq. No claimer reads those, but for the states of QoS 2 messages in
// flight, which stay. Fences stay: a late record of a former owner meets them. So
// do records with a group: they are claims.
type sweeper struct {
	s *Store

	mu   sync.Mutex
	upTo map[schema.Owner]uint64
}

// note says that a cursor was saved.
func (w *sweeper) note(c store.SaveCursor) {
	upTo := c.Cursor.Seq
	for _, f := range c.Cursor.Flight {
		if f.QoS == 2 && f.Seq > 0 {
			upTo = min(upTo, f.Seq-1)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, there := w.upTo[c.Owner]; upTo > 0 && (there || len(w.upTo) < maxSweeps) {
		w.upTo[c.Owner] = upTo
	}
}

// run is the sweeper's goroutine. Store.Run waits for it.
func (w *sweeper) run() {
	for rest(w.s.life, sweepEvery) == nil {
		w.mu.Lock()
		round := w.upTo
		w.upTo = map[schema.Owner]uint64{}
		w.mu.Unlock()
		for o, seq := range round {
			if err := w.sweep(o, seq); err != nil && w.s.life.Err() == nil {
				w.s.log.Warn("records not swept; the TTL will take them", zap.Error(err))
				break
			}
		}
	}
}

func (w *sweeper) sweep(o schema.Owner, upTo uint64) error {
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	_, err := w.s.c.published.DeleteMany(ctx, bson.D{
		{Key: "clientId", Value: o.ClientID},
		{Key: "sid", Value: int64(o.SID)},
		{Key: "seq", Value: fields("$lte", int64(upTo))},
		{Key: "messageId", Value: fields("$exists", true)},
		{Key: "group", Value: fields("$exists", false)},
	})
	return err
}
