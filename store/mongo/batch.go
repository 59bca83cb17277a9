package mongo

import (
	"context"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/schema"
	"rewindmq/store/mongo/lane"
)

// write makes one attempt with the whole batch.
func (w *laneWriter) write(a lane.Action) {
	n, f := w.m.Len(), w.s.form()
	w.notOlder()
	began := time.Now()
	v := w.judged(w.insert(n, func(b []byte, i int) []byte {
		return f.append(b, w.m.Message(i), laneID(a.Lane), a.N+uint64(i))
	}), n)
	w.wrote, w.wroteIn = v.Stored, time.Since(began)
	if m := w.s.o.Metrics; m != nil && !v.Doubt {
		m.BatchMessages.Observe(float64(n))
		m.AppendSeconds.Observe(time.Since(began).Seconds())
	}
	// The clock ticks once for each document before it comes to the operation
	// time of the reply.
	ts := uint64(0)
	if op := w.in.sess.OperationTime(); op != nil {
		ts = stampOf(op.T, op.I) - uint64(n)
	}
	w.m.Wrote(v, ts)
}

func (w *laneWriter) insert(n int, doc func(b []byte, i int) []byte) error {
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	return w.in.insert(ctx, n, doc)
}

// judged is judge, with a doubt counted and told.
func (w *laneWriter) judged(err error, n int) lane.Verdict {
	v := judge(err, n)
	if v.doubt {
		w.why = v.err
		if w.s.o.Metrics != nil {
			w.s.o.Metrics.Error("append", kindOf(v.err))
		}
	}
	return v.lane()
}

func (v *verdict) lane() lane.Verdict {
	return lane.Verdict{Stored: v.stored, Refused: v.refused, Doubt: v.doubt, Err: v.err}
}

func stampOf(t, i uint32) uint64 { return uint64(t)<<32 | uint64(i) }

// found is a document that a look shows.
type found struct {
	id bson.ObjectID
	place
}

// doc gives it for the machines. counts: it stands in the log.
func (f *found) doc(counts bool) lane.Doc {
	d := lane.Doc{ID: schema.ID(f.id), Stop: f.stop, TS: f.ts, Counts: counts}
	if f.has {
		d.Lane, d.N = lane.ID(f.lane), uint64(f.n)
	}
	return d
}

// look follows a doubt: one majority read of the batch's ids and of what stands at
// next and above.
func (w *laneWriter) look(a lane.Action) {
	docs, err := w.find(a)
	if err != nil {
		w.s.log.Warn("append in doubt", zap.Uint32("lane", uint32(a.Lane.Number())), zap.Uint64("n", a.N),
			zap.Int("messages", w.m.Len()), zap.Error(w.why), zap.NamedError("look", err))
		w.m.LookFailed()
		return
	}
	w.m.Looked(docs)
}

// find is the read of look.
func (w *laneWriter) find(a lane.Action) ([]lane.Doc, error) {
	ids := make(bson.A, w.m.Len())
	for i := range ids {
		ids[i] = bson.ObjectID(w.m.Message(i).ID)
	}
	ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
	defer cancel()
	cur, err := w.s.c.message.Find(mongo.NewSessionContext(ctx, w.in.sess), bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}},
		bson.D{{Key: "lane", Value: int64(a.Lane)}, {Key: "n", Value: bson.D{{Key: "$gte", Value: int64(a.N)}}}},
	}}}, options.Find().SetProjection(fields("lane", 1, "n", 1, "stop", 1, "ts", 1)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var out []lane.Doc
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").ObjectIDOK()
		f := found{id: id, place: placeOf(cur.Current)}
		counts, err := w.s.counts(ctx, f.place)
		if err != nil {
			return nil, err
		}
		out = append(out, f.doc(counts))
	}
	return out, cur.Err()
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
