package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// Handing back is decided in one guarded write of the session's own document: what
// goes back leaves the flight and stands in `leaving`. From then on it is on its way:
// into the group's Again, then its record's `group` becomes `left`, then it is taken
// out of `leaving`. Each can be done twice, and whoever claims the session finishes
// what he finds there before anything else. So a crash between any two loses nothing
// and gives nothing twice (G4), an older owner cannot decide it any more (promise 6),
// and what he still carries out was decided before.

// leavingDoc is a delivery that is on its way back to its group.
type leavingDoc struct {
	Group string  `bson:"group"`
	Left  leftDoc `bson:"left"`
}

// handBack gives to their groups what a session has in flight at QoS 1. Its records
// above the cursor's seq count as well: there are some where a session is ended that
// was not released, or whose last claims were refused (recordLane.fill).
func (s *Store) handBack(ctx context.Context, o schema.Owner) error {
	for {
		var d placeDoc
		err := s.c.cursor.FindOne(ctx, guard(o)).Decode(&d)
		if errors.Is(err, mongo.ErrNoDocuments) {
			return store.ErrSessionLost
		}
		if err != nil {
			return fmt.Errorf("mongo: read of cursor %q: %w", o.ClientID, err)
		}
		if len(d.Leaving) > 0 {
			if err := s.finishLeaving(ctx, &d); err != nil {
				return err
			}
			continue
		}
		cur := d.sessionCursor()
		records, err := s.readRecords(ctx, o, cur.Seq)
		if err != nil {
			return err
		}
		cur.Recover(records, nil, nil)
		leaving, rest, err := s.splitFlight(ctx, o, cur.Flight)
		if err != nil || len(leaving)+len(records) == 0 {
			return err
		}
		place := savePlace(store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: cur.After, Seq: cur.Seq, Flight: rest}})
		filter := append(place.filter, bson.E{Key: "leaving.0", Value: fields("$exists", false)})
		put := place.update.(bson.D)[0].Value.(bson.D)
		if len(leaving) > 0 {
			put = append(put, bson.E{Key: "leaving", Value: leaving})
		}
		_, err = s.c.cursor.UpdateOne(ctx, filter, fields("$set", put))
		if err != nil {
			return fmt.Errorf("mongo: handing back of %q: %w", o.ClientID, err)
		}
	}
}

// splitFlight tells what of a flight goes back to its group. QoS 2 stays
// [MQTT-4.8.2-4]; so does what is no group's any more, or another's of that name.
func (s *Store) splitFlight(ctx context.Context, o schema.Owner, flight []schema.Flight) ([]leavingDoc, []schema.Flight, error) {
	groups := map[string]*groupDoc{}
	var leaving []leavingDoc
	var rest []schema.Flight
	seqs := bson.A{}
	where := map[uint64]int{}
	for _, f := range flight {
		if f.Group == "" || f.QoS != 1 {
			rest = append(rest, f)
			continue
		}
		g, known := groups[f.Group]
		if !known {
			var err error
			if g, err = s.livingGroup(ctx, f.Group); err != nil {
				return nil, nil, err
			}
			groups[f.Group] = g
		}
		if g == nil || !g.Since.cursor().After(f.Mark) || len(g.Again)+len(leaving) >= maxAgain {
			rest = append(rest, f)
			continue
		}
		where[f.Seq] = len(leaving)
		seqs = append(seqs, int64(f.Seq))
		leaving = append(leaving, leavingDoc{f.Group, leftDoc{
			MessageID: bson.ObjectID(f.MessageID), Lane: int64(f.Mark.Lane), N: int64(f.Mark.N),
		}})
	}
	for part := range slices.Chunk(seqs, maxIDs) {
		cur, err := s.c.published.Find(ctx, fields("clientId", o.ClientID, "sid", int64(o.SID), "seq", fields("$in", part)),
			options.Find().SetProjection(fields("seq", 1)))
		if err != nil {
			return nil, nil, fmt.Errorf("mongo: read of records of %q: %w", o.ClientID, err)
		}
		var docs []recordDoc
		if err := cur.All(ctx, &docs); err != nil {
			return nil, nil, fmt.Errorf("mongo: read of records of %q: %w", o.ClientID, err)
		}
		for i := range docs {
			leaving[where[uint64(docs[i].Seq)]].Left.Was = docs[i].ID
		}
	}
	return leaving, rest, nil
}

