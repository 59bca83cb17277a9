package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

// FuzzConnection lets a client do anything: valid packets in any order, packets with a
// byte changed, and bytes that are none, over several connections of one session. Each
// byte of the input chooses one step, and the bytes behind it its details.
//
// Invariants: nothing panics; the broker sends only what is well-formed, CONNACK
// first and nothing behind DISCONNECT; no acknowledgement without its packet; no
// packet id for two deliveries in flight; DUP only for what was sent before; what is
// stored of the session at the end is consistent; all goroutines end; and another client
// is served as ever.
func FuzzConnection(f *testing.F) {
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 2000 {
			return
		}
		runProgram(t, program)
	})
}

// fuzzSeeds are walks through the protocol, and some chance.
func fuzzSeeds() [][]byte {
	seeds := [][]byte{
		{},
		{9},
		{12, 5, 1, 2, 3, 4, 5},
		// subscribe, publish at each QoS, settle, again with a cut in between
		{0, 0, 1, 0, 2, 3, 0, 0, 0, 3, 1, 1, 0, 3, 2, 2, 0, 7, 2, 14, 9, 11, 14, 10},
		{0, 1, 1, 1, 2, 3, 2, 1, 1, 3, 2, 1, 1, 11, 3, 2, 1, 1, 7, 1, 14, 11, 14},
		// acknowledgements of nothing
		{0, 1, 5, 1, 6, 2, 7, 3, 8, 4, 9, 2, 1, 10},
		// too many in flight, a wrong alias, AUTH
		{0, 1, 3, 2, 1, 0, 3, 2, 2, 0, 3, 2, 3, 0, 3, 2, 4, 0, 3, 2, 5, 0},
		{0, 1, 3, 0, 0, 77},
		{0, 1, 15},
		// changed bytes
		{0, 1, 13, 3, 1, 2, 3, 1, 1, 0, 13, 1, 7, 1, 0, 2},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		b := make([]byte, 120)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		seeds = append(seeds, b)
	}
	return seeds
}

// TestConnectionPrograms runs FuzzConnection's programs at random, for a while.
func TestConnectionPrograms(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := 150
	if testing.Short() {
		n = 30
	}
	for range n {
		b := make([]byte, rng.IntN(300))
		for i := range b {
			// Steps more often than their details have other values.
			b[i] = byte(rng.IntN(18))
		}
		if !t.Run("", func(t *testing.T) { runProgram(t, b) }) {
			t.Fatalf("program %v", b)
		}
	}
}

func runProgram(t *testing.T, program []byte) {
	h := memoryHouse(t, Options{
		Window: 4, ReceiveMaximum: 4, SessionQueue: 4, FiltersPerSubscribe: 3, SubscriptionsPerClient: 5, TopicLevels: 4,
		MaximumPacketSize: 400, OutboxBytes: 2048, ConnectTimeout: patience,
	})
	w := &wild{t: t, h: h, rest: program, flight: map[uint16]bool{}, received: map[uint16]bool{}}
	for len(w.rest) > 0 && !t.Failed() {
		w.step()
	}
	w.hangUp()
	w.serves.Wait() // no connection's goroutine is left
	w.consistent()
	other := h.clean(wire.V5, "other")
	other.subscribe("other", 2)
	other.send("other", "still here", 2, 1)
	other.ack(wire.PUBREC, 1)
	other.write(wire.AppendAck(nil, wire.V5, wire.PUBREL, 1, wire.Success))
	other.ack(wire.PUBCOMP, 1)
	other.receive("still here")
	other.disconnect()
	h.stop() // Run waits for all that it started
}

// consistent holds what is stored of the session, when its last connection has ended,
// against the limits and the protocol.
func (w *wild) consistent() {
	w.h.until("let go of wild", func() bool { return w.h.b.roster.get("wild") == nil })
	if n := w.h.b.orphans.len(); n > 0 {
		w.t.Errorf("%d sessions were let go of without a release", n)
	}
	info, err := w.h.b.store.LookSession(w.t.Context(), "wild")
	if errors.Is(err, store.ErrNoSession) {
		return // never begun, or clean
	}
	if err != nil || info.Connected || info.InFlight > 4 || len(info.Subscriptions) > 5 {
		w.t.Errorf("the session is stored as %+v, %v", info, err)
	}
	filters := map[string]bool{}
	for _, sub := range info.Subscriptions {
		if filters[sub.Filter] || schema.ValidFilter(sub.Filter) != nil || sub.QoS > 2 || sub.RetainHandling > 2 {
			w.t.Errorf("the session has a subscription %+v", sub)
		}
		filters[sub.Filter] = true
	}
}

