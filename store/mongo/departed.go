package mongo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// departed tells of former owners that never let go, and that no keeper has judged: for
// how long their leases are over. Their clients have been without a connection at least
// since then, so a will whose delay is over by now is due, although no release has said
// when it began [MQTT-3.1.3-9]. By epoch; those whose leases go on are left out.
//
// A lease alone proves nothing: when the store comes back after it was away, everybody's
// is over, and a client that moves from one living node to another at that moment has
// left no will. So this node first has to have been heard for long enough that a node
// that lives has been heard as well. Only the clients of a node that died wait for that,
// and only where it decides something.
func (w *claimWalk) departed(ctx context.Context) (map[int64]time.Duration, error) {
	ask := map[int64]time.Duration{} // the shortest delay of each epoch
	for i := range w.mine.Wills {
		d := &w.mine.Wills[i]
		if d.Delay == 0 || d.At != nil || d.Due || d.End != nil {
			continue
		}
		delay := time.Duration(d.Delay) * time.Second
		if was, ok := ask[d.Epoch]; !ok || delay < was {
			ask[d.Epoch] = delay
		}
	}
	var owners []pastDoc
	for _, p := range w.waiting {
		if _, ok := ask[p.Epoch]; ok {
			owners = append(owners, p)
		}
	}
	over, err := w.leasesOver(ctx, bson.Timestamp{}, owners)
	if err != nil {
		return nil, err
	}
	decides := slices.ContainsFunc(owners, func(p pastDoc) bool { return over[p.Epoch] >= ask[p.Epoch] })
	if !decides {
		return nil, nil
	}
	for !w.s.heard() {
		if err := rest(ctx, waitRest); err != nil {
			return nil, err
		}
	}
	at, err := w.s.fresh.time(ctx)
	if err != nil {
		return nil, err
	}
	return w.leasesOver(ctx, at, owners)
}

// leasesOver tells for how long the leases of these owners are over, by the server's
// clock and not before at.
func (w *claimWalk) leasesOver(ctx context.Context, at bson.Timestamp, owners []pastDoc) (map[int64]time.Duration, error) {
	if len(owners) == 0 {
		return nil, nil
	}
	in := bson.A{}
	for _, p := range owners {
		in = append(in, p.Owner)
	}
	var nodes []struct {
		ID   bson.ObjectID `bson:"_id"`
		Over int64         `bson:"over"` // ms
	}
	err := w.s.inSession(ctx, at, func(ctx context.Context) error {
		cur, err := w.s.c.node.Find(ctx, fields("_id", fields("$in", in), "beat", fields("$exists", true)),
			options.Find().SetProjection(fields("over", ex("$subtract", "$$NOW", ex("$add", "$beat", "$lease")))))
		if err != nil {
			return err
		}
		return cur.All(ctx, &nodes)
	})
	if err != nil {
		return nil, fmt.Errorf("mongo: read of nodes: %w", err)
	}
	over := map[int64]time.Duration{}
	for _, n := range nodes {
		for _, p := range owners {
			if p.Owner == n.ID && n.Over > 0 {
				over[p.Epoch] = time.Duration(n.Over) * time.Millisecond
			}
		}
	}
	return over, nil
}

// beginDelays has the delays of wills begin when the leases of their nodes were over.
func (s *Store) beginDelays(over map[int64]time.Duration) bson.D {
	var branches []any
	for epoch, ago := range over {
		branches = append(branches, branch(
			ex("$and", ex("$eq", "$$w.epoch", epoch), absent("$$w.at")),
			ex("$mergeObjects", "$$w", fields("at", ex("$add", ex("$subtract", s.now(), ago.Milliseconds()), seconds("$$w.delay"))))))
	}
	if len(branches) == 0 {
		return mapWills("$wills", "$$w")
	}
	return mapWills("$wills", choose("$$w", branches...))
}

// heardFor is how long a node that lives may take until it is heard again after the
// store was away, in parts of a lease: two heartbeats.
const heardFor = 2.0 / 5

// heard tells whether this node's heartbeats have gone through for so long that those of
// every other node that lives have, too.
func (s *Store) heard() bool {
	return since(*s.self.steady.Load()) >= time.Duration(heardFor*float64(s.o.Lease))
}
