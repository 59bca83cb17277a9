package storetest

import (
	"context"
	"fmt"

	"rewindmq/schema"
	"rewindmq/store"
)

// Stall makes a lane write nothing until it is switched off; lane 0: all lanes of
// this node. What is appended waits.
func (s *Memory) Stall(k schema.Lane, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.stalled[k] = true
	} else {
		delete(s.stalled, k)
	}
	s.changed.Broadcast()
}

// Refuse makes appends be refused with err until it is called with nil. With
// store.ErrNoSpace a strict publisher's messages wait.
func (s *Memory) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
	s.changed.Broadcast()
}

// Doubt makes the next batch of each lane stay in doubt, being written and not
// answered, until Resolve. What comes behind it in its lane waits. UntilDoubt tells
// when a batch has come so far.
func (s *Memory) Doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = true
	s.changed.Broadcast()
}

// Resolve ends the doubt: landed tells whether what was in doubt is stored,
// answer what is told of it. store.InDoubt is what a store answers that gives up
// (append.hold): the truth may be either. Only what landed can be answered
// store.Stored, only what did not store.Refused.
func (s *Memory) Resolve(landed bool, answer store.Outcome) {
	if answer == store.Stored && !landed || answer == store.Refused && landed {
		panic(fmt.Sprintf("storetest: landed %v, answer %d", landed, answer))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = false
	for _, sl := range s.slots {
		sl.answerHeld(landed, answer)
	}
	s.changed.Broadcast()
}

// Hold makes Write and Record wait until it is switched off, or their ctx ends.
func (s *Memory) Hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = on
	s.changed.Broadcast()
}

// Fail makes every call but Append fail with err, until it is called with nil.
// Nothing is changed by the calls that fail. Open reads and tails go on.
func (s *Memory) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
	s.changed.Broadcast()
}

// OpenLane opens a lane of a node that does nothing else.
func (s *Memory) OpenLane() schema.Lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.m.OpenLane(s.m.StartNode())
	s.changed.Broadcast()
	return k
}

// RetireLane ends a lane. If it is one of this node's, its writer goes on in a
// new one.
func (s *Memory) RetireLane(k schema.Lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.RetireLane(k)
	s.changed.Broadcast()
}

// Lanes gives the lanes of this node's writers now.
func (s *Memory) Lanes() []schema.Lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]schema.Lane, len(s.slots))
	for i, sl := range s.slots {
		out[i] = sl.lane
	}
	return out
}

// ClaimElsewhere claims a session for a node that does nothing else, as when its
// client has gone there, and gives the new owner. This node's Watch tells.
func (s *Memory) ClaimElsewhere(clientID string) schema.Owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat()
	ask := store.Claim{ClientID: clientID, Protocol: 5, At: s.m.Head(), Expiry: schema.NoExpiry}
	if d := s.m.sessions[clientID]; d != nil {
		ask.Expiry = d.expiry
	}
	got := s.drive(NewClaim(s.m.StartNode(), ask, s.m.NewID(), 0))
	s.changed.Broadcast()
	return got.Owner
}

// Lapse tells this node that its lease was over for a while: its Watch yields
// that no session is its own.
func (s *Memory) Lapse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose(store.Lost{})
}

// Trim removes what is not after upTo, as retention does.
func (s *Memory) Trim(upTo schema.Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Trim(upTo)
}

// Inspect calls fn with what is stored, under the store's lock.
func (s *Memory) Inspect(fn func(*Model)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s.m)
}

// Until waits until cond holds for what is stored, or ctx ends.
func (s *Memory) Until(ctx context.Context, cond func(*Model) bool) error {
	if err := s.enterWhen(ctx, func() bool { return cond(s.m) }); err != nil {
		return err
	}
	s.mu.Unlock()
	return nil
}

// UntilQueued waits until at least n Appends wait or are in doubt.
func (s *Memory) UntilQueued(ctx context.Context, n int) error {
	return s.Until(ctx, func(*Model) bool {
		q := 0
		for _, sl := range s.slots {
			q += len(sl.queue) + len(sl.held)
		}
		return q >= n
	})
}

// UntilDoubt waits until at least n Appends are in doubt.
func (s *Memory) UntilDoubt(ctx context.Context, n int) error {
	return s.Until(ctx, func(*Model) bool {
		q := 0
		for _, sl := range s.slots {
			q += len(sl.held)
		}
		return q >= n
	})
}