// wild is a client that does anything, and knows what the broker may answer.
type wild struct {
	t      *testing.T
	h      *house
	rest   []byte // of the program
	serves sync.WaitGroup
	change int // position at which the next packet is changed, -1: none

	nc    net.Conn
	v     wire.Version
	ended chan struct{} // closed when the broker's packets have ended

	mu sync.Mutex // guards what follows, between the two directions
	// Of this connection.
	stream                      []byte // written, not yet split into packets
	broken                      bool   // an invalid packet was written: nothing behind it counts
	version                     wire.Version
	connects, pings             int
	published, published2, rels map[uint16]int
	subscribes, unsubscribes    map[uint16][]int // number of filters of each
	recs                        map[uint16]int
	begun, finished             bool // CONNACK, DISCONNECT
	present, limited            bool
	unacked                     []wire.Publish // deliveries for step 14
	// Of the session.
	flight, received map[uint16]bool
	loose            bool // packet ids in flight are not known
}

func (w *wild) fault(format string, args ...any) {
	w.t.Errorf(format+" (broken %v)", append(args, w.broken)...)
}

func (w *wild) byte() byte {
	if len(w.rest) == 0 {
		return 0
	}
	b := w.rest[0]
	w.rest = w.rest[1:]
	return b
}

func (w *wild) id() uint16 { return uint16(w.byte() % 9) }

// topics are few, so that messages come back.
func (w *wild) topic() string {
	return []string{"a", "a/b", "c", "", "a/+", "a/b/c/d/e", "$SYS/x", "a\x00b"}[w.byte()%8]
}

func (w *wild) filter() string {
	return []string{"a", "a/#", "+", "#", "a/b", "a/#/b", "", "$SYS/none"}[w.byte()%8]
}

// step does one step of the program.
func (w *wild) step() {
	op := w.byte() % 16
	if w.nc == nil && op != 12 {
		w.dial()
		w.connect(w.byte())
		if op == 0 {
			return
		}
	}
	v := w.v
	switch op {
	case 0:
		w.connect(w.byte())
	case 1:
		s := wire.Subscribe{PacketID: w.id() + 1, SubscriptionID: uint32(w.byte() % 3)}
		for range w.byte()%4 + 1 {
			o := w.byte()
			s.Filters = append(s.Filters, wire.Filter{Topic: w.filter(), QoS: o % 3, NoLocal: o&8 != 0, RetainAsPublished: o&16 != 0, RetainHandling: o >> 5 % 3})
		}
		w.write(wire.AppendSubscribe(nil, v, &s))
	case 2:
		w.write(wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: w.id() + 1, Filters: []string{w.filter(), w.filter()}}))
	case 3, 4:
		o := w.byte()
		p := wire.Publish{QoS: o % 3, Retain: o&4 != 0, Dup: o&8 != 0, PacketID: w.id(), Topic: w.topic(), Payload: []byte(fmt.Sprint(len(w.rest)))}
		if v == wire.V5 && o&16 != 0 {
			p.TopicAlias = uint16(o >> 5)
		}
		if o&64 != 0 {
			p.Payload = bytes.Repeat([]byte("x"), int(o)*2)
		}
		w.write(wire.AppendPublish(nil, v, &p))
	case 5, 6, 7, 8:
		code := wire.Success
		if v == wire.V5 && w.byte()%4 == 0 {
			code = wire.UnspecifiedError
			if op > 6 {
				code = wire.PacketIdentifierNotFound
			}
		}
		w.write(wire.AppendAck(nil, v, wire.PUBACK+wire.PacketType(op)-5, w.id(), code))
	case 9:
		w.write(wire.AppendPingreq(nil))
	case 10:
		w.write(wire.AppendClientDisconnect(nil, v, &wire.Disconnect{Code: wire.ReasonCode(w.byte() % 2 * 4)}))
	case 11:
		w.hangUp()
	case 12:
		if w.nc == nil {
			w.dial()
		}
		n := min(int(w.byte()%32), len(w.rest))
		raw := w.rest[:n]
		w.rest = w.rest[n:]
		w.write(raw)
	case 13:
		w.change = int(w.byte())
	case 14:
		w.settle()
	case 15:
		w.write(wire.AppendAuth(nil, &wire.Auth{Code: wire.ReAuthenticate, Method: "x"}))
	}
}

func (w *wild) connect(o byte) {
	w.v = []wire.Version{wire.V311, wire.V5, wire.V5, wire.V31}[o%4]
	c := wire.Connect{Version: w.v, ClientID: "wild", CleanStart: o&4 != 0, RequestProblemInfo: true}
	if w.v == wire.V5 {
		c.ReceiveMaximum, c.SessionExpiry, c.HasSessionExpiry = uint16(o>>3%4), 1000, o&32 == 0
		c.TopicAliasMaximum, c.MaximumPacketSize = uint16(o>>4%3), []uint32{0, 0, 300, 12}[o>>6]
	}
	if o&16 != 0 {
		c.Will = &wire.Will{Topic: "a", Payload: []byte("will"), QoS: o >> 5 % 3}
	}
	w.write(wire.AppendConnect(nil, &c))
}

