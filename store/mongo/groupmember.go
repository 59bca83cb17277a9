package mongo

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// A group is there while it has a member, and that is written in one place only:
// the member's document of `subscription`. What is done to the group's own document
// beside it can be cut anywhere:
//
//   - A first member begins the document, stores its subscription, and gives the
//     document a new rev (joinGroup, PutSubscriptions, seal).
//   - Who has removed a subscription removes the document, if he sees no member and
//     its rev is the one that he had read before he looked (leaveGroup).
//
// So of a joiner and a leaver that meet, either the leaver's look sees the
// subscription, or his removal comes before the seal, which then begins the document
// anew, or it finds another rev. A joiner that dies between leaves a member without
// a document: the next OpenGroup begins it. A leaver that dies leaves a document
// without a member: OpenGroup does not see it, the next joiner begins it anew, and
// the keeper sweeps it.

// membersOf finds the members of a group: a subscription counts if its session is
// there, and unless a claim has taken it for one that landed late (placeDoc.Marked).
func (s *Store) membersOf(name string) mongo.Pipeline {
	n := s.o.Collections
	join := func(from string, project ...any) bson.D {
		return fields("$lookup", fields("from", from, "localField", "clientId", "foreignField", "_id", "as", from,
			"pipeline", bson.A{fields("$project", fields(project...))}))
	}
	first := func(field string) any { return ex("$first", "$"+field) }
	return mongo.Pipeline{
		fields("$match", fields("group", name)),
		join(n.Session, "sid", 1, "owner", 1),
		fields("$match", fields("$expr", ex("$eq", first(n.Session+".sid"), "$sid"))),
		join(n.Cursor, "sid", 1, "marked", 1),
		fields("$match", fields("$expr", ex("$or",
			ex("$ne", first(n.Cursor+".sid"), "$sid"),
			ex("$lte", ex("$ifNull", first(n.Cursor+".marked"), 0), "$epoch")))),
	}
}

// groupMember gives the Since of a member of the group; nil: it has none.
func (s *Store) groupMember(ctx context.Context, name string) (*cursorDoc, error) {
	cur, err := s.c.subscription.Aggregate(ctx, append(s.membersOf(name),
		fields("$limit", 1), fields("$project", fields("since", 1))), options.Aggregate().SetHint("group"))
	if err != nil {
		return nil, fmt.Errorf("mongo: members of group %q: %w", name, err)
	}
	var docs []struct {
		Since cursorDoc `bson:"since"`
	}
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: members of group %q: %w", name, err)
	}
	if len(docs) == 0 {
		return nil, nil
	}
	return &docs[0].Since, nil
}

// groupNodes gives the Since of a member of the group, nil: it has none; and the nodes
// on which members are connected.
func (s *Store) groupNodes(ctx context.Context, name string) (*cursorDoc, []schema.ID, error) {
	cur, err := s.c.subscription.Aggregate(ctx, append(s.membersOf(name),
		fields("$group", fields("_id", ex("$first", "$"+s.o.Collections.Session+".owner"), "since", ex("$first", "$since"))),
		fields("$sort", fields("_id", 1))), options.Aggregate().SetHint("group"))
	if err != nil {
		return nil, nil, fmt.Errorf("mongo: members of group %q: %w", name, err)
	}
	var docs []struct {
		Owner *bson.ObjectID `bson:"_id"`
		Since cursorDoc      `bson:"since"`
	}
	if err := cur.All(ctx, &docs); err != nil {
		return nil, nil, fmt.Errorf("mongo: members of group %q: %w", name, err)
	}
	if len(docs) == 0 {
		return nil, nil, nil
	}
	var nodes []schema.ID
	for i := range docs {
		if docs[i].Owner != nil {
			nodes = append(nodes, schema.ID(*docs[i].Owner))
		}
	}
	return &docs[0].Since, nodes, nil
}

// joinGroup sees to it that the group's document speaks for the group, before the
// subscription is stored: one without a member is begun anew (G3).
//
// Two that are first at once may begin it one after the other. That loses nothing:
// the later one's Since was read before the earlier one's SUBACK left.
func (s *Store) joinGroup(ctx context.Context, name string, since cursorDoc) error {
	for {
		d, err := s.readGroup(ctx, name)
		if err != nil {
			return err
		}
		if d == nil {
			return s.beginGroup(ctx, name, since)
		}
		member, err := s.groupMember(ctx, name)
		if err != nil || member != nil {
			return err
		}
		ok, err := s.changeGroup(ctx, d, "since", since, "after", since, "again", bson.A{})
		if err != nil || ok {
			return err
		}
	}
}

