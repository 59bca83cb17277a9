package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// mortal is a client with a will that dies in every way there is: its link is cut, it
// disconnects, another connection takes over, the broker dies under it. In each life it
// publishes its birth, and leaves a will for its death, on one topic: birth and will of
// life n are the messages 2n-1 and 2n of its stream.
type mortal struct {
	ledger *ledger
	addr   string
	session
	rng   *rand.Rand
	kills func() int // how often the broker was killed so far
	qos   byte
	// delay of the will in seconds: 0; mourned (it stays away until its will is out);
	// quick (it is always back before, so that no will is ever due).
	delay  uint32
	retain bool

	life     int
	old      []*link // left open: the next connection takes over
	returned func()  // decides, at the next CONNACK, what became of the last will
}

const (
	mourned = 1
	quick   = 60
)

func (d *mortal) topic() string {
	if d.retain {
		return "k9w/kept/" + d.clientID
	}
	return "k9w/" + d.clientID
}

func (d *mortal) birth() key { return key{stream{d.clientID, d.topic(), d.qos}, 2*d.life - 1} }

func (d *mortal) lastWill() key { return key{stream{d.clientID, d.topic(), d.qos}, 2 * d.life} }

// run lives until stop is closed, then once more, and ends in order.
func (d *mortal) run(ctx context.Context, stop <-chan struct{}) error {
	defer func() {
		for _, l := range d.old {
			l.cut()
		}
	}()
	for {
		over, err := d.live(ctx, stop)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("device %s, life %d: %w", d.clientID, d.life, err)
		}
		if over {
			return nil
		}
	}
}

// live is one life; over: it was the last.
func (d *mortal) live(ctx context.Context, stop <-chan struct{}) (over bool, err error) {
	l, err := d.dial(ctx)
	if err != nil {
		return false, err
	}
	d.life++
	kills, begun := d.kills(), time.Now()
	d.ledger.sentAlone(d.birth(), d.lastWill())
	d.will = &will{topic: d.topic(), payload: string(d.lastWill().payload(0)), qos: d.qos, retain: d.retain, delay: d.delay}
	if !d.greet(l) {
		l.cut() // whether it was accepted nobody knows
		return false, nil
	}
	if d.returned != nil {
		d.returned()
		d.returned = nil
	}
	in := pump(ctx, l)
	alive := d.bear(l, in)
	if alive {
		stay := time.NewTimer(time.Duration(d.rng.IntN(600)) * time.Millisecond)
		defer stay.Stop()
		alive = d.stay(in, stay.C, stop)
	}
	select {
	case <-stop:
		if alive {
			return d.disconnect(l, in, kills, true), nil
		}
	default:
	}
	return false, d.die(ctx, l, in, alive, kills, begun)
}

func (d *mortal) dial(ctx context.Context) (*link, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := dial(ctx, d.addr, d.version)
		if err == nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// greet sends CONNECT, and tells whether it was accepted.
func (d *mortal) greet(l *link) bool {
	if l.write(d.packet()) != nil {
		return false
	}
	p, err := l.read(patience)
	return err == nil && p.kind == kindConnack && p.code == 0
}

// bear publishes the birth; false: the link has ended. Ids are not used again, so that
// what an earlier life has begun at QoS 2 is not taken for this.
func (d *mortal) bear(l *link, in <-chan packet) bool {
	id := uint16(d.life)
	m := message{topic: d.topic(), payload: d.birth().payload(0), qos: d.qos, retain: d.retain}
	if l.write(m.packet(d.version, id, false)) != nil {
		return false
	}
	for p := range in {
		if p.id != id {
			continue
		}
		switch p.kind {
		case kindPuback:
			d.ledger.acknowledged(d.birth())
			return true
		case kindPubrec:
			d.ledger.acknowledged(d.birth())
			if l.write(ackPacket(kindPubrel, id)) != nil {
				return false
			}
		case kindPubcomp:
			return true
		}
	}
	return false
}

// stay waits until it is time to die; false: the link has ended.
func (d *mortal) stay(in <-chan packet, due <-chan time.Time, stop <-chan struct{}) bool {
	for {
		select {
		case _, ok := <-in:
			if !ok {
				return false
			}
		case <-due:
			return true
		case <-stop:
			return true
		}
	}
}

// die ends a life, and notes what is to become of its will.
func (d *mortal) die(ctx context.Context, l *link, in <-chan packet, alive bool, kills int, begun time.Time) error {
	last := d.lastWill()
	way := d.rng.IntN(5)
	switch {
	case alive && way == 0 && d.delay != mourned: // back at once, with the old link open
		d.old = append(d.old, l)
		if len(d.old) > 8 {
			d.old[0].cut()
			d.old = d.old[1:]
		}
	case alive && way == 1:
		d.disconnect(l, in, kills, false)
		return nil
	case alive && way == 2 && d.version == v5:
		_ = l.write(fromHex("e00104")) // disconnect with will message
		fallthrough
	default:
		l.cut()
	}
	switch d.delay {
	case 0:
		d.ledger.acknowledged(last) // it is due, whatever happens
	case mourned:
		d.ledger.acknowledged(last)
		return d.mourn(ctx, last)
	case quick:
		d.returned = func() {
			if time.Since(begun) < (quick-10)*time.Second { // [MQTT-3.1.3-9]
				d.ledger.mustNotCome(last)
			}
		}
	}
	return nil
}

// mourn waits until the will has come to somebody.
func (d *mortal) mourn(ctx context.Context, last key) error {
	// A node that dies often judges no other: its keeper has to live for two leases.
	if err := poll(5*time.Minute, ctx.Done(), func() bool { return d.ledger.seen(last) }); err != nil && ctx.Err() == nil {
		d.ledger.clientFault(d.clientID, fmt.Sprintf("the will %v did not come: %v", last, err))
	}
	return nil
}

// disconnect ends a life in order; its will goes with it, unless the broker dies before
// that is stored [MQTT-3.14.4-3]. It tells whether the broker has closed. last: the
// broker is not killed any more.
func (d *mortal) disconnect(l *link, in <-chan packet, kills int, last bool) bool {
	gone := d.lastWill()
	err := l.write([]byte{kindDisconnect << 4, 0})
	drained(in)
	l.cut()
	if last && err == nil {
		d.ledger.mustNotCome(gone)
		return true
	}
	d.returned = func() {
		if d.kills() == kills {
			d.ledger.mustNotCome(gone)
		}
	}
	return false
}

// mortals are devices of all kinds.
func mortals() []*mortal {
	var all []*mortal
	for i := range 12 {
		d := &mortal{
			session: session{version: []byte{v311, v5}[i%2], clientID: fmt.Sprintf("d%02d", i), keepAlive: 60, clean: i%4 < 2, expiry: 600},
			qos:     byte(1 + i/2%2), retain: i%3 == 0,
		}
		if d.clean {
			d.expiry = 0 // the will is due with the end of the session
		}
		if i%2 == 1 && i > 4 { // 5, 9: mourned; 7, 11: quick
			d.clean, d.expiry = false, 600
			d.delay = []uint32{mourned, quick}[i/2%2]
		}
		all = append(all, d)
	}
	return all
}
