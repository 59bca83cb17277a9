package mongo

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
)

// pass reads what lies behind a cursor in every lane, in one snapshot, merged by
// (ts, lane, n). Read lane by lane at times of their own, a publisher that moves
// between lanes would be inverted (T2).
type pass struct {
	began time.Time
	snap  *snapshot
	lanes []laneDoc
	found int
	merge *merge
}

// smallPass is up to how many documents a pass takes in with one query, and
// smallPassBytes up to how many bytes of them.
const (
	smallPass      = 4000
	smallPassBytes = 8 << 20
)

func (s *Store) openPass(ctx context.Context, h schema.Cursor) (*pass, error) {
	began := time.Now()
	snap, err := s.snapshotAt(ctx, s.client, bson.Timestamp{})
	if err != nil {
		return nil, err
	}
	p := &pass{began: began, snap: snap}
	if err := p.open(h); err != nil {
		snap.end()
		return nil, err
	}
	return p, nil
}

func (p *pass) open(h schema.Cursor) error {
	s := p.snap.s
	var err error
	if p.lanes, err = s.readLanes(p.snap.ctx, liveLanes(h)); err != nil {
		return err
	}
	ranges := make([]laneRange, 0, len(p.lanes))
	for i := range p.lanes {
		n, _ := h.N(schema.Lane(p.lanes[i].Number))
		ranges = append(ranges, laneRange{lane: p.lanes[i].id(), after: n})
	}
	p.merge, err = s.mergeRanges(p.snap.ctx, ranges)
	return err
}

// next gives the next document; nil at the end. The merge's cursors read in the
// snapshot they were opened in, whatever context they are pulled with; it has to
// carry the session.
func (p *pass) next(ctx context.Context) (*schema.Message, place, error) {
	m, at, err := p.merge.next(mongo.NewSessionContext(ctx, p.snap.sess))
	if m != nil {
		p.found++
	}
	return m, at, err
}

func (p *pass) close() {
	p.merge.close()
	p.snap.end()
}

// laneRange is what is wanted of a lane: n in (after, upTo]; upTo 0: no end.
type laneRange struct {
	lane        laneID
	after, upTo uint64
}

func (r *laneRange) filter() bson.D {
	n := bson.D{{Key: "$gt", Value: int64(r.after)}}
	if r.upTo > 0 {
		n = append(n, bson.E{Key: "$lte", Value: int64(r.upTo)})
	}
	return bson.D{{Key: "lane", Value: int64(r.lane)}, {Key: "n", Value: n}}
}

// merge gives documents of several ordered sources by (ts, lane, n).
type merge struct {
	small   []doc // all of it
	sources sources
	open    []*mongo.Cursor
}

type doc struct {
	m  *schema.Message
	at place
}

// before orders by (ts, lane, n); n alone within a lane, where ts rises with it.
func (d *doc) before(o *doc) int {
	if d.at.lane == o.at.lane {
		return cmp.Compare(d.at.n, o.at.n)
	}
	return cmp.Or(cmp.Compare(d.m.TS, o.m.TS), cmp.Compare(d.at.lane, o.at.lane), cmp.Compare(d.at.n, o.at.n))
}

type source struct {
	cur  *mongo.Cursor
	head doc
}

type sources []*source

func (s sources) Len() int           { return len(s) }
func (s sources) Less(i, j int) bool { return s[i].head.before(&s[j].head) < 0 }
func (s sources) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *sources) Push(x any)        { *s = append(*s, x.(*source)) }
func (s *sources) Pop() any {
	old := *s
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*s = old[:len(old)-1]
	return x
}

// mergeRanges opens a merge of lanes' ranges, by ctx's driver session. What is
// little is read with one query.
func (s *Store) mergeRanges(ctx context.Context, ranges []laneRange) (*merge, error) {
	m := &merge{}
	if len(ranges) == 0 {
		return m, nil
	}
	or := make(bson.A, len(ranges))
	for i := range ranges {
		or[i] = ranges[i].filter()
	}
	small, all, err := s.readSmall(ctx, or)
	if err != nil {
		return nil, err
	}
	if all {
		slices.SortFunc(small, func(a, b doc) int { return a.before(&b) })
		m.small = small
		return m, nil
	}
	for i := range ranges {
		cur, err := s.c.message.Find(ctx, ranges[i].filter(), options.Find().
			SetSort(bson.D{{Key: "lane", Value: 1}, {Key: "n", Value: 1}}).SetBatchSize(smallPass).SetHint("lane_n"))
		if err == nil {
			err = m.add(ctx, cur)
		}
		if err != nil {
			m.close()
			return nil, fmt.Errorf("mongo: read of lane %d: %w", ranges[i].lane.number(), err)
		}
	}
	heap.Init(&m.sources)
	return m, nil
}

// readSmall reads what is in any of the ranges; false: it is too much for one query.
func (s *Store) readSmall(ctx context.Context, or bson.A) (docs []doc, all bool, err error) {
	cur, err := s.c.message.Find(ctx, bson.D{{Key: "$or", Value: or}}, options.Find().SetLimit(smallPass+1).SetBatchSize(smallPass+1).SetHint("lane_n"))
	if err != nil {
		return nil, false, fmt.Errorf("mongo: read of lanes: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	size := 0
	for cur.Next(ctx) {
		if size += len(cur.Current); len(docs) == smallPass || size > smallPassBytes {
			return nil, false, nil
		}
		d, err := decode(cur.Current)
		if err != nil {
			return nil, false, err
		}
		docs = append(docs, d)
	}
	if err := cur.Err(); err != nil {
		return nil, false, fmt.Errorf("mongo: read of lanes: %w", err)
	}
	return docs, true, nil
}

func decode(raw bson.Raw) (doc, error) {
	m, at, err := decodeMessage(raw)
	return doc{m, at}, err
}

// add takes in a cursor; heap.Init follows.
func (m *merge) add(ctx context.Context, cur *mongo.Cursor) error {
	m.open = append(m.open, cur)
	if !cur.Next(ctx) {
		return cur.Err()
	}
	d, err := decode(cur.Current)
	if err != nil {
		return err
	}
	m.sources = append(m.sources, &source{cur: cur, head: d})
	return nil
}

// next gives the next document; nil at the end.
func (m *merge) next(ctx context.Context) (*schema.Message, place, error) {
	if len(m.small) > 0 {
		d := m.small[0]
		m.small[0] = doc{}
		m.small = m.small[1:]
		return d.m, d.at, nil
	}
	if len(m.sources) == 0 {
		return nil, place{}, nil
	}
	src := m.sources[0]
	d := src.head
	if src.cur.Next(ctx) {
		head, err := decode(src.cur.Current)
		if err != nil {
			return nil, place{}, err
		}
		src.head = head
		heap.Fix(&m.sources, 0)
	} else if err := src.cur.Err(); err != nil {
		return nil, place{}, fmt.Errorf("mongo: read of lanes: %w", err)
	} else {
		heap.Pop(&m.sources)
	}
	return d.m, d.at, nil
}

func (m *merge) close() {
	for _, c := range m.open {
		_ = c.Close(context.Background())
	}
	m.open, m.sources, m.small = nil, nil, nil
}
