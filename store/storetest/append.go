package storetest

import (
	"context"
	"errors"

	"rewindmq/schema"
	"rewindmq/store"
)

// slot is one writer of a node. It writes one lane after another: when its lane
// is retired it opens the next.
//
// Invariant: a publisher belongs to one slot, so what it appends is written in
// the order of its calls.
type slot struct {
	s     *Memory
	lane  schema.Lane
	queue []*pending
	// held is being written and in doubt; nothing behind it is written.
	held []*pending
	// settled is answered, and to be told by run.
	settled []*pending
}

// pending is one Append.
type pending struct {
	ctx     context.Context
	p       *store.Publisher
	msgs    []*schema.Message
	done    func([]store.Appended)
	answers []store.Appended // those settled so far, by place in msgs
	stop    func() bool
}

// Append queues msgs, see store.Appender. After the store has stopped, done is
// called at once, by the caller.
func (s *Memory) Append(ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	pd := &pending{
		ctx: ctx, p: p, done: done, stop: func() bool { return true },
		msgs: append([]*schema.Message(nil), msgs...), answers: make([]store.Appended, 0, len(msgs)),
	}
	s.mu.Lock()
	switch s.state {
	case stateKilled:
		s.mu.Unlock()
	case stateClosed:
		s.mu.Unlock()
		done(pd.refuseRest(store.ErrClosed))
	default:
		if ctx.Done() != nil {
			pd.stop = context.AfterFunc(ctx, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.changed.Broadcast()
			})
		}
		sl := s.slots[hash(p.ClientID)%uint32(len(s.slots))]
		sl.queue = append(sl.queue, pd)
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

func hash(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

func (pd *pending) refuseRest(err error) []store.Appended {
	for len(pd.answers) < len(pd.msgs) {
		pd.answers = append(pd.answers, store.Appended{Outcome: store.Refused, Err: err})
	}
	return pd.answers
}

// run is the goroutine of a slot. Memory.Run waits for it.
func (sl *slot) run() {
	s := sl.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.state != stateKilled {
		s.m.SetNow(s.opt.Now())
		sl.write()
		if len(sl.settled) > 0 {
			sl.tell()
			continue
		}
		if s.state == stateClosed && len(sl.queue) == 0 {
			return
		}
		s.changed.Wait()
	}
}

// tell calls the dones, in order, without mu.
func (sl *slot) tell() {
	s, settled := sl.s, sl.settled
	sl.settled = nil
	s.changed.Broadcast()
	for _, pd := range settled {
		if s.state == stateKilled {
			return
		}
		s.mu.Unlock()
		pd.stop()
		pd.done(pd.answers)
		s.mu.Lock()
	}
}

// write settles what can be settled now. A publisher whose Append has to wait
// holds back only its own.
func (sl *slot) write() {
	s := sl.s
	if s.state == stateClosed {
		sl.answerHeld(false, store.InDoubt)
	}
	if len(sl.held) > 0 || len(sl.queue) == 0 {
		return
	}
	var waits map[*store.Publisher]bool
	kept := sl.queue[:0]
	for _, pd := range sl.queue {
		if waits[pd.p] || !sl.settle(pd) {
			if waits == nil {
				waits = map[*store.Publisher]bool{}
			}
			waits[pd.p] = true
			if s.state == stateClosed { // stalled, or no room: it will not be written any more
				pd.refuseRest(store.ErrClosed)
			} else if sl.writes(pd) {
				sl.held = append(sl.held, pd)
				continue
			} else {
				kept = append(kept, pd)
				continue
			}
		}
		sl.settled = append(sl.settled, pd)
	}
	clear(sl.queue[len(kept):])
	sl.queue = kept
	if len(sl.held) > 0 {
		s.changed.Broadcast()
	}
}

// writes tells whether an Append that has to wait is being written, in doubt.
func (sl *slot) writes(pd *pending) bool {
	s := sl.s
	noSpace := s.refuse != nil && pd.p.Strict && errors.Is(s.refuse, store.ErrNoSpace)
	return s.doubt && !s.stalled[0] && !s.stalled[sl.lane] && !noSpace
}

// settle goes on with one Append; false: it has to wait.
func (sl *slot) settle(pd *pending) bool {
	for len(pd.answers) < len(pd.msgs) {
		a, wait := sl.one(pd, pd.msgs[len(pd.answers)])
		if wait {
			return false
		}
		pd.answers = append(pd.answers, a)
		if a.Outcome == store.Refused && pd.p.Strict {
			pd.p.Fail()
		}
	}
	return true
}

// one settles one message.
func (sl *slot) one(pd *pending, msg *schema.Message) (a store.Appended, wait bool) {
	s := sl.s
	a.Outcome = store.Refused
	switch {
	case pd.p.Failed():
		a.Err = store.ErrPublisherFailed
	case pd.ctx.Err() != nil:
		a.Err = pd.ctx.Err()
	case s.claimedElsewhere(pd.p):
		pd.p.Fail()
		a.Err = store.ErrSessionLost
	case s.opt.MaxPayload > 0 && len(msg.Payload) > s.opt.MaxPayload:
		a.Err = store.ErrTooLarge
	case s.stalled[0] || s.stalled[sl.lane]:
		return a, true
	case s.refuse != nil && pd.p.Strict && errors.Is(s.refuse, store.ErrNoSpace):
		return a, true
	case s.refuse != nil:
		a.Err = s.refuse
	case s.doubt:
		return a, true
	default:
		a.Outcome, a.Mark = store.Stored, sl.land(msg)
	}
	return a, false
}

// land stores a message in the slot's lane, or in the next when that is retired.
func (sl *slot) land(msg *schema.Message) schema.Mark {
	s := sl.s
	for {
		gen, open := s.m.Lane(sl.lane)
		if !open {
			sl.lane = s.m.OpenLane(s.node)
			continue
		}
		mark, _ := s.m.Land(sl.lane, gen, msg)
		s.changed.Broadcast()
		return mark
	}
}

// claimedElsewhere tells whether another node has claimed the publisher's
// session: its client is there now, and what still waits here would come late.
func (s *Memory) claimedElsewhere(p *store.Publisher) bool {
	if p.SID == 0 {
		return false
	}
	d := s.m.sessions[p.ClientID]
	return d != nil && d.epoch > p.Epoch && d.owner != s.node && d.owner != 0
}

// answerHeld settles what is in doubt. What is not stored for certain lets
// nothing of its publisher overtake it.
func (sl *slot) answerHeld(landed bool, answer store.Outcome) {
	for _, pd := range sl.held {
		for len(pd.answers) < len(pd.msgs) {
			a := store.Appended{Outcome: answer}
			if landed {
				a.Mark = sl.land(pd.msgs[len(pd.answers)])
			}
			if answer != store.Stored {
				a.Mark, a.Err = schema.Mark{}, errDoubt
				pd.p.Fail()
			}
			pd.answers = append(pd.answers, a)
		}
	}
	sl.settled = append(sl.settled, sl.held...)
	sl.held = nil
}

var errDoubt = errors.New("storetest: append.hold is over")
