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

// A record with a group is the claim: the index {group, messageId} lets one in. What
// the index cannot know, whether the group has the message to give at all, is looked
// at before each attempt; a group moves over a message that nobody has claimed only
// where it has passed it.

// claimKey is what decides about a message of a group.
type claimKey struct {
	group   string
	message bson.ObjectID
}

// judgeClaims refuses the records whose message is not the group's to give, and gives
// the others. What a lost member left is made free.
func (r *recordLane) judgeClaims(sess *mongo.Session, items []recordItem) ([]recordItem, error) {
	var names, ids bson.A
	seen := map[string]bool{}
	for _, it := range items {
		if it.Group == "" {
			continue
		}
		if !seen[it.Group] {
			seen[it.Group] = true
			names = append(names, it.Group)
		}
		ids = append(ids, bson.ObjectID(it.MessageID))
	}
	if len(names) == 0 {
		return items, nil
	}
	ctx, cancel := context.WithTimeout(r.s.life, r.s.o.Attempt)
	defer cancel()
	ctx = mongo.NewSessionContext(ctx, sess)
	groups, err := r.s.readClaimGroups(ctx, names, ids)
	if err != nil {
		return items, err
	}
	list, err := r.s.readHolders(ctx, fields("group", fields("$in", names), "messageId", fields("$in", ids)))
	if err != nil {
		return items, err
	}
	holders := make(map[claimKey]bson.ObjectID, len(list))
	for _, h := range list {
		holders[claimKey{h.group, h.message}] = h.id
	}
	refused := map[int]bool{}
	var free []mongo.WriteModel
	for i, it := range items {
		if it.Group == "" {
			continue
		}
		g := groups[it.Group]
		is, held := holders[claimKey{it.Group, bson.ObjectID(it.MessageID)}]
		switch {
		case held && schema.ID(is) == it.ID: // sent again
		case g == nil:
			refused[i] = true
		case held && g.leftBy(is):
			free = append(free, leftRecord(is, it.Group))
		case held, !g.gives(it.Delivery):
			refused[i] = true
		}
	}
	if len(free) > 0 {
		if _, err := r.s.c.published.BulkWrite(ctx, free); err != nil {
			return items, fmt.Errorf("mongo: records left: %w", err)
		}
	}
	return r.refuse(items, refused), nil
}

// readClaimGroups reads of groups what decides about messages.
func (s *Store) readClaimGroups(ctx context.Context, names, ids bson.A) (map[string]*groupDoc, error) {
	cur, err := s.c.group.Find(ctx, fields("_id", fields("$in", names)), options.Find().SetProjection(fields(
		"after", 1, "again", ex("$filter", fields("input", "$again", "as", "e", "cond", ex("$in", "$$e.messageId", ids))))))
	if err != nil {
		return nil, fmt.Errorf("mongo: read of groups: %w", err)
	}
	var docs []groupDoc
	if err := cur.All(ctx, &docs); err != nil {
		return nil, fmt.Errorf("mongo: read of groups: %w", err)
	}
	groups := make(map[string]*groupDoc, len(docs))
	for i := range docs {
		groups[docs[i].ID] = &docs[i]
	}
	return groups, nil
}

// leftBy tells whether a record has left its message to the group (G2).
func (d *groupDoc) leftBy(record bson.ObjectID) bool {
	for i := range d.Again {
		if d.Again[i].Was == record {
			return true
		}
	}
	return false
}

// gives tells whether the group has a message to give that no record claims.
func (d *groupDoc) gives(m *schema.Delivery) bool {
	for i := range d.Again {
		if schema.ID(d.Again[i].MessageID) == m.MessageID {
			return true
		}
	}
	return d.After.cursor().After(m.Mark)
}

// refuse answers records with ErrClaimed, and gives the others.
func (r *recordLane) refuse(items []recordItem, out map[int]bool) []recordItem {
	if len(out) == 0 {
		return items
	}
	last := make(map[schema.Owner]int, len(items)) // of those that go in
	for i, it := range items {
		if !out[i] {
			last[it.Owner] = i
		}
	}
	kept := make([]recordItem, 0, len(items))
	for i, it := range items {
		if !out[i] {
			kept = append(kept, it)
			continue
		}
		*it.err = fmt.Errorf("%w: client %q, message %v", store.ErrClaimed, it.ClientID, it.MessageID)
		r.holes[it.Owner] = append(r.holes[it.Owner], it.Seq)
		if last[it.Owner] > i || len(r.holes[it.Owner]) >= maxRun {
			kept = r.fill(kept, it.Owner, it.Seq+1)
		}
	}
	return kept
}

// A record that was refused leaves a hole in its session's numbers, and the next one
// would lie beyond it: a claimer's fence, put at the first free number, would not be
// in its way (S11). So before the next one the hole is filled, by a record with
// neither message nor packet id, as a fence is.
//
// It may lie above the seq of the cursor that is saved then, if what should have
// followed was refused as well: a release takes it along (handBack).
//
// Invariant: a session's records have no hole before the last one.

// Holes behind the last one are kept in mind, at most maxRun of a session, and of
// maxHoles sessions before those are looked for that are not owned any more.
const (
	maxRun   = 256
	maxHoles = 10_000
)

// fill gives what has to go in before a record of a session: what fills the holes
// below its number, which may itself be one that was refused.
func (r *recordLane) fill(items []recordItem, o schema.Owner, seq uint64) []recordItem {
	if len(r.holes) > maxHoles {
		for o := range r.holes {
			if !r.s.owned.has(o) {
				delete(r.holes, o)
			}
		}
	}
	holes, ok := r.holes[o]
	if !ok {
		return items
	}
	delete(r.holes, o)
	for _, h := range holes {
		if h < seq {
			items = append(items, recordItem{&schema.Delivery{
				ID: schema.ID(bson.NewObjectID()), Owner: o, Seq: h, Host: r.s.o.Node, Created: r.s.Now(),
			}, new(error)})
		}
	}
	return items
}