// settle acknowledges what has come so far, in any state.
func (w *wild) settle() {
	w.mu.Lock()
	todo := w.unacked
	w.unacked = nil
	w.mu.Unlock()
	for _, m := range todo {
		if m.QoS == 1 {
			w.write(wire.AppendAck(nil, w.v, wire.PUBACK, m.PacketID, wire.Success))
			continue
		}
		w.write(wire.AppendAck(nil, w.v, wire.PUBREC, m.PacketID, wire.Success))
		w.write(wire.AppendAck(nil, w.v, wire.PUBCOMP, m.PacketID, wire.Success))
	}
}

func (w *wild) dial() {
	w.hangUp()
	// A CONNECT that was not answered may have begun a new session.
	w.loose = w.loose || w.connects > 0 && !w.begun
	client, server := net.Pipe()
	w.serves.Go(func() { w.h.b.Serve("pipe", server) })
	w.mu.Lock()
	w.nc, w.change, w.ended = client, -1, make(chan struct{})
	w.stream, w.broken, w.version, w.connects, w.pings, w.begun, w.finished = nil, false, 0, 0, 0, false, false
	w.published, w.published2, w.rels, w.recs = map[uint16]int{}, map[uint16]int{}, map[uint16]int{}, map[uint16]int{}
	w.subscribes, w.unsubscribes, w.unacked = map[uint16][]int{}, map[uint16][]int{}, nil
	w.mu.Unlock()
	go w.read(client, w.ended)
}

// hangUp ends the connection, and waits for the end of what the broker sends.
func (w *wild) hangUp() {
	if w.nc == nil {
		return
	}
	_ = w.nc.Close()
	<-w.ended
	w.nc = nil
}

// write notes what is sent, and sends it. A broker that has closed is no fault.
func (w *wild) write(b []byte) {
	if w.nc == nil || len(b) == 0 {
		return
	}
	if w.change >= 0 {
		b = bytes.Clone(b)
		b[w.change%len(b)] ^= 1 << (w.change / 8 % 8)
		w.change = -1
	}
	w.mu.Lock()
	w.note(b)
	w.mu.Unlock()
	_ = w.nc.SetWriteDeadline(time.Now().Add(patience))
	if _, err := w.nc.Write(b); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.fault("the broker neither reads nor closes")
		}
		w.hangUp()
	}
}

// note finds the packets in what was written. REQUIRES: mu.
func (w *wild) note(b []byte) {
	w.stream = append(w.stream, b...)
	for !w.broken && len(w.stream) > 1 {
		n, shift, at := 0, 0, 1
		for ; at < len(w.stream) && at < 5; at++ {
			n |= int(w.stream[at]&0x7f) << shift
			shift += 7
			if w.stream[at] < 0x80 {
				break
			}
		}
		switch {
		case at == 5: // a length that is none
			w.broken = true
			return
		case at >= len(w.stream), len(w.stream) < at+1+n && n <= 400:
			return // more is to come, or never will
		case n > 400:
			w.broken = true
			return
		}
		one := w.stream[:at+1+n]
		w.stream = w.stream[at+1+n:]
		r := wire.NewReader(bytes.NewReader(one), wire.ReaderOptions{MaxPacketSize: 400, RefuseControlCharacters: true})
		r.SetVersion(w.version)
		p, err := r.ReadPacket()
		if err != nil {
			w.broken = true
			return
		}
		w.sent(p)
	}
}

// sent takes a valid packet of the client's into account. REQUIRES: mu.
func (w *wild) sent(p wire.Packet) {
	switch p := p.(type) {
	case *wire.Connect:
		w.connects++
		w.version, w.limited = p.Version, p.MaximumPacketSize > 0
	case *wire.Publish:
		switch p.QoS {
		case 1:
			w.published[p.PacketID]++
		case 2:
			w.published2[p.PacketID]++
		}
	case *wire.Subscribe:
		w.subscribes[p.PacketID] = append(w.subscribes[p.PacketID], len(p.Filters))
	case *wire.Unsubscribe:
		w.unsubscribes[p.PacketID] = append(w.unsubscribes[p.PacketID], len(p.Filters))
	case *wire.Pingreq:
		w.pings++
	case *wire.Ack:
		switch p.Type {
		case wire.PUBREL:
			w.rels[p.ID]++
		case wire.PUBREC:
			w.recs[p.ID]++
			if p.Code < 0x80 {
				w.received[p.ID] = true
			}
			fallthrough
		default:
			if p.Type != wire.PUBREC || p.Code >= 0x80 {
				w.flight[p.ID] = false
			}
		}
	}
}

