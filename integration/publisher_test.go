package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// publisher is a persistent client that sends QoS 1 and 2 messages and keeps the
// sender's state over any number of connections: what is not settled is sent
// again in its old order, under its old ids, PUBLISH with DUP [MQTT-4.4.0-1].
type publisher struct {
	ledger *ledger
	addr   string
	session
	rng    *rand.Rand
	topics []string
	qos    []byte        // chosen from
	window int           // most that are in flight
	pace   time.Duration // between two new messages
	size   int           // least bytes of a payload
	retain bool          // of each message
	cutIn  int           // a connection is cut after about so many messages; 0: never

	inflight []*outgoing
	next     map[stream]int
	lastID   uint16
}

// outgoing is a message that is not settled. released: PUBREC was read.
type outgoing struct {
	key
	id       uint16
	released bool
}

// run publishes until stop is closed, then settles what is in flight, and
// disconnects. It returns an error when ctx ends before.
func (p *publisher) run(ctx context.Context, stop <-chan struct{}) error {
	p.next = map[stream]int{}
	for first := true; ; first = false {
		l, connack, err := reconnect(ctx, p.addr, p.session)
		if err != nil {
			return fmt.Errorf("publisher %s: %w", p.clientID, err)
		}
		if !first && !connack.present {
			p.ledger.clientFault(p.clientID, "session present 0 on a reconnect")
		}
		done := p.serve(ctx, l, stop)
		l.cut()
		if done {
			return nil
		}
		if err := ctx.Err(); err != nil {
			var waits []string
			for _, o := range p.inflight {
				waits = append(waits, fmt.Sprintf("%v id %d released %t", o.key, o.id, o.released))
			}
			return fmt.Errorf("publisher %s: %w; in flight: %s", p.clientID, err, strings.Join(waits, ", "))
		}
	}
}

// reconnect tries until a broker answers. A refusal by CONNACK is an error.
func reconnect(ctx context.Context, addr string, s session) (*link, packet, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		l, connack, err := connect(ctx, addr, s)
		if err == nil && connack.code == 0 {
			return l, connack, nil
		}
		if err == nil {
			l.cut()
			return nil, packet{}, fmt.Errorf("refused: %v", connack)
		}
		select {
		case <-ctx.Done():
			return nil, packet{}, fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// pump reads packets into a channel, which is closed when the link has ended.
// cancel of ctx ends it too.
func pump(ctx context.Context, l *link) <-chan packet {
	in := make(chan packet, 64)
	go func() {
		defer close(in)
		for {
			p, err := l.read(10 * time.Minute) // the link is cut to end it
			if err != nil {
				return
			}
			select {
			case in <- p:
			case <-ctx.Done():
				return
			}
		}
	}()
	return in
}

// serve works on one connection until it ends (false), or all is settled after
// stop (true).
func (p *publisher) serve(ctx context.Context, l *link, stop <-chan struct{}) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.ledger.publisherConnected(p.clientID)
	in := pump(ctx, l)
	if !p.resend(l) {
		return false
	}
	tick := time.NewTicker(p.pace)
	defer tick.Stop()
	for {
		if stop == nil && len(p.inflight) == 0 {
			return l.write([]byte{kindDisconnect << 4, 0}) == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-stop:
			stop = nil
		case <-tick.C:
			if stop == nil || len(p.inflight) >= p.window {
				continue
			}
			if p.cutIn > 0 && p.rng.IntN(p.cutIn) == 0 || !p.sendNew(l) {
				return false
			}
		case in, ok := <-in:
			if !ok || !p.settle(l, in) {
				return false
			}
		}
	}
}

func (p *publisher) resend(l *link) bool {
	for _, o := range p.inflight {
		b := ackPacket(kindPubrel, o.id)
		if !o.released {
			p.ledger.sent(o.key)
			b = p.message(o.key).packet(p.version, o.id, true)
		}
		if l.write(b) != nil {
			return false
		}
	}
	return true
}

func (p *publisher) message(k key) message {
	return message{topic: k.topic, payload: k.payload(p.size), qos: k.qos, retain: p.retain}
}

func (p *publisher) sendNew(l *link) bool {
	s := stream{p.clientID, p.topics[p.rng.IntN(len(p.topics))], p.qos[p.rng.IntN(len(p.qos))]}
	p.next[s]++
	o := &outgoing{key: key{s, p.next[s]}, id: p.freeID()}
	p.inflight = append(p.inflight, o)
	p.ledger.sent(o.key)
	return l.write(p.message(o.key).packet(p.version, o.id, false)) == nil
}

func (p *publisher) freeID() uint16 {
	for {
		p.lastID++
		if p.lastID != 0 && !slices.ContainsFunc(p.inflight, func(o *outgoing) bool { return o.id == p.lastID }) {
			return p.lastID
		}
	}
}

// settle takes an acknowledgement. Those of one kind come in the order of their
// PUBLISH packets [MQTT-4.6.0-2, 4.6.0-3].
func (p *publisher) settle(l *link, in packet) bool {
	i := slices.IndexFunc(p.inflight, func(o *outgoing) bool { return o.id == in.id })
	switch {
	case in.kind == kindPubcomp && i < 0:
		return true // of a PUBREL that was sent twice
	case in.kind == kindDisconnect:
		return false
	case i < 0 || in.code >= 0x80 && !(in.kind == kindPubcomp && in.code == 0x92): // 0x92 is no error during recovery (section 3.7.2.1)
		p.ledger.clientFault(p.clientID, fmt.Sprintf("unexpected %v", in))
		return false
	}
	o := p.inflight[i]
	switch in.kind {
	case kindPuback:
		p.expectOldest(i, in)
		p.ledger.acknowledged(o.key)
		p.inflight = slices.Delete(p.inflight, i, i+1)
	case kindPubrec:
		if !o.released {
			p.expectOldest(i, in)
			p.ledger.acknowledged(o.key)
		}
		o.released = true
		return l.write(ackPacket(kindPubrel, o.id)) == nil
	case kindPubcomp:
		if !o.released {
			p.ledger.clientFault(p.clientID, fmt.Sprintf("%v before PUBREC", in))
		}
		p.inflight = slices.Delete(p.inflight, i, i+1)
	default:
		p.ledger.clientFault(p.clientID, fmt.Sprintf("unexpected %v", in))
	}
	return true
}

func (p *publisher) expectOldest(i int, in packet) {
	for _, o := range p.inflight[:i] {
		if o.qos == p.inflight[i].qos && !o.released {
			p.ledger.clientFault(p.clientID, fmt.Sprintf("%v before that of id %d, which was sent earlier", in, o.id))
			return
		}
	}
}
