package mongo

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/schema"
	"rewindmq/store"
)

var errReadClosed = errors.New("mongo: read is closed")

// reading is an open Read. For one goroutine.
type reading struct {
	s           *Store
	sess        *mongo.Session
	after, upTo schema.Cursor
	filters     []string
	trimmed     uint64

	merge *merge      // by lanes
	topic *topicMerge // by topics
	end   bool
}

// Read opens a read, see store.Reader. Its lower bound is found, not stored: the
// first document behind `after` in each lane.
func (s *Store) Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	sess, err := s.client.StartSession()
	if err != nil {
		return nil, s.failed(ctx, "read", err)
	}
	r := &reading{s: s, sess: sess, after: after.Clone(), upTo: upTo.Clone(), filters: slices.Clone(filters)}
	if at := s.passed.time(); !at.IsZero() {
		err = sess.AdvanceOperationTime(&at)
	}
	if err == nil {
		err = r.open(mongo.NewSessionContext(ctx, sess))
	}
	if err != nil {
		_ = r.Close()
		return nil, s.failed(ctx, "read", err)
	}
	return r, nil
}

// ranges gives what is wanted of each lane.
func (r *reading) ranges(ctx context.Context) ([]laneDoc, map[schema.Lane]laneRange, error) {
	lanes, err := r.s.lanesUpTo(ctx, r.upTo.Newest())
	if err != nil {
		return nil, nil, err
	}
	var wanted []laneDoc
	ranges := map[schema.Lane]laneRange{}
	for _, d := range lanes {
		k := schema.Lane(d.Number)
		lo, has := r.after.N(k)
		if !has && k <= r.after.Newest() {
			continue // retired there: all of it lies before
		}
		hi, has := r.upTo.N(k)
		if !has {
			hi = uint64(d.Last) // retired in upTo: all of it; 0: no end known
		}
		if has && hi <= lo || d.Retired && uint64(d.Last) <= lo {
			continue
		}
		wanted = append(wanted, d)
		ranges[k] = laneRange{lane: d.id(), after: lo, upTo: hi}
	}
	return wanted, ranges, nil
}

// open finds what of the ranges is there, and reads it the cheaper way.
func (r *reading) open(ctx context.Context) error {
	wanted, ranges, err := r.ranges(ctx)
	if err != nil {
		return err
	}
	first := map[schema.Lane]uint64{}
	bound := ^uint64(0)
	err = r.s.oneOfEach(ctx, r.s.c.message, wanted, func(d *laneDoc) (bson.D, int) {
		rg := ranges[schema.Lane(d.Number)]
		return rg.filter(), 1
	}, func(p place, ts bson.Timestamp) {
		first[p.lane.number()] = uint64(p.n)
		bound = min(bound, uint64(ts.T)<<32|uint64(ts.I))
	})
	if err != nil {
		return err
	}
	var there []laneRange
	messages := uint64(0)
	for _, d := range wanted {
		rg := ranges[schema.Lane(d.Number)]
		n, ok := first[schema.Lane(d.Number)]
		if !ok {
			if rg.upTo > rg.after {
				r.trimmed += rg.upTo - rg.after
			}
			continue
		}
		r.trimmed += n - rg.after - 1
		rg.after = n - 1
		there = append(there, rg)
		if rg.upTo == 0 {
			messages += fewMessages // retired there, and its end is not known here
		} else {
			messages += rg.upTo - rg.after
		}
	}
	if len(there) == 0 || len(r.filters) == 0 {
		r.end = true
		return nil
	}
	topics, ok, err := r.s.wanted(ctx, r.filters, r.upTo, messages)
	if err != nil {
		return err
	}
	if ok {
		r.topic, err = r.s.openTopics(ctx, topics, bson.Timestamp{T: uint32(bound >> 32), I: uint32(bound)})
		return err
	}
	r.merge, err = r.s.mergeRanges(ctx, there)
	return err
}

// exactTopics gives the filters as topics, if all of them are, and they are few.
func exactTopics(filters []string) ([]string, bool) {
	if len(filters) > maxTopics {
		return nil, false
	}
	for _, f := range filters {
		if strings.ContainsAny(f, "+#") {
			return nil, false
		}
	}
	return filters, true
}

// lanesUpTo gives all lanes up to newest.
func (s *Store) lanesUpTo(ctx context.Context, newest schema.Lane) ([]laneDoc, error) {
	if docs, ok := s.lanes.upTo(newest); ok {
		return docs, nil
	}
	_, err := s.readLanes(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: int64(s.lanes.knownUpTo())}, {Key: "$lte", Value: int64(newest)}}}})
	if err != nil {
		return nil, err
	}
	docs, ok := s.lanes.upTo(newest)
	if !ok {
		return nil, errors.New("mongo: read: upTo is beyond the lanes that there are")
	}
	return docs, nil
}

// Next gives the next message, see store.Messages.
func (r *reading) Next(ctx context.Context) (*schema.Message, error) {
	if r.sess == nil {
		return nil, errReadClosed
	}
	if err := r.s.enter(ctx); err != nil {
		return nil, err
	}
	if r.end {
		return nil, io.EOF
	}
	ctx, cancel := r.s.call(ctx)
	defer cancel()
	for {
		m, at, err := r.pull(mongo.NewSessionContext(ctx, r.sess))
		if err != nil {
			return nil, r.s.failed(ctx, "read", err)
		}
		if m == nil {
			r.end = true
			return nil, io.EOF
		}
		// Each is judged by its mark against the two vectors.
		if at.stop != "" || !r.after.After(m.Mark) || r.upTo.After(m.Mark) || !r.matches(m.Topic) {
			continue
		}
		return m, nil
	}
}

func (r *reading) pull(ctx context.Context) (*schema.Message, place, error) {
	if r.merge != nil {
		return r.merge.next(ctx)
	}
	return r.topic.next(ctx)
}

func (r *reading) matches(topic string) bool {
	for _, f := range r.filters {
		if schema.Match(f, topic) {
			return true
		}
	}
	return false
}

// Trimmed counts what retention had removed, see store.Messages.
func (r *reading) Trimmed() uint64 { return r.trimmed }

// Close ends the read.
func (r *reading) Close() error {
	if r.sess == nil {
		return nil
	}
	if r.merge != nil {
		r.merge.close()
	}
	if r.topic != nil {
		r.topic.close()
	}
	r.sess.EndSession(context.Background())
	r.sess, r.end = nil, true
	return nil
}

// Lookup gets messages, see store.Reader.
func (s *Store) Lookup(ctx context.Context, refs []store.Ref) ([]*schema.Message, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	out := make([]*schema.Message, len(refs))
	if len(refs) == 0 {
		return out, nil
	}
	by := map[schema.ID]*schema.Message{}
	err := s.inSession(ctx, s.passed.time(), func(ctx context.Context) error {
		for part := range slices.Chunk(refs, 1000) {
			ids := make(bson.A, len(part))
			for i := range part {
				ids[i] = bson.ObjectID(part[i].ID)
			}
			cur, err := s.c.message.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
			if err != nil {
				return err
			}
			for cur.Next(ctx) {
				m, at, err := decodeMessage(cur.Current)
				if err == nil && at.has && at.stop == "" {
					by[m.ID] = m
				}
			}
			if err := cur.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, s.failed(ctx, "lookup", err)
	}
	for i, r := range refs {
		if m := by[r.ID]; m != nil && m.Mark == r.Mark {
			out[i] = m
		}
	}
	return out, nil
}