// livingGroup reads the document of a group that has a member; nil: there is none.
func (s *Store) livingGroup(ctx context.Context, name string) (*groupDoc, error) {
	member, err := s.groupMember(ctx, name)
	if err != nil || member == nil {
		return nil, err
	}
	return s.readGroup(ctx, name)
}

// finishLeaving carries out what a session's document says is on its way back.
func (s *Store) finishLeaving(ctx context.Context, d *placeDoc) error {
	by := map[string][]leftDoc{}
	var names []string
	var models []mongo.WriteModel
	for _, l := range d.Leaving {
		if by[l.Group] == nil {
			names = append(names, l.Group)
		}
		by[l.Group] = append(by[l.Group], l.Left)
		models = append(models, leftRecord(l.Left.Was, l.Group))
	}
	for _, name := range names {
		if err := s.putAgain(ctx, name, by[name]); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(models, maxBatch) {
		if _, err := s.c.published.BulkWrite(ctx, part); err != nil {
			return fmt.Errorf("mongo: records left by %q: %w", d.ID, err)
		}
	}
	// Only what was read: a later owner may have more.
	_, err := s.c.cursor.UpdateOne(ctx, fields("_id", d.ID, "leaving", d.Leaving), fields("$unset", fields("leaving", "")))
	if err != nil {
		return fmt.Errorf("mongo: handing back of %q: %w", d.ID, err)
	}
	return nil
}

// leftRecord makes a record cease to be a claim. It is one no more for good.
func leftRecord(id bson.ObjectID, group string) mongo.WriteModel {
	return mongo.NewUpdateOneModel().SetFilter(fields("_id", id, "group", group)).
		SetUpdate(fields("$set", fields("left", group), "$unset", fields("group", "")))
}

// putAgain puts messages into a group's Again, if they are still its own. One that
// stands there by the same record stays as it is.
func (s *Store) putAgain(ctx context.Context, name string, left []leftDoc) error {
	for {
		d, err := s.readGroup(ctx, name)
		if err != nil || d == nil {
			return err
		}
		since, again := d.Since.cursor(), d.Again
		for _, l := range left {
			if since.After(l.mark()) && !slices.Contains(d.Again, l) {
				again = append(again, l)
			}
		}
		if len(again) == len(d.Again) {
			return nil
		}
		ok, err := s.changeGroup(ctx, d, "again", again)
		if err != nil || ok {
			return err
		}
	}
}

// endFormer finishes, under this claim's epoch, what the document of `cursor` that was
// marked says is still to be done: what an owner had decided to hand back; and, where
// it is that of a session that has ended, all of its end: what it had of its groups
// goes back, it leaves them, and then the document is the new session's. Cut anywhere,
// the next claim finds it again. false: superseded.
func (w *claimWalk) endFormer(ctx context.Context) (bool, error) {
	s, d := w.s, &w.place
	if d.SID == w.mine.SID {
		if len(d.Leaving) == 0 {
			return true, nil
		}
		return true, s.write(ctx, w.ask.ClientID, func(ctx context.Context) error { return s.finishLeaving(ctx, d) })
	}
	o := schema.Owner{ClientID: w.ask.ClientID, SID: uint64(d.SID), Epoch: uint64(w.mine.Epoch)}
	if len(w.waiting) > 0 {
		if _, ok, err := w.fence(ctx, o, w.cur.Seq); err != nil || !ok {
			return false, err
		}
	}
	err := s.write(ctx, w.ask.ClientID, func(ctx context.Context) error {
		err := s.handBack(ctx, o)
		if err == nil {
			err = s.sweepOthers(ctx, w.mine.owns())
		}
		if err == nil {
			err = w.begin(ctx, o)
		}
		// Done before its answer was lost: the document is the new session's.
		if errors.Is(err, store.ErrSessionLost) {
			err = s.c.cursor.FindOne(ctx, guard(w.mine.owns())).Decode(d)
		}
		if errors.Is(err, mongo.ErrNoDocuments) {
			return store.ErrSuperseded
		}
		return err
	})
	if errors.Is(err, store.ErrSuperseded) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w.cur, w.marked = d.sessionCursor(), d.Marked
	return true, nil
}

// begin makes the document of a session that has ended the new session's.
func (w *claimWalk) begin(ctx context.Context, former schema.Owner) error {
	err := w.s.c.cursor.FindOneAndUpdate(ctx, guard(former), mongo.Pipeline{
		fields("$set", w.fresh(func(_ string, fresh any) any { return fresh })),
		unset("shared", "leaving"),
	}, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&w.place)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return store.ErrSessionLost
	}
	return err
}
