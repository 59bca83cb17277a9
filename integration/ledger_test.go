package integration

import (
	"fmt"
	"strings"
	"sync"
)

// key is what a payload says of itself: the seq-th message of its publisher on
// that topic at that QoS, from 1 without holes.
type key struct {
	stream
	seq int
}

// stream is what order is promised for [MQTT-4.6.0-6].
type stream struct {
	pub, topic string
	qos        byte
}

func (k key) String() string { return fmt.Sprintf("%s:%s:q%d:%d", k.pub, k.topic, k.qos, k.seq) }

// payload writes k down, filled up to at least size bytes.
func (k key) payload(size int) []byte {
	b := fmt.Appendf(nil, "%s %s %d %d ", k.pub, k.topic, k.qos, k.seq)
	for len(b) < size {
		b = append(b, "0123456789abcdef"[len(b)%16])
	}
	return b
}

func parseKey(payload []byte) (key, bool) {
	var k key
	_, err := fmt.Sscanf(string(payload[:min(len(payload), 200)]), "%s %s %d %d ", &k.pub, &k.topic, &k.qos, &k.seq)
	return k, err == nil
}

// ledger is what the clients saw, in the order of one clock: what stands in it
// with a smaller time happened before. Safe for concurrent use; the checker
// reads it when all clients have stopped.
type ledger struct {
	mu    sync.Mutex
	clock int64
	acks  int // publishes acknowledged so far
	pubs  map[string]*pubBook
	subs  map[string]*subBook
	kills []int64 // when a broker was about to be killed
}

// pubBook is one publisher's part.
type pubBook struct {
	// runs has one entry for each connection: what was sent on it, in order.
	// The broker may store a prefix of each run, one run after the other.
	runs   [][]sending
	sends  map[key]int   // how often it was sent
	acked  map[key]int64 // when PUBACK or PUBREC was read
	faults []string      // what the publisher itself found wrong
	last   map[stream]int
	// mortal: a device that dies again and again (mortal_test.go). What it sends, its
	// births and wills, is one message to a run: each comes once or not at all, in order.
	mortal bool
	// never are wills that must not come.
	never map[key]bool
}

type sending struct {
	key
	at int64
}

// subBook is one subscriber's part.
type subBook struct {
	window int // most that may be unacknowledged
	wants  []subscribed
	links  []linkBook
	// newest is the highest seq seen, for those who wait for the end.
	newest map[stream]int
	group  string // the shared filter that makes it a member; empty: of none
}

// subscribed is one filter: when SUBSCRIBE was sent and when SUBACK was read (0:
// not yet). Only the first of each filter is kept: later ones change nothing.
type subscribed struct {
	filter         string
	qos            byte
	asked, granted int64
}

// linkBook is one connection of a subscriber.
type linkBook struct {
	present bool
	events  []event
	began   int64
	// The broker has lost the link at some time from ended to gone. 0: not yet.
	ended, gone int64
}

// event is one packet of a delivery. out: sent by the subscriber.
type event struct {
	at     int64
	out    bool
	kind   byte
	id     uint16
	key    key // PUBLISH
	qos    byte
	dup    bool
	retain bool
	topic  string
}

func newLedger() *ledger {
	return &ledger{pubs: map[string]*pubBook{}, subs: map[string]*subBook{}}
}

// tick gives the next moment. REQUIRES: mu is held.
func (l *ledger) tick() int64 { l.clock++; return l.clock }

func (l *ledger) pub(id string) *pubBook {
	b := l.pubs[id]
	if b == nil {
		b = &pubBook{sends: map[key]int{}, acked: map[key]int64{}, last: map[stream]int{}, never: map[key]bool{}}
		l.pubs[id] = b
	}
	return b
}

func (l *ledger) sub(id string) *subBook {
	b := l.subs[id]
	if b == nil {
		b = &subBook{newest: map[stream]int{}, window: 65535}
		l.subs[id] = b
	}
	return b
}

// publisherConnected begins a run.
func (l *ledger) publisherConnected(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.pub(id)
	b.runs = append(b.runs, nil)
}

// sent is called before a PUBLISH goes out.
func (l *ledger) sent(k key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.pub(k.pub)
	b.sends[k]++
	b.last[k.stream] = max(b.last[k.stream], k.seq)
	run := &b.runs[len(b.runs)-1]
	*run = append(*run, sending{k, l.tick()})
}

// acknowledged is called after PUBACK or PUBREC was read.
func (l *ledger) acknowledged(k key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks++
	b := l.pub(k.pub)
	b.acked[k] = l.tick()
	if b.mortal {
		b.last[k.stream] = max(b.last[k.stream], k.seq)
	}
}

// sentAlone notes what a device may send: each message is a run of its own.
func (l *ledger) sentAlone(keys ...key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		b := l.pub(k.pub)
		b.mortal = true
		b.sends[k]++
		b.runs = append(b.runs, []sending{{k, l.tick()}})
	}
}

// mustNotCome notes a will that was cancelled.
func (l *ledger) mustNotCome(k key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pub(k.pub).never[k] = true
}

// seen tells whether some subscriber has got that far in a stream.
func (l *ledger) seen(k key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.subs {
		if b.newest[k.stream] >= k.seq {
			return true
		}
	}
	return false
}

