package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// subscriber is a persistent session that comes and goes, and acknowledges what
// it gets: at once, or several together in order.
type subscriber struct {
	ledger *ledger
	addr   string
	session
	rng         *rand.Rand
	wants       []want
	resubscribe bool          // SUBSCRIBE on every connection, as most clients do
	hold        int           // acknowledge when so many are due, or after 5 ms
	stay, away  time.Duration // most that a connection lasts, and the time between two; 0: it stays
}

// window is what the session allows to be unacknowledged.
func (s *subscriber) window() int {
	if s.receiveMax > 0 {
		return int(s.receiveMax)
	}
	return 65535
}

// run comes and goes until settle is closed, then stays until done is closed,
// and disconnects in order. subscribed is closed at the first SUBACK.
func (s *subscriber) run(ctx context.Context, subscribed chan<- struct{}, settle, done <-chan struct{}) error {
	var old []*link // left open: the next connection takes over
	defer func() {
		for _, l := range old {
			l.cut()
		}
	}()
	for {
		l, connack, err := reconnect(ctx, s.addr, s.session)
		if err != nil {
			return fmt.Errorf("subscriber %s: %w", s.clientID, err)
		}
		s.ledger.subscriberConnected(s.clientID, s.window(), connack.present)
		over := s.serve(ctx, l, &subscribed, settle, done)
		if over || s.ledger.stands(s.clientID) {
			s.ledger.left(s.clientID)
		}
		if over {
			l.cut()
			return nil
		}
		if err := ctx.Err(); err != nil {
			l.cut()
			return fmt.Errorf("subscriber %s: %w", s.clientID, err)
		}
		if s.rng.IntN(4) == 0 && len(old) < 8 {
			old = append(old, l)
		} else {
			l.cut()
			s.pauseUntil(ctx, settle)
		}
	}
}

// pauseUntil stays away for a while, or until it is time to settle.
func (s *subscriber) pauseUntil(ctx context.Context, settle <-chan struct{}) {
	timer := time.NewTimer(s.upTo(s.away))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-settle:
	case <-ctx.Done():
	}
}

func (s *subscriber) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(s.rng.Int64N(int64(d)))
}

// serve works on one connection until it ends or is left (false), or until done
// (true).
func (s *subscriber) serve(ctx context.Context, l *link, subscribed *chan<- struct{}, settle, done <-chan struct{}) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := pump(ctx, l)
	if *subscribed != nil || s.resubscribe {
		s.ledger.asked(s.clientID, s.wants)
		if l.write(subscribePacket(s.version, 1, nil, s.wants...)) != nil {
			return false
		}
	}
	var leave <-chan time.Time
	if s.stay > 0 {
		timer := time.NewTimer(s.upTo(s.stay))
		defer timer.Stop()
		leave = timer.C
	}
	flush := time.NewTicker(5 * time.Millisecond)
	defer flush.Stop()
	acks := acker{s: s, l: l}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-leave:
			if *subscribed == nil { // else it waits for its first SUBACK
				return s.goAway(&acks)
			}
		case <-settle:
			leave, settle = nil, nil
		case <-done:
			s.ledger.leaving(s.clientID)
			return acks.flush() && l.write([]byte{kindDisconnect << 4, 0}) == nil && drained(in)
		case <-flush.C:
			if !acks.flush() {
				return false
			}
		case p, ok := <-in:
			if !ok || !s.take(p, &acks, subscribed) {
				return false
			}
		}
	}
}

// goAway ends a connection early, half of the time in order.
func (s *subscriber) goAway(acks *acker) bool {
	s.ledger.leaving(s.clientID)
	if s.rng.IntN(2) == 0 {
		_ = acks.flush()
		_ = acks.l.write([]byte{kindDisconnect << 4, 0})
	}
	return false
}

// drained waits for the broker's end of the connection.
func drained(in <-chan packet) bool {
	for range in {
	}
	return true
}

func (s *subscriber) take(p packet, acks *acker, subscribed *chan<- struct{}) bool {
	switch p.kind {
	case kindPublish:
		s.ledger.arrived(s.clientID, p)
		switch p.qos {
		case 1:
			return acks.add(kindPuback, p.id)
		case 2:
			return acks.add(kindPubrec, p.id)
		}
	case kindPubrel:
		s.ledger.arrived(s.clientID, p)
		return acks.add(kindPubcomp, p.id)
	case kindSuback:
		s.ledger.granted(s.clientID)
		if *subscribed != nil {
			close(*subscribed)
			*subscribed = nil
		}
	case kindDisconnect: // the broker drains, or another connection took over
		return false
	default:
		s.ledger.clientFault(s.clientID, fmt.Sprintf("unexpected %v", p))
	}
	return true
}

// acker holds acknowledgements back, in order.
type acker struct {
	s   *subscriber
	l   *link
	due []event
}

func (a *acker) add(kind byte, id uint16) bool {
	a.due = append(a.due, event{kind: kind, id: id})
	return len(a.due) < a.s.hold || a.flush()
}

func (a *acker) flush() bool {
	var b []byte
	for _, e := range a.due {
		a.s.ledger.answered(a.s.clientID, e.kind, e.id)
		b = append(b, ackPacket(e.kind, e.id)...)
	}
	a.due = a.due[:0]
	return len(b) == 0 || a.l.write(b) == nil
}
