package mongo

import (
	"context"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store"
)

// settle sends the batch until each of its messages is settled. On return the
// batch is empty, or the lane was ended and what is left goes to the next, or the
// store is at its end.
func (w *laneWriter) settle() {
	w.began = time.Now()
	pause := retryRest
	for len(w.batch) > 0 && w.lane != 0 && w.s.life.Err() == nil {
		if w.giving == nil && since(w.began) > w.s.o.Hold {
			id := bson.NewObjectID()
			w.giving = &id
		}
		var v verdict
		if w.giving != nil {
			v = w.putStopper()
		} else {
			v = w.send()
		}
		w.tell()
		if !v.doubt {
			pause = retryRest
			continue
		}
		w.doubts++
		w.setDoubt(true)
		if w.s.o.Metrics != nil {
			w.s.o.Metrics.Error("append", kindOf(v.err))
		}
		moved, err := w.lookUp()
		w.expire()
		w.tell()
		if err != nil {
			w.s.log.Warn("append in doubt", zap.Uint32("lane", uint32(w.lane.number())), zap.Uint64("n", w.next),
				zap.Int("messages", len(w.batch)), zap.Error(v.err), zap.NamedError("look", err))
		}
		if moved {
			pause = retryRest
			continue
		}
		if rest(w.s.life, pause) != nil {
			return
		}
		pause = backoff(pause)
	}
	if len(w.batch) == 0 {
		w.giving = nil
		w.tell()
	}
}

// send makes one attempt with the whole batch.
func (w *laneWriter) send() verdict {
	docs := make([]any, len(w.batch))
	for i := range w.batch {
		docs[i] = encodeMessage(w.batch[i].msg(), w.lane, w.next+uint64(i))
	}
	began := time.Now()
	v := judge(w.insert(docs), len(docs))
	if m := w.s.o.Metrics; m != nil && !v.doubt {
		m.BatchMessages.Observe(float64(len(docs)))
		m.AppendSeconds.Observe(time.Since(began).Seconds())
	}
	ts := uint64(0)
	if op := w.sess.OperationTime(); op != nil {
		ts = stampOf(op.T, op.I) - uint64(len(docs))
	}
	w.lock(func() {
		for i := range v.stored {
			ts++
			w.stored(&w.batch[i], schema.Mark{Lane: w.lane.number(), N: w.next}, ts)
			w.next++
		}
		if v.refused {
			it := &w.batch[v.stored]
			w.refuse(it, fmt.Errorf("mongo: message %v: %w", it.msg().ID, v.err), it.pub.Strict)
		}
	})
	n := v.stored
	if v.refused {
		n++
	}
	w.batch = w.batch[n:]
	if v.refused {
		w.dropFailed()
	}
	return v
}

// dropFailed takes out what its publisher has behind a message that failed (L5).
// Nothing of the batch was tried behind that message.
func (w *laneWriter) dropFailed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		if it.pub.Failed() {
			w.refuse(&it, store.ErrPublisherFailed, false)
			continue
		}
		kept = append(kept, it)
	}
	w.batch = kept
}

func (w *laneWriter) insert(docs []any) error {
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	_, err := w.s.c.message.InsertMany(mongo.NewSessionContext(ctx, w.sess), docs)
	return err
}

func stampOf(t, i uint32) uint64 { return uint64(t)<<32 | uint64(i) }

// stored settles a message that is there. ts is the server's own stamp where a
// look-up has shown it. Else it is a bound from above, which rises with n as well:
// the clock ticks once for each document before it comes to the operation time of
// the reply. The stamp itself comes with the tail; a read for it would cost every
// publish a round trip.
func (w *laneWriter) stored(it *item, at schema.Mark, ts uint64) {
	if it.told {
		return
	}
	it.msg().Mark, it.msg().TS = at, ts
	it.answer(it.i, store.Appended{Outcome: store.Stored, Mark: at})
}