// beginGroup inserts a group's document, unless there is one.
func (s *Store) beginGroup(ctx context.Context, name string, since cursorDoc) error {
	_, err := s.c.group.UpdateOne(ctx, fields("_id", name), bson.D{
		{Key: "$setOnInsert", Value: fields("since", since, "after", since, "again", bson.A{}, "rev", bson.NewObjectID())},
	}, options.UpdateOne().SetUpsert(true))
	if mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mongo: beginning of group %q: %w", name, err)
	}
	return nil
}

// sealGroup follows the storing of a subscription: see above.
func (s *Store) sealGroup(ctx context.Context, name string, since cursorDoc) error {
	for {
		_, err := s.c.group.UpdateOne(ctx, fields("_id", name), bson.D{
			{Key: "$set", Value: fields("rev", bson.NewObjectID())},
			{Key: "$setOnInsert", Value: fields("since", since, "after", since, "again", bson.A{})},
		}, options.UpdateOne().SetUpsert(true))
		if mongo.IsDuplicateKeyError(err) && !hasWriteConcernError(err) {
			continue // somebody else has begun it
		}
		if err != nil {
			return fmt.Errorf("mongo: joining group %q: %w", name, err)
		}
		return nil
	}
}

// leaveGroup follows the removal of a subscription: the group goes with the last
// one (G3).
func (s *Store) leaveGroup(ctx context.Context, name string) error {
	for {
		d, err := s.readGroup(ctx, name)
		if err != nil || d == nil {
			return err
		}
		member, err := s.groupMember(ctx, name)
		if err != nil || member != nil {
			return err
		}
		res, err := s.c.group.DeleteOne(ctx, fields("_id", name, "rev", d.Rev))
		if err != nil {
			return fmt.Errorf("mongo: end of group %q: %w", name, err)
		}
		if res.DeletedCount > 0 {
			return nil
		}
	}
}

func isShared(filter string) bool {
	_, shared := schema.CutShare(filter)
	return shared
}

// joining gives the shared subscriptions of w by which its session becomes a member
// of a group, and not those that it has already.
func (s *Store) joining(ctx context.Context, w *store.PutSubscriptions) ([]*schema.Subscription, error) {
	var subs []*schema.Subscription
	topics := bson.A{}
	for i := range w.Subscriptions {
		if sub := &w.Subscriptions[i]; isShared(sub.Filter) {
			subs, topics = append(subs, sub), append(topics, sub.Filter)
		}
	}
	if len(subs) == 0 {
		return nil, nil
	}
	has, err := distinct(ctx, s.c.subscription, "group", fields("clientId", w.ClientID, "topic", fields("$in", topics),
		"sid", int64(w.SID), "epoch", int64(w.Epoch)), options.Distinct())
	if err != nil {
		return nil, fmt.Errorf("mongo: groups of %q: %w", w.ClientID, err)
	}
	there := map[string]bool{}
	for _, v := range has {
		name, _ := v.StringValueOK()
		there[name] = true
	}
	out := subs[:0]
	for _, sub := range subs {
		if !there[sub.Filter] {
			out = append(out, sub)
		}
	}
	return out, nil
}

// sweepGroups removes the documents of groups without a subscription: a node died
// between the two.
func (s *Store) sweepGroups(ctx context.Context) error {
	cur, err := s.c.group.Aggregate(ctx, mongo.Pipeline{
		fields("$project", fields("_id", 1)),
		fields("$lookup", fields("from", s.o.Collections.Subscription, "localField", "_id", "foreignField", "group", "as", "members",
			"pipeline", bson.A{fields("$limit", 1), fields("$project", fields("_id", 1))})),
		fields("$match", fields("members", bson.A{})),
	})
	if err != nil {
		return fmt.Errorf("mongo: groups without members: %w", err)
	}
	var docs []struct {
		Name string `bson:"_id"`
	}
	if err := cur.All(ctx, &docs); err != nil {
		return fmt.Errorf("mongo: groups without members: %w", err)
	}
	for _, d := range docs {
		if err := s.leaveGroup(ctx, d.Name); err != nil {
			return err
		}
	}
	return nil
}