// read takes what the broker sends until the end.
func (w *wild) read(nc net.Conn, ended chan struct{}) {
	defer close(ended)
	r := wire.NewReader(nc, wire.ReaderOptions{FromServer: true})
	for {
		w.mu.Lock()
		if w.version != 0 && r.Version() == 0 {
			r.SetVersion(w.version)
		}
		w.mu.Unlock()
		r.Wait()
		w.mu.Lock()
		v := w.version
		w.mu.Unlock()
		if v == 0 {
			v = wire.V5 // a CONNACK to a level that nobody knows
		}
		if r.Version() == 0 {
			r.SetVersion(v)
		}
		p, err := r.ReadPacket()
		if err != nil {
			var bad *wire.Error
			if errors.As(err, &bad) && !w.refusal() {
				w.mu.Lock()
				w.fault("the broker sent what is not well-formed: %v", err)
				w.mu.Unlock()
			}
			_, _ = io.Copy(io.Discard, nc)
			return
		}
		w.mu.Lock()
		w.came(p)
		w.mu.Unlock()
	}
}

// refusal tells whether the broker answers in a version of its own choice.
func (w *wild) refusal() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.version == 0
}

// came judges a packet of the broker's. REQUIRES: mu.
func (w *wild) came(p wire.Packet) {
	if ack, ok := p.(*wire.Connack); ok {
		if w.begun {
			w.fault("a second CONNACK")
		}
		w.begun = true
		w.present = ack.SessionPresent || w.version == wire.V31
		if ack.Code == wire.Success && !w.present {
			clear(w.flight)
			clear(w.received)
			w.loose = false
		}
		// What is too large for this connection is settled without a word; and 3.1
		// does not tell whether there was a session.
		w.loose = w.loose || w.limited || w.version == wire.V31
		return
	}
	if !w.begun || w.finished {
		w.fault("%#v before CONNACK or behind DISCONNECT", p)
	}
	switch p := p.(type) {
	case *wire.Publish:
		w.delivered(p)
	case *wire.Ack:
		w.acked(p)
	case *wire.Suback:
		w.answered("SUBACK", w.subscribes, p.PacketID, len(p.Codes))
	case *wire.Unsuback:
		n := len(p.Codes)
		if w.version != wire.V5 {
			n = -1
		}
		w.answered("UNSUBACK", w.unsubscribes, p.PacketID, n)
	case *wire.Pingresp:
		if w.pings--; w.pings < 0 {
			w.fault("PINGRESP for nothing")
		}
	case *wire.Disconnect:
		w.finished = true
	default:
		w.fault("got %T", p)
	}
}

func (w *wild) answered(what string, asked map[uint16][]int, id uint16, n int) {
	if len(asked[id]) == 0 {
		w.fault("%s %d for nothing", what, id)
		return
	}
	// Several under one id may be answered in another order: each fits one.
	for i, want := range asked[id] {
		if n < 0 || want == n {
			asked[id] = append(asked[id][:i:i], asked[id][i+1:]...)
			return
		}
	}
	w.fault("%s %d with %d codes, asked for %v", what, id, n, asked[id])
}

func (w *wild) delivered(p *wire.Publish) {
	if p.QoS == 0 {
		return
	}
	switch {
	case p.Dup && !w.present:
		w.fault("DUP of %d in a new session", p.PacketID)
	case !p.Dup && w.flight[p.PacketID] && !w.loose:
		w.fault("packet id %d is in flight, and given again", p.PacketID)
	case p.PacketID > 4 && !w.loose:
		w.fault("packet id %d, the window is 4", p.PacketID)
	}
	w.flight[p.PacketID] = true
	w.unacked = append(w.unacked, wire.Publish{PacketID: p.PacketID, QoS: p.QoS})
}

func (w *wild) acked(p *wire.Ack) {
	take := func(from map[uint16]int) {
		if from[p.ID]--; from[p.ID] < 0 {
			w.fault("%v %d for nothing", p.Type, p.ID)
		}
	}
	switch p.Type {
	case wire.PUBACK:
		take(w.published)
	case wire.PUBREC:
		take(w.published2)
	case wire.PUBCOMP:
		take(w.rels)
	case wire.PUBREL:
		if w.recs[p.ID]--; w.recs[p.ID] < 0 && !w.received[p.ID] {
			w.fault("PUBREL %d without PUBREC", p.ID)
		}
	}
}
