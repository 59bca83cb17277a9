package mongo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// groupDoc is a document of `group`: where a group of shared subscriptions stands.
//
// Who its members are it does not say: a member is a document of `subscription`
// with `group`, of a session that is there (groupMember). So a SUBSCRIBE, an
// UNSUBSCRIBE and the end of a session are one write each, as ever, and there is
// no count that could drift. A document without a member is a leftover: it counts
// as absent, and the next first member begins it anew.
//
// Invariant: whoever changes the document gives it a new Rev, and who decides by
// what he has read of it writes only where that is unchanged. So an attempt that
// lands late changes nothing, or what is true for ever.
type groupDoc struct {
	ID    string        `bson:"_id"`
	Rev   bson.ObjectID `bson:"rev"`
	Since cursorDoc     `bson:"since"`
	After cursorDoc     `bson:"after"`
	Again []leftDoc     `bson:"again"`
}

// leftDoc is a message that a lost member has left. It stands for itself only as
// long as no record claims the message but those that have left it: so it goes with
// the insert of the next record, and taking it out of the list is a matter of order.
type leftDoc struct {
	MessageID bson.ObjectID `bson:"messageId"`
	Lane      int64         `bson:"lane"`
	N         int64         `bson:"n"`
	Was       bson.ObjectID `bson:"was"` // the record that claimed it; zero: it is gone
}

func (d *leftDoc) mark() schema.Mark {
	return schema.Mark{Lane: schema.Lane(d.Lane), N: uint64(d.N)}
}

func (d *leftDoc) ref() store.Ref { return store.Ref{ID: schema.ID(d.MessageID), Mark: d.mark()} }

const (
	// maxAgain bounds what a group's document holds of what was left: about 5 MiB.
	// What lies beyond stays with the session that had it.
	maxAgain = 50_000
	// maxIDs bounds the ids that are looked for in one command.
	maxIDs = 1000
)

// OpenGroup tells where a group stands, see store.Groups. All of it is read in one
// snapshot that is younger than the call.
func (s *Store) OpenGroup(ctx context.Context, name string) (store.Group, error) {
	if err := s.enter(ctx); err != nil {
		return store.Group{}, err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	began := time.Now()
	g, err := s.openGroup(ctx, name)
	if s.o.Metrics != nil {
		s.o.Metrics.Operation("open_group", time.Since(began))
	}
	if errors.Is(err, store.ErrNoGroup) {
		return g, err
	}
	return g, s.failed(ctx, "open_group", err)
}

func (s *Store) openGroup(ctx context.Context, name string) (store.Group, error) {
	at, err := s.fresh.time(ctx)
	if err != nil {
		return store.Group{}, err
	}
	snap, err := s.snapshotAt(ctx, s.client, at)
	if err != nil {
		return store.Group{}, err
	}
	defer snap.end()
	since, nodes, err := s.groupNodes(snap.ctx, name)
	if err != nil {
		return store.Group{}, err
	}
	g := store.Group{Nodes: nodes, Self: schema.ID(s.self.id())}
	if since == nil {
		return store.Group{}, fmt.Errorf("%w: %q", store.ErrNoGroup, name)
	}
	d, err := s.readGroup(snap.ctx, name)
	if err != nil {
		return store.Group{}, err
	}
	if d == nil {
		// A member whose node died before it had begun the group.
		if err := s.beginGroup(ctx, name, *since); err != nil {
			return store.Group{}, err
		}
		g.After = since.cursor()
		return g, nil
	}
	g.After = d.After.cursor()
	if g.Claimed, err = s.readClaimed(snap.ctx, name, g.After); err != nil {
		return store.Group{}, err
	}
	dead, err := s.deadAgain(snap.ctx, name, d.Again, maxAgain)
	if err != nil {
		return store.Group{}, err
	}
	seen := map[bson.ObjectID]bool{}
	for i := range d.Again {
		if e := &d.Again[i]; !dead[e.MessageID] && !seen[e.MessageID] {
			seen[e.MessageID] = true
			g.Again = append(g.Again, e.ref())
		}
	}
	slices.SortFunc(g.Again, func(a, b store.Ref) int {
		return cmp.Or(cmp.Compare(a.Mark.Lane, b.Mark.Lane), cmp.Compare(a.Mark.N, b.Mark.N))
	})
	return g, nil
}

// readGroup reads a group's document; nil: there is none.
func (s *Store) readGroup(ctx context.Context, name string) (*groupDoc, error) {
	var d groupDoc
	err := s.c.group.FindOne(ctx, fields("_id", name)).Decode(&d)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mongo: read of group %q: %w", name, err)
	}
	return &d, nil
}

