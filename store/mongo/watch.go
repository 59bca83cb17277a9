package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"

	"rewindmq/store"
)

// watching is an open Watch.
type watching struct {
	s     *Store
	poke  chan struct{}
	queue map[string]store.Lost // guarded by watchers.mu
}

// Watch opens the watch over sessions claimed elsewhere, see store.Sessions. It
// stays open as long as the store.
func (s *Store) Watch(ctx context.Context) (store.Watch, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	w := &watching{s: s, poke: make(chan struct{}, 1), queue: map[string]store.Lost{}}
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	s.watch.list = append(s.watch.list, w)
	return w, nil
}

// Next waits for sessions that are no longer this node's.
func (w *watching) Next(ctx context.Context) ([]store.Lost, error) {
	for {
		if err := w.s.enter(ctx); err != nil {
			return nil, err
		}
		w.s.watch.mu.Lock()
		var out []store.Lost
		for _, l := range w.queue {
			out = append(out, l)
		}
		clear(w.queue)
		w.s.watch.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		select {
		case <-w.poke:
		case <-w.s.ended:
			return nil, store.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

const (
	// claimsEach is how often this node looks for claims of its sessions by others.
	claimsEach = 50 * time.Millisecond
	// claimsSlack is how long a claim may take from its stamp until a majority read
	// shows it, for that look. What takes longer is found by the whole look.
	claimsSlack = 500 * time.Millisecond
	// lanesEach is how often the lanes are read: a tail looks when one was opened or
	// retired.
	lanesEach = time.Second
	// wholeEach is how often all sessions of this node are looked at.
	wholeEach = 5 * time.Second
)

// control looks for claims: hints that a session is another's now. It asks by an
// index for what was claimed lately: that costs the server what there is of claims. A
// second change stream would cost it some microseconds for every document that
// anybody writes, for each node. A hint may come late, or never: the owner's writes are
// guarded.
func (s *Store) control() {
	var warned, lanes, whole time.Time
	from := s.Now()
	for s.life.Err() == nil {
		now := s.Now()
		var err error
		if since(lanes) >= lanesEach {
			lanes = time.Now()
			err = s.pollLanes(s.life)
		}
		if since(whole) >= wholeEach {
			whole = time.Now()
			err = errors.Join(err, s.pollOwned(s.life))
		}
		if claims := s.pollClaims(s.life, from.Add(-claimsSlack)); claims != nil {
			err = errors.Join(err, claims)
		} else {
			from = now
		}
		pause := claimsEach
		if err != nil && s.life.Err() == nil {
			pause = lanesEach
			if since(warned) > 5*time.Second {
				warned = time.Now()
				s.log.Warn("look for claims", zap.Error(err))
			}
		}
		if rest(s.life, pause) != nil {
			return
		}
	}
}

// pollClaims reads what others have claimed at a time or later. An epoch is not less
// than the server's milliseconds when it was claimed (claimWalk.raising).
func (s *Store) pollClaims(ctx context.Context, from time.Time) error {
	if s.owned.empty() {
		return nil
	}
	return s.pollSessions(ctx, fields("epoch", fields("$gte", from.UnixMilli()), "owner", fields("$ne", s.self.id())),
		options.Find().SetHint("epoch"))
}

// lose tells that a session was claimed elsewhere, if this node has it by an older
// claim. The owner may still write until the claimer has marked the cursor: it
// flushes, and releases.
func (s *Store) lose(clientID string, epoch uint64) {
	if s.owned.older(clientID, epoch) {
		s.watch.tell(store.Lost{ClientID: clientID, Epoch: epoch})
	}
}

// pollOwned reads the sessions that this node owns.
func (s *Store) pollOwned(ctx context.Context) error {
	for part := range slices.Chunk(s.owned.all(), 1000) {
		in := make(bson.A, 0, len(part))
		for _, o := range part {
			in = append(in, o.ClientID)
		}
		if err := s.pollSessions(ctx, fields("_id", fields("$in", in), "owner", fields("$ne", s.self.id())), options.Find()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) pollSessions(ctx context.Context, filter bson.D, o *options.FindOptionsBuilder) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Attempt)
	defer cancel()
	cur, err := s.c.session.Find(ctx, filter, o.SetProjection(fields("epoch", 1)))
	if err != nil {
		return fmt.Errorf("mongo: read of claims: %w", err)
	}
	defer func() { _ = cur.Close(context.WithoutCancel(ctx)) }()
	for cur.Next(ctx) {
		id, _ := cur.Current.Lookup("_id").StringValueOK()
		n, _ := cur.Current.Lookup("epoch").AsInt64OK()
		s.lose(id, uint64(n))
	}
	if err := cur.Err(); err != nil {
		return fmt.Errorf("mongo: read of claims: %w", err)
	}
	return nil
}

// pollLanes reads the lanes that may have changed.
func (s *Store) pollLanes(ctx context.Context) error {
	_, err := s.readLanes(ctx, fields("$or", bson.A{
		fields("_id", fields("$gt", int64(s.lanes.knownUpTo()))),
		fields("_id", fields("$in", s.lanes.open())),
	}))
	return err
}
