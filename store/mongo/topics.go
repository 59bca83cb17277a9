package mongo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
)

// topicBook is the catalog of topics: by it a wildcard is turned into the topics
// that it matches, so that a replay costs what it delivers and not what others
// published. It is read once, when a read first wants it, and kept by the tails.
//
// Invariant: while it is open, it holds the topic of every message that is not
// after upTo.
type topicBook struct {
	mu   sync.Mutex
	by   map[string]struct{}
	upTo schema.Cursor
	open bool
	full bool // there are more than maxBook: it is not used
	// collecting: it is being read; what tails pass meanwhile is kept here.
	collecting bool
	added      map[string]struct{}
	spans      map[*tail]span

	loading sync.Mutex
	loaded  time.Time // guarded by loading
}

// span is the way of a tail while the catalog was read.
type span struct{ from, to schema.Cursor }

// reloadEach bounds how often the catalog is read anew, where no tail keeps it.
const reloadEach = 10 * time.Second

const (
	// maxBook bounds the topics in memory.
	maxBook = 1_000_000
	// maxTopics is up to how many topics the server merges in one query.
	maxTopics = 200
	// maxGroups bounds the queries of one read.
	maxGroups = 50
	// fewMessages are read by lanes, whatever the filter.
	fewMessages = 2000
)

// passed takes in what a tail has yielded on its way from one cursor to another.
func (b *topicBook) passed(t *tail, from, to schema.Cursor, topics []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.collecting && len(b.added) <= maxBook {
		for _, name := range topics {
			b.added[name] = struct{}{}
		}
		if old, ok := b.spans[t]; ok {
			from = old.from
		}
		b.spans[t] = span{from, to}
	}
	if !b.open || b.full {
		return
	}
	for _, t := range topics {
		b.by[t] = struct{}{}
	}
	if b.full = len(b.by) > maxBook; b.full {
		b.by = nil
		return
	}
	if b.upTo.Covers(from) {
		b.upTo = b.upTo.Clone()
		b.upTo.Merge(to)
	}
}

// match gives the topics that filters match, if the book is complete up to a
// cursor.
func (b *topicBook) match(filters []string, upTo schema.Cursor) ([]string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open || b.full || !b.upTo.Covers(upTo) {
		return nil, false
	}
	var out []string
	for t := range b.by {
		for _, f := range filters {
			if schema.Match(f, t) {
				out = append(out, t)
				break
			}
		}
	}
	slices.Sort(out)
	return out, true
}