// readClaimed reads which messages after a group's place have been claimed: a seek
// for each lane.
func (s *Store) readClaimed(ctx context.Context, name string, after schema.Cursor) ([]store.Ref, error) {
	in := bson.A{fields("group", name, "lane", fields("$gt", int64(after.Newest())))}
	for _, m := range after.Marks() {
		in = append(in, fields("group", name, "lane", int64(m.Lane), "n", fields("$gt", int64(m.N))))
	}
	cur, err := s.c.published.Find(ctx, fields("$or", in), options.Find().SetHint("group_lane_n").
		SetProjection(fields("_id", 0, "messageId", 1, "lane", 1, "n", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: claims of group %q: %w", name, err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var out []store.Ref
	for cur.Next(ctx) {
		var d leftDoc
		if err := cur.Decode(&d); err != nil {
			return nil, fmt.Errorf("mongo: claims of group %q: %w", name, err)
		}
		out = append(out, d.ref())
	}
	if err := cur.Err(); err != nil {
		return nil, fmt.Errorf("mongo: claims of group %q: %w", name, err)
	}
	return out, nil
}

// deadAgain tells which of the first messages of a group's Again, at most limit, have
// been claimed since, by another record than those that left them.
func (s *Store) deadAgain(ctx context.Context, name string, again []leftDoc, limit int) (map[bson.ObjectID]bool, error) {
	dead, was := map[bson.ObjectID]bool{}, make(map[bson.ObjectID]bool, len(again))
	for i := range again {
		was[again[i].Was] = true
	}
	for part := range slices.Chunk(again[:min(len(again), limit)], maxIDs) {
		ids := make(bson.A, len(part))
		for i := range part {
			ids[i] = part[i].MessageID
		}
		holders, err := s.readHolders(ctx, fields("group", name, "messageId", fields("$in", ids)))
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			if !was[h.id] {
				dead[h.message] = true
			}
		}
	}
	return dead, nil
}

// holder is the record that claims a message for a session.
type holder struct {
	group       string
	message, id bson.ObjectID
}

func (s *Store) readHolders(ctx context.Context, filter bson.D) ([]holder, error) {
	cur, err := s.c.published.Find(ctx, filter, options.Find().SetHint("group_messageId").
		SetProjection(fields("group", 1, "messageId", 1)))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of claims: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	var out []holder
	for cur.Next(ctx) {
		var h holder
		h.group, _ = cur.Current.Lookup("group").StringValueOK()
		h.message, _ = cur.Current.Lookup("messageId").ObjectIDOK()
		h.id, _ = cur.Current.Lookup("_id").ObjectIDOK()
		out = append(out, h)
	}
	if err := cur.Err(); err != nil {
		return nil, fmt.Errorf("mongo: read of claims: %w", err)
	}
	return out, nil
}

// SaveGroup moves a group forward, see store.Groups. A vector's merge is not the
// server's to make: it is made here, and stored where the document is still the
// one that was read.
func (s *Store) SaveGroup(ctx context.Context, name string, after schema.Cursor, passed []schema.ID) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	began := time.Now()
	err := s.saveGroup(ctx, name, after, passed)
	if s.o.Metrics != nil {
		s.o.Metrics.Operation("save_group", time.Since(began))
	}
	return s.failed(ctx, "save_group", err)
}

func (s *Store) saveGroup(ctx context.Context, name string, after schema.Cursor, passed []schema.ID) error {
	for {
		d, err := s.readGroup(ctx, name)
		if err != nil || d == nil {
			return err
		}
		next := d.After.cursor()
		moves := !next.Covers(after)
		next.Merge(after)
		// What has been claimed goes with it. It is given in order: from the front.
		dead, err := s.deadAgain(ctx, name, d.Again, maxIDs)
		if err != nil {
			return err
		}
		again := slices.DeleteFunc(slices.Clone(d.Again), func(e leftDoc) bool {
			return dead[e.MessageID] || slices.Contains(passed, schema.ID(e.MessageID))
		})
		if !moves && len(again) == len(d.Again) {
			return nil
		}
		ok, err := s.changeGroup(ctx, d, "after", newCursorDoc(next), "again", again)
		if err != nil || ok {
			return err
		}
	}
}

// changeGroup sets fields of a group's document, if it is still the one that was
// read.
func (s *Store) changeGroup(ctx context.Context, d *groupDoc, kv ...any) (bool, error) {
	res, err := s.c.group.UpdateOne(ctx, fields("_id", d.ID, "rev", d.Rev),
		bson.D{{Key: "$set", Value: fields(append(kv, "rev", bson.NewObjectID())...)}})
	if err != nil {
		return false, fmt.Errorf("mongo: change of group %q: %w", d.ID, err)
	}
	return res.MatchedCount > 0, nil
}