// putStopper makes one attempt to give the rest of the batch up: a stopper at the
// first n in doubt. If it goes in, nothing of the rest is or ever will be stored.
func (w *laneWriter) putStopper() verdict {
	v := judge(w.insert([]any{w.s.stopper(*w.giving, w.lane, w.next, stopPlain)}), 1)
	if v.stored == 1 {
		w.next++
		w.refuseRest()
		return v
	}
	v.doubt = true
	w.lock(func() {
		// The hold is over, and no answer can be had: that is the answer.
		for i := range w.batch {
			if it := &w.batch[i]; !it.told {
				it.pub.Fail()
				it.answer(it.i, store.Appended{Outcome: store.InDoubt, Err: errHold})
				it.told = true
			}
		}
	})
	return v
}

// refuseRest settles the batch: it is certainly not stored. Its publishers have
// failed: nothing behind overtakes.
func (w *laneWriter) refuseRest() {
	w.lock(func() {
		for i := range w.batch {
			w.refuse(&w.batch[i], errHold, true)
		}
	})
	w.batch, w.giving = nil, nil
}

// found is a document that a look-up shows.
type found struct {
	id bson.ObjectID
	place
}

// lookUp follows a doubt: one majority read of the batch's ids and of what stands
// at next and above. What it shows is stored; the rest is numbered again from
// behind it. moved tells that there is reason to go on at once.
func (w *laneWriter) lookUp() (moved bool, err error) {
	docs, err := w.find()
	if err != nil {
		return false, err
	}
	mine := map[bson.ObjectID]place{}
	standing := map[int64]found{}
	for _, d := range docs {
		mine[d.id] = d.place
		if d.lane == w.lane {
			standing[d.n] = d
		}
	}
	for id, p := range mine {
		// A foreign insert under the same id is not stored before the keeper has
		// adopted it.
		ok, err := w.s.counts(w.s.life, p)
		if err != nil {
			return false, err
		}
		if !ok {
			delete(mine, id)
		}
	}
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		p, ok := mine[bson.ObjectID(it.msg().ID)]
		if !ok {
			kept = append(kept, it)
			continue
		}
		moved = true
		w.lock(func() { w.stored(&it, p.mark(), p.ts) })
	}
	w.batch = kept
	for {
		d, ok := standing[int64(w.next)]
		if !ok {
			return moved, nil
		}
		w.next++
		moved = true
		if d.stop != "" {
			if w.meet(d) {
				return true, nil
			}
		}
	}
}

// find is the read of lookUp.
func (w *laneWriter) find() ([]found, error) {
	ids := make(bson.A, len(w.batch))
	for i := range w.batch {
		ids[i] = bson.ObjectID(w.batch[i].msg().ID)
	}
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	cur, err := w.s.c.message.Find(mongo.NewSessionContext(ctx, w.sess), bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}},
		bson.D{{Key: "lane", Value: int64(w.lane)}, {Key: "n", Value: bson.D{{Key: "$gte", Value: int64(w.next)}}}},
	}}}, options.Find().SetProjection(fields("lane", 1, "n", 1, "stop", 1, "ts", 1)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var out []found
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		out = append(out, found{id: id, place: placeOf(cur.Current)})
	}
	return out, cur.Err()
}

// meet follows a stopper at an n that was in doubt. While giving up, anybody's
// does as well as one's own. Otherwise the rest is certainly not stored: take out
// what was claimed elsewhere, and number what is left from behind it. No writer
// goes on behind an `end`: it opens another lane. It tells whether the batch has
// to be begun anew.
func (w *laneWriter) meet(d found) bool {
	if w.giving != nil {
		w.refuseRest()
	}
	if d.stop == stopEnd {
		w.lane = 0
		return true
	}
	w.doubts++
	if len(w.batch) > 0 && !w.verify() {
		return true
	}
	return false
}

// counts tells whether a document at p is part of the log: history, or in a lane
// that there is.
func (s *Store) counts(ctx context.Context, p place) (bool, error) {
	if !p.has {
		return false, nil
	}
	if p.lane == 0 {
		return true, nil
	}
	mine, unknown := s.lanes.known(p.lane)
	if !unknown {
		return mine, nil
	}
	docs, err := s.readLanes(ctx, bson.D{{Key: "_id", Value: int64(p.lane.number())}})
	if err != nil {
		return false, err
	}
	return len(docs) == 1 && docs[0].id() == p.lane, nil
}