// killing is called before a broker is killed.
func (l *ledger) killing() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kills = append(l.kills, l.tick())
}

func (l *ledger) clientFault(id, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.pub(id)
	b.faults = append(b.faults, text)
}

// acknowledgedCount tells how many publishes have been acknowledged.
func (l *ledger) acknowledgedCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// progress grows with each publish that is acknowledged, and with what subscribers see
// of new messages.
func (l *ledger) progress() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.acks
	for _, b := range l.subs {
		for _, seq := range b.newest {
			n += seq
		}
	}
	return n
}

func (l *ledger) subscriberConnected(id string, window int, present bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.sub(id)
	b.window = window
	now := l.tick()
	if n := len(b.links); n > 0 && b.links[n-1].gone == 0 {
		b.links[n-1].gone = now // it was taken over at the latest
	}
	b.links = append(b.links, linkBook{present: present, began: now})
}

// leaving is called before a subscriber ends its link.
func (l *ledger) leaving(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sub(id).link().ended = l.tick()
}

// left is called when the link has ended: the broker has closed it.
func (l *ledger) left(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	link := l.sub(id).link()
	link.gone = l.tick()
	if link.ended != 0 {
		return
	}
	link.ended = link.began // the broker ended it, some time after the last packet
	for _, e := range link.events {
		if !e.out {
			link.ended = e.at
		}
	}
}

// stands tells that a subscriber has not ended its link by itself.
func (l *ledger) stands(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sub(id).link().ended == 0
}

func (b *subBook) link() *linkBook { return &b.links[len(b.links)-1] }

func (l *ledger) asked(id string, wants []want) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.sub(id)
next:
	for _, w := range wants {
		for i := range b.wants {
			if b.wants[i].filter == w.filter {
				continue next
			}
		}
		b.wants = append(b.wants, subscribed{filter: w.filter, qos: w.options & 3, asked: l.tick()})
		if plain(w.filter) != w.filter {
			b.group = w.filter
		}
	}
}

// granted notes the SUBACK of everything asked for so far.
func (l *ledger) granted(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.sub(id)
	for i := range b.wants {
		if b.wants[i].granted == 0 {
			b.wants[i].granted = l.tick()
		}
	}
}

// arrived notes a packet of a delivery that was read.
func (l *ledger) arrived(id string, p packet) {
	e := event{kind: p.kind, id: p.id, qos: p.qos, dup: p.dup, retain: p.retain, topic: p.topic}
	if p.kind == kindPublish {
		k, ok := parseKey(p.payload)
		if !ok {
			k.topic = fmt.Sprintf("unreadable payload %q", p.payload[:min(40, len(p.payload))])
		}
		e.key = k
	}
	l.note(id, e)
}

// answered notes an acknowledgement, before it goes out.
func (l *ledger) answered(id string, kind byte, packetID uint16) {
	l.note(id, event{out: true, kind: kind, id: packetID})
}

func (l *ledger) note(id string, e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.sub(id)
	e.at = l.tick()
	if e.kind == kindPublish {
		b.newest[e.key.stream] = max(b.newest[e.key.stream], e.key.seq)
	}
	link := b.link()
	link.events = append(link.events, e)
}

// caughtUp tells whether every subscriber has seen the last message of every
// stream that it wants, and every group all that it must; behind names one that has
// not.
func (l *ledger) caughtUp() (behind string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, sub := range l.subs {
		for _, pub := range l.pubs {
			for s, last := range pub.last {
				if _, ok := sub.granted(s); ok && sub.newest[s] < last {
					return fmt.Sprintf("%s has %d of %d of %v", id, sub.newest[s], last, s), false
				}
			}
		}
	}
	for name, g := range l.groups() {
		if missing := g.missing(); len(missing) > 0 {
			return fmt.Sprintf("group %s has not got %v", name, missing[0]), false
		}
	}
	return "", true
}

// wantedTopics are the topics of publishers that somebody subscribes to.
func (l *ledger) wantedTopics() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	topics := map[string]bool{}
	for _, pub := range l.pubs {
		for s := range pub.last {
			for _, sub := range l.subs {
				for _, w := range sub.wants {
					if !pub.mortal && matches(plain(w.filter), s.topic) {
						topics[s.topic] = true
					}
				}
			}
		}
	}
	return sortedKeys(topics)
}

// granted gives the highest QoS that the subscriber may get s with, by filters
// whose SUBACK it has read.
func (b *subBook) granted(s stream) (qos byte, ok bool) {
	for _, w := range b.wants {
		if w.granted > 0 && matches(w.filter, s.topic) {
			qos, ok = max(qos, w.qos), true
		}
	}
	return min(qos, s.qos), ok
}

// plain gives the topic filter of a shared subscription, and others unchanged.
func plain(filter string) string {
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		_, filter, _ = strings.Cut(rest, "/")
	}
	return filter
}

// matches is the topic matching of section 4.7, written for the reader.
func matches(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "#" || f[0] == "+") {
		return false // [MQTT-4.7.2-1]
	}
	for i, level := range f {
		if level == "#" {
			return true // also the parent level
		}
		if i == len(t) || level != "+" && level != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}
