package storetest

import (
	"context"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// walk is a claim on its way.
type walk struct {
	*Claim
	step Step // a wait that is not yet over
	over bool
	told bool
}

// Claim claims sessions, see store.Sessions.
func (s *Memory) Claim(ctx context.Context, claims []store.Claim) []store.Claimed {
	out := make([]store.Claimed, len(claims))
	fail := func(err error) []store.Claimed {
		for i := range out {
			if out[i].Err == nil && out[i].Epoch == 0 {
				out[i].Err = err
			}
		}
		return out
	}
	if err := s.enter(ctx); err != nil {
		return fail(err)
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return fail(s.fail)
	}
	walks := make([]*walk, len(claims))
	for i, c := range claims {
		walks[i] = &walk{Claim: NewClaim(s.node, c, s.m.NewID(), s.opt.Wait)}
	}
	hurry := func() {
		for _, w := range walks {
			w.Hurry()
		}
	}
	if s.opt.Wait == 0 {
		hurry()
	} else {
		timer := time.AfterFunc(s.opt.Wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			hurry()
			s.changed.Broadcast()
		})
		defer timer.Stop()
		defer s.wakeAt(ctx)()
	}
	for s.state == stateRunning {
		open := 0
		for i, w := range walks {
			if !w.over && s.advance(w) {
				out[i] = w.Claimed()
			}
			if !w.over {
				open++
			}
		}
		if open == 0 {
			return out
		}
		if ctx.Err() != nil {
			hurry() // the epoch is raised: the walk goes to its end
			continue
		}
		s.changed.Wait()
	}
	return fail(store.ErrClosed)
}

// advance goes on with a claim until it waits or is over.
func (s *Memory) advance(w *walk) (over bool) {
	var a Answer
	if w.step.do != nil {
		a = w.step.Do(s.m)
	}
	for {
		step, more := w.Next(a)
		if o, nodes, ok := w.Raised(); ok && !w.told {
			w.told = true
			s.tellNodes(w.ask.node, o, nodes)
		}
		w.step, w.over = step, !more
		if !more || step.Waits() {
			s.changed.Broadcast()
			return w.over
		}
		a = step.Do(s.m)
	}
}

// tellNodes tells the nodes of a session that `by` has claimed it.
func (s *Memory) tellNodes(by Node, o schema.Owner, nodes []Node) {
	for _, n := range nodes {
		if other := s.nodes[n]; other != nil && n != by {
			other.lose(store.Lost{ClientID: o.ClientID, Epoch: o.Epoch})
		}
	}
}

func (s *Memory) lose(l store.Lost) {
	for _, w := range s.watchers {
		w.queue = append(w.queue, l)
	}
	s.changed.Broadcast()
}

// watching is an open Watch. Its queue holds at most what was claimed elsewhere
// since the last Next.
type watching struct {
	s     *Memory
	queue []store.Lost
}

// Watch opens a stream, see store.Sessions. It stays open as long as the Memory.
func (s *Memory) Watch(ctx context.Context) (store.Watch, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	w := &watching{s: s}
	s.watchers = append(s.watchers, w)
	return w, s.fail
}

func (w *watching) Next(ctx context.Context) ([]store.Lost, error) {
	if err := w.s.enterWhen(ctx, func() bool { return len(w.queue) > 0 }); err != nil {
		return nil, err
	}
	defer w.s.mu.Unlock()
	out := w.queue
	w.queue = nil
	return out, nil
}

// enterWrite is enter for writes of sessions.
func (s *Memory) enterWrite(ctx context.Context) error {
	if err := s.enterWhen(ctx, func() bool { return !s.hold }); err != nil {
		return err
	}
	if err := s.fail; err != nil {
		s.mu.Unlock()
		return err
	}
	return nil
}

// Write carries out writes, see store.Sessions.
func (s *Memory) Write(ctx context.Context, writes []store.Write) []error {
	errs := make([]error, len(writes))
	if err := s.enterWrite(ctx); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	defer s.mu.Unlock()
	for i, w := range writes {
		switch w.(type) {
		case store.TakeOutWill, store.Release: // judged by the write itself
		default:
			if !s.m.Owns(store.OwnerOf(w)) {
				errs[i] = store.ErrSessionLost
				continue
			}
		}
		errs[i] = s.m.Write(w)
	}
	s.changed.Broadcast()
	return errs
}

// Record stores records, see store.Deliveries.
func (s *Memory) Record(ctx context.Context, batch []schema.Delivery) []error {
	if err := s.enterWrite(ctx); err != nil {
		errs := make([]error, len(batch))
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	defer s.mu.Unlock()
	errs := make([]error, len(batch))
	mine, at := make([]schema.Delivery, 0, len(batch)), make([]int, 0, len(batch))
	for i := range batch {
		if !s.m.Owns(batch[i].Owner) {
			errs[i] = store.ErrSessionLost
			continue
		}
		mine, at = append(mine, batch[i]), append(at, i)
	}
	for i, err := range s.m.RecordBatch(mine) {
		errs[at[i]] = err
	}
	s.changed.Broadcast()
	return errs
}

// DueWills decides wills, see store.Keeper. It first finishes the sessions of
// nodes that were killed, as a keeper does.
func (s *Memory) DueWills(ctx context.Context, limit int) ([]store.DueWill, error) {
	if err := s.enterWrite(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	s.finishOrphans()
	return s.m.DueWills(limit), nil
}

// EndExpired ends sessions, see store.Keeper.
func (s *Memory) EndExpired(ctx context.Context, limit int) ([]schema.Owner, error) {
	if err := s.enterWrite(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.m.EndExpired(limit), nil
}

// Counts counts, see store.Keeper.
func (s *Memory) Counts(ctx context.Context) (store.Counts, error) {
	if err := s.enter(ctx); err != nil {
		return store.Counts{}, err
	}
	defer s.mu.Unlock()
	return s.m.Counts(), s.fail
}

// LoadRetained loads the projection, see store.Retained.
func (s *Memory) LoadRetained(ctx context.Context, fn func(*schema.Message) error) (schema.Cursor, error) {
	if err := s.enter(ctx); err != nil {
		return schema.Cursor{}, err
	}
	msgs, at := s.m.Retained()
	err := s.fail
	s.mu.Unlock()
	for _, msg := range msgs {
		if err != nil {
			return schema.Cursor{}, err
		}
		err = fn(msg)
	}
	return at, err
}

// StoreRetained stores messages, see store.Retained.
func (s *Memory) StoreRetained(ctx context.Context, msgs []*schema.Message, checkpoint schema.Cursor) error {
	if err := s.enterWrite(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.m.StoreRetained(msgs, checkpoint)
	return nil
}