// loadTopics reads the catalog, in one snapshot with the cursor that it is
// complete for (T13).
func (s *Store) loadTopics(ctx context.Context) error {
	b := &s.topics
	b.loading.Lock()
	defer b.loading.Unlock()
	if !b.loaded.IsZero() && since(b.loaded) < reloadEach {
		return nil
	}
	b.collect(true)
	defer b.collect(false)
	at, err := s.fresh.time(ctx)
	if err != nil {
		return err
	}
	snap, err := s.snapshotAt(ctx, s.client, at)
	if err != nil {
		return err
	}
	defer snap.end()
	upTo, err := s.headIn(snap)
	if err != nil {
		return err
	}
	// The group follows {topic, ts} from one topic to the next.
	cur, err := s.c.message.Aggregate(snap.ctx, mongo.Pipeline{
		{{Key: "$sort", Value: fields("topic", 1, "ts", 1)}},
		{{Key: "$group", Value: fields("_id", "$topic")}},
		{{Key: "$limit", Value: maxBook + 1}},
	}, options.Aggregate().SetHint("topic_ts"))
	if err != nil {
		return fmt.Errorf("mongo: catalog of topics: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	by := map[string]struct{}{}
	for cur.Next(snap.ctx) {
		if t, ok := cur.Current.Lookup("_id").StringValueOK(); ok {
			by[t] = struct{}{}
		}
	}
	if err := cur.Err(); err != nil {
		return fmt.Errorf("mongo: catalog of topics: %w", err)
	}
	b.loaded = time.Now()
	b.fill(upTo, by)
	return nil
}

func (b *topicBook) collect(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.collecting, b.added, b.spans = on, nil, nil
	if on {
		b.added, b.spans = map[string]struct{}{}, map[*tail]span{}
	}
}

// fill opens the book with what was read, and with what tails have passed since
// they were where the snapshot had been already.
func (b *topicBook) fill(upTo schema.Cursor, by map[string]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for t := range b.added {
		by[t] = struct{}{}
	}
	reached := upTo.Clone()
	for _, sp := range b.spans {
		if upTo.Covers(sp.from) {
			reached.Merge(sp.to)
		}
	}
	b.open, b.full, b.upTo, b.by = true, len(by) > maxBook, reached, by
}

// wanted turns filters into topics, where reading by topic is cheaper than by
// lanes. messages is about how many there are in the lanes' ranges.
func (s *Store) wanted(ctx context.Context, filters []string, upTo schema.Cursor, messages uint64) ([]string, bool, error) {
	if messages <= fewMessages {
		return nil, false, nil
	}
	if topics, ok := exactTopics(filters); ok {
		return topics, true, nil
	}
	topics, ok := s.topics.match(filters, upTo)
	if !ok {
		if err := s.loadTopics(ctx); err != nil {
			return nil, false, err
		}
		if topics, ok = s.topics.match(filters, upTo); !ok {
			return nil, false, nil
		}
	}
	// A seek for each topic, against a step for each message.
	if len(topics) > maxTopics*maxGroups || uint64(len(topics))*4 > messages {
		return nil, false, nil
	}
	return topics, true, nil
}

// topicMerge reads by topic, sorted by ts alone: a longer sort key would block the
// server. What has one ts is ordered here; several queries are merged.
type topicMerge struct {
	s    *Store
	from []*topicGroup
	same []doc // of one ts, in order
}

type topicGroup struct {
	cur  *mongo.Cursor
	head *doc // nil: at its end
}

func (s *Store) openTopics(ctx context.Context, topics []string, bound bson.Timestamp) (*topicMerge, error) {
	t := &topicMerge{s: s}
	for part := range slices.Chunk(topics, maxTopics) {
		in := make(bson.A, 0, len(part))
		for _, name := range part {
			in = append(in, name)
		}
		cur, err := s.c.message.Find(ctx, fields("topic", fields("$in", in), "ts", fields("$gte", bound)),
			options.Find().SetSort(fields("ts", 1)).SetHint("topic_ts"))
		if err == nil {
			g := &topicGroup{cur: cur}
			t.from = append(t.from, g)
			err = t.advance(ctx, g)
		}
		if err != nil {
			t.close()
			return nil, fmt.Errorf("mongo: read by topic: %w", err)
		}
	}
	return t, nil
}

// advance takes the next document of a query that is in a lane of this log:
// foreign inserts have no place yet, and history lies before every cursor.
func (t *topicMerge) advance(ctx context.Context, g *topicGroup) error {
	g.head = nil
	for g.cur.Next(ctx) {
		d, err := decode(g.cur.Current)
		if err != nil {
			return err
		}
		if mine, _ := t.s.lanes.known(d.at.lane); d.at.has && mine {
			g.head = &d
			return nil
		}
	}
	return g.cur.Err()
}

func (t *topicMerge) next(ctx context.Context) (*schema.Message, place, error) {
	if len(t.same) == 0 {
		if err := t.fill(ctx); err != nil || len(t.same) == 0 {
			return nil, place{}, err
		}
	}
	d := t.same[0]
	t.same = t.same[1:]
	return d.m, d.at, nil
}

// fill takes all documents of the next ts.
func (t *topicMerge) fill(ctx context.Context) error {
	t.same = nil
	ts, found := uint64(0), false
	for _, g := range t.from {
		if g.head != nil && (!found || g.head.m.TS < ts) {
			ts, found = g.head.m.TS, true
		}
	}
	for _, g := range t.from {
		for found && g.head != nil && g.head.m.TS == ts {
			t.same = append(t.same, *g.head)
			if err := t.advance(ctx, g); err != nil {
				return fmt.Errorf("mongo: read by topic: %w", err)
			}
		}
	}
	slices.SortFunc(t.same, func(a, b doc) int { return a.before(&b) })
	return nil
}

func (t *topicMerge) close() {
	for _, g := range t.from {
		_ = g.cur.Close(context.Background())
	}
}
