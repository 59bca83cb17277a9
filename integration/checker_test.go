package integration

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// Kinds of fault.
const (
	faultLost       = "lost"       // acknowledged or passed over, and never delivered
	faultDuplicated = "duplicated" // delivered again where that is not allowed
	faultReordered  = "reordered"  // against the order of its publisher
	faultPhantom    = "phantom"    // never sent, or from before SUBSCRIBE
	faultFlow       = "flow"       // packet ids, DUP, window, session present
	faultLog        = "log"        // the log disagrees with the ledger
	faultRecord     = "record"     // the delivery records disagree
)

type fault struct{ kind, who, text string }

func (f fault) String() string { return fmt.Sprintf("%s: %s: %s", f.kind, f.who, f.text) }

// checker collects what is wrong with one run.
type checker struct {
	l      *ledger
	groups map[string]*group
	faults []fault
}

func (c *checker) add(kind, who, format string, args ...any) {
	c.faults = append(c.faults, fault{kind, who, fmt.Sprintf(format, args...)})
}

// verify fails the test for each fault in what the clients saw.
func (l *ledger) verify(t *testing.T) { t.Helper(); report(t, l.check()) }

// verifyAudit fails the test for each point in which the store disagrees.
func (l *ledger) verifyAudit(t *testing.T, a audit) { t.Helper(); report(t, l.checkAudit(a)) }

func report(t *testing.T, faults []fault) {
	t.Helper()
	kinds := map[string]int{}
	for _, f := range faults {
		if kinds[f.kind]++; kinds[f.kind] <= 10 {
			t.Error(f)
		}
	}
	if len(faults) > 0 {
		t.Errorf("faults by kind: %v", kinds)
	}
}

// check judges the ledger alone.
func (l *ledger) check() []fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &checker{l: l, groups: l.groups()}
	for _, id := range sortedKeys(l.pubs) {
		for _, text := range l.pubs[id].faults {
			c.add(faultFlow, id, "%s", text)
		}
	}
	for _, id := range sortedKeys(l.subs) {
		r := c.checkSubscriber(id, l.subs[id])
		if g := c.groups[r.book.group]; g != nil {
			g.got = append(g.got, r.got...)
		}
	}
	for _, name := range sortedKeys(c.groups) {
		c.checkGroup(c.groups[name])
	}
	return c.faults
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// hold is a delivery that the subscriber has not finally acknowledged.
type hold struct {
	key
	qos      byte
	released bool // PUBREL was read: the id may carry a new message afterwards
}

// receiving replays one subscriber's links.
type receiving struct {
	*checker
	id    string
	book  *subBook
	held  map[uint16]hold
	last  map[uint16]key // under each id, the message that it carried last
	place map[uint16]int // and the arrival that brought it first
	seen  map[key]int    // when it arrived first, counted in arrivals
	order map[stream]*walk
	n     int
	got   []arrival // of a group's member: what came as new
}

func (c *checker) checkSubscriber(id string, book *subBook) *receiving {
	r := &receiving{
		checker: c, id: id, book: book, held: map[uint16]hold{}, last: map[uint16]key{},
		place: map[uint16]int{}, seen: map[key]int{}, order: map[stream]*walk{},
	}
	for i, link := range book.links {
		if i > 0 && !link.present {
			c.add(faultFlow, id, "connection %d: session present 0", i)
		}
		r.replayLink(i, link)
	}
	if book.group == "" {
		r.checkComplete()
	}
	return r
}

// replayLink judges the packets of one connection. Resends come first, each id
// once, in their old order [MQTT-4.4.0-1]; what is new has DUP=0.
func (r *receiving) replayLink(n int, link linkBook) {
	first, resent, place := false, map[uint16]bool{}, -1
	if r.book.group != "" {
		// What a member had at QoS 1 has gone back to the group.
		maps.DeleteFunc(r.held, func(_ uint16, h hold) bool { return h.qos == 1 })
	}
	for _, e := range link.events {
		if e.kind != kindPublish {
			r.replayAck(n, e)
			continue
		}
		if e.qos == 0 {
			r.checkKnown(e)
			continue
		}
		if e.dup {
			if first {
				r.add(faultFlow, r.id, "connection %d: DUP=1 on %v id %d after a first delivery", n, e.key, e.id)
			}
			if resent[e.id] {
				r.add(faultDuplicated, r.id, "connection %d: id %d (%v) resent twice", n, e.id, e.key)
			}
			resent[e.id] = true
			if at, ok := r.placed(e); ok {
				if at < place {
					r.add(faultReordered, r.id, "connection %d: %v id %d (arrival %d) resent after arrival %d", n, e.key, e.id, at, place)
				}
				place = max(place, at)
			}
		}
		first = first || !e.dup
		r.replayPublish(n, e)
	}
}

// placed gives the arrival that brought a resent delivery first, if that is known. Under
// an id that was acknowledged the same message may stand a second time: its publisher sent
// it again, so the log has two, and ids go round in the window.
func (r *receiving) placed(e event) (at int, ok bool) {
	h, held := r.held[e.id]
	if pub := r.l.pubs[e.key.pub]; pub == nil || !(held && h.key == e.key) && pub.sends[e.key] > 1 {
		return 0, false
	}
	at, ok = r.place[e.id]
	return at, ok && r.last[e.id] == e.key
}

func (r *receiving) replayPublish(n int, e event) {
	h, held := r.held[e.id]
	repeat := false
	switch {
	case held && (h.key != e.key || h.qos != e.qos):
		r.add(faultFlow, r.id, "connection %d: id %d is given to %v while %v holds it", n, e.id, e.key, h.key)
	case held && h.released:
		r.add(faultDuplicated, r.id, "connection %d: %v id %d comes again after its PUBREL", n, e.key, e.id)
		return
	case held && !e.dup:
		r.add(faultFlow, r.id, "connection %d: %v id %d is repeated with DUP=0", n, e.key, e.id)
		return
	case held:
		repeat = true
	case e.dup && r.last[e.id] == e.key && r.seenKey(e.key):
		if e.qos == 2 {
			r.add(faultDuplicated, r.id, "connection %d: %v id %d comes again after its PUBCOMP", n, e.key, e.id)
			return
		}
		repeat = true // its PUBACK may not have been recorded
	}
	r.held[e.id] = hold{key: e.key, qos: e.qos}
	if !repeat {
		r.last[e.id], r.place[e.id] = e.key, r.n
	}
	if len(r.held) > r.book.window {
		r.add(faultFlow, r.id, "connection %d: %d unacknowledged, window %d", n, len(r.held), r.book.window)
	}
	r.checkKnown(e)
	if r.book.group == "" {
		r.checkOrder(n, e, repeat)
		return
	}
	if !r.seenKey(e.key) {
		r.seen[e.key] = r.n
	}
	r.n++
	if !repeat {
		r.got = append(r.got, arrival{member: r.id, link: n, event: e})
	}
}

func (r *receiving) seenKey(k key) bool { _, ok := r.seen[k]; return ok }

func (r *receiving) replayAck(n int, e event) {
	h, held := r.held[e.id]
	switch {
	case e.out && (e.kind == kindPuback || e.kind == kindPubcomp):
		delete(r.held, e.id)
	case !e.out && e.kind == kindPubrel:
		if !held {
			break // PUBCOMP was lost: PUBREL may be repeated
		}
		if h.qos != 2 {
			r.add(faultFlow, r.id, "connection %d: PUBREL for id %d, a QoS 1 delivery", n, e.id)
		}
		h.released = true
		r.held[e.id] = h
	}
}

// checkKnown looks for what was never sent, was acknowledged before SUBSCRIBE,
// or has another topic or QoS than it should.
func (r *receiving) checkKnown(e event) {
	pub := r.l.pubs[e.key.pub]
	if pub == nil || pub.sends[e.key] == 0 {
		r.add(faultPhantom, r.id, "%v was never sent", e.key)
		return
	}
	if e.topic != e.key.topic {
		r.add(faultPhantom, r.id, "%v came on topic %q", e.key, e.topic)
	}
	asked, qos := int64(0), byte(0)
	for _, w := range r.book.wants {
		if matches(plain(w.filter), e.topic) {
			if asked == 0 || w.asked < asked {
				asked = w.asked
			}
			qos = max(qos, w.qos)
		}
	}
	if r.book.group != "" && asked > 0 { // its first member began it
		asked = r.groups[r.book.group].asked
	}
	switch at, acked := pub.acked[e.key]; {
	case pub.never[e.key]:
		r.add(faultPhantom, r.id, "%v is a will that was cancelled", e.key)
	case asked == 0 || asked > e.at:
		r.add(faultPhantom, r.id, "%v was not asked for", e.key)
	case acked && at < asked:
		r.add(faultPhantom, r.id, "%v was acknowledged before SUBSCRIBE", e.key)
	}
	if want := min(qos, e.key.qos); e.qos != want && asked != 0 {
		r.add(faultFlow, r.id, "%v came at QoS %d, want %d", e.key, e.qos, want)
	}
}

// checkOrder follows the stream. repeat: it may be a resend of what was there.
func (r *receiving) checkOrder(n int, e event, repeat bool) {
	w := r.order[e.key.stream]
	if w == nil {
		pub := r.l.pubs[e.key.pub]
		w = newWalk(pub, e.key.stream)
		if first := (key{e.key.stream, 1}); pub != nil && r.book.due(first, pub.firstSent()[first]) {
			w.fromStart()
		}
		r.order[e.key.stream] = w
	}
	before, seen := r.seen[e.key]
	if !seen {
		r.seen[e.key] = r.n
	}
	r.n++
	if w.step(e.key.seq, repeat) {
		return
	}
	switch pub := r.l.pubs[e.key.pub]; {
	case pub == nil || pub.sends[e.key] == 0: // a phantom: said already
	case seen && (e.key.qos == 2 || pub.sends[e.key] == 1):
		r.add(faultDuplicated, r.id, "connection %d: %v id %d dup %t, first arrival %d, now %d", n, e.key, e.id, e.dup, before, r.n-1)
	case e.key.seq > w.reached+1:
		r.add(faultLost, r.id, "connection %d: %v comes after %d", n, e.key, w.reached)
	default:
		r.add(faultReordered, r.id, "connection %d: %v comes after %d", n, e.key, w.reached)
	}
	w.restart(e.key.seq)
}

// checkComplete looks for acknowledged messages, sent after SUBACK was read,
// that never came.
func (r *receiving) checkComplete() {
	for _, id := range sortedKeys(r.l.pubs) {
		pub := r.l.pubs[id]
		firstSent := pub.firstSent()
		for k := range pub.acked {
			if !r.seenKey(k) && r.book.due(k, firstSent[k]) {
				r.add(faultLost, r.id, "%v was acknowledged and never came", k)
			}
		}
	}
}

// firstSent tells when each message was sent first.
func (b *pubBook) firstSent() map[key]int64 {
	first := map[key]int64{}
	for _, run := range b.runs {
		for _, s := range run {
			if _, ok := first[s.key]; !ok {
				first[s.key] = s.at
			}
		}
	}
	return first
}

// due tells whether the subscriber must get a message sent first at that time,
// at QoS 1 or 2.
func (b *subBook) due(k key, sent int64) bool {
	for _, w := range b.wants {
		if w.granted > 0 && sent > w.granted && matches(w.filter, k.topic) && min(w.qos, k.qos) > 0 {
			return true
		}
	}
	return false
}

// walk follows one stream through the runs of its publisher. The broker stores a
// prefix of each run, one run after the other (QoS 2: without what it has): so
// after a message comes the next of its run, or the first of a later run. More
// than one place may be meant, so all are kept.
type walk struct {
	runs    [][]int
	once    bool // QoS 2: consecutive
	at      map[[2]int]bool
	reached int // the last seq
	begun   bool
}

func newWalk(pub *pubBook, s stream) *walk {
	w := &walk{once: s.qos == 2, at: map[[2]int]bool{}}
	if pub == nil {
		return w
	}
	w.once = w.once && !pub.mortal
	for _, run := range pub.runs {
		var seqs []int
		for _, m := range run {
			if m.stream == s {
				seqs = append(seqs, m.seq)
			}
		}
		if len(seqs) > 0 {
			w.runs = append(w.runs, seqs)
		}
	}
	return w
}

// fromStart stands before the first message of the first run.
func (w *walk) fromStart() {
	w.begun, w.reached, w.runs = true, 0, append([][]int{{0}}, w.runs...)
	w.at = map[[2]int]bool{{0, 0}: true}
}

// step takes the next seq and tells whether it may come here. The first may be
// any: the subscription begins there. repeat: staying in place is allowed too.
func (w *walk) step(seq int, repeat bool) bool {
	if !w.begun {
		w.restart(seq)
		return w.once || len(w.at) > 0
	}
	if w.once {
		if repeat && seq <= w.reached {
			return true
		}
		ok := seq == w.reached+1
		if ok {
			w.reached = seq
		}
		return ok
	}
	next := map[[2]int]bool{}
	for at := range w.at {
		if run := w.runs[at[0]]; at[1]+1 < len(run) && run[at[1]+1] == seq {
			next[[2]int{at[0], at[1] + 1}] = true
		}
		for k := at[0] + 1; k < len(w.runs); k++ {
			if w.runs[k][0] == seq {
				next[[2]int{k, 0}] = true
			}
		}
	}
	if repeat {
		for at := range w.at {
			next[at] = true
		}
	}
	if len(next) == 0 {
		return false
	}
	w.at = next
	if !repeat {
		w.reached = seq
	}
	return true
}

// restart stands wherever seq was sent.
func (w *walk) restart(seq int) {
	w.begun, w.reached, w.at = true, seq, map[[2]int]bool{}
	for k, run := range w.runs {
		for i, s := range run {
			if s == seq {
				w.at[[2]int{k, i}] = true
			}
		}
	}
}

// checkAudit judges the store against the ledger. Messages that no ledger
// publisher wrote are left out.
func (l *ledger) checkAudit(a audit) []fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &checker{l: l}
	byID, place := map[string]key{}, map[string]int{}
	copies, order, others := map[key]int{}, map[stream]*walk{}, map[string]bool{}
	for i, m := range a.messages {
		k, ok := parseKey(m.payload)
		pub := l.pubs[k.pub]
		if !ok || pub == nil {
			others[m.id] = true
			continue
		}
		if byID[m.id] != (key{}) {
			c.add(faultLog, k.pub, "%v: id %s is there twice", k, m.id)
		}
		byID[m.id], place[m.id] = k, i
		copies[k]++
		if pub.sends[k] == 0 {
			c.add(faultLog, k.pub, "%v was never sent", k)
		}
		if pub.never[k] {
			c.add(faultLog, k.pub, "%v is a will that was cancelled", k)
		}
		if m.clientID != k.pub || m.topic != k.topic || m.qos != k.qos {
			c.add(faultLog, k.pub, "%v is stored as %s %s QoS %d", k, m.clientID, m.topic, m.qos)
		}
		w := order[k.stream]
		if w == nil {
			w = newWalk(pub, k.stream)
			order[k.stream] = w
			w.fromStart()
		}
		if !w.step(k.seq, false) {
			c.add(faultLog, k.pub, "%v stands after %d", k, w.reached)
			w.restart(k.seq)
		}
	}
	for _, id := range sortedKeys(l.pubs) {
		pub := l.pubs[id]
		for k := range pub.acked {
			if copies[k] == 0 {
				c.add(faultLog, id, "%v was acknowledged and is not there", k)
			}
		}
		for k, n := range copies {
			if k.pub == id && (k.qos == 2 && n > 1 || n > pub.sends[k]) {
				c.add(faultLog, id, "%v is there %d times, sent %d times", k, n, pub.sends[k])
			}
		}
	}
	c.checkRecords(a, byID, place, others)
	return c.faults
}

// checkRecords: one record for each stored message that a subscriber gets, in
// log order for each stream, seq without holes. others are messages that no
// ledger publisher wrote.
func (c *checker) checkRecords(a audit, byID map[string]key, place map[string]int, others map[string]bool) {
	type delivery struct{ sub, message string }
	count, seqs, reached := map[delivery]int{}, map[string]uint64{}, map[string]map[stream]int{}
	for _, rec := range a.records {
		book := c.l.subs[rec.clientID]
		if book == nil {
			continue
		}
		// A member's claim that another was given leaves a hole.
		if rec.seq != seqs[rec.clientID]+1 && book.group == "" {
			c.add(faultRecord, rec.clientID, "seq %d after %d", rec.seq, seqs[rec.clientID])
		}
		seqs[rec.clientID] = rec.seq
		k, known := byID[rec.messageID]
		if rec.messageID == "" || rec.retained || others[rec.messageID] {
			continue
		}
		if !known {
			c.add(faultRecord, rec.clientID, "seq %d is of message %s, which is not in the log", rec.seq, rec.messageID)
			continue
		}
		count[delivery{rec.clientID, rec.messageID}]++
		if rec.packetID == 0 || int(rec.packetID) > 65535 || rec.dropped {
			c.add(faultRecord, rec.clientID, "%v: packet id %d dropped %t", k, rec.packetID, rec.dropped)
		}
		if reached[rec.clientID] == nil {
			reached[rec.clientID] = map[stream]int{}
		}
		if last, ok := reached[rec.clientID][k.stream]; ok && place[rec.messageID] <= last && book.group == "" {
			c.add(faultRecord, rec.clientID, "%v is recorded against the order of the log", k)
		}
		reached[rec.clientID][k.stream] = place[rec.messageID]
	}
	firstSent := map[string]map[key]int64{}
	for id, pub := range c.l.pubs {
		firstSent[id] = pub.firstSent()
	}
	c.checkGroupRecords(a, byID, func(member, message string) int { return count[delivery{member, message}] })
	for _, id := range sortedKeys(c.l.subs) {
		book := c.l.subs[id]
		if book.group != "" {
			continue
		}
		arrived := map[key]bool{}
		for _, link := range book.links {
			for _, e := range link.events {
				if e.kind == kindPublish && e.qos > 0 {
					arrived[e.key] = true
				}
			}
		}
		recorded := map[key]bool{}
		for _, m := range a.messages {
			k, ok := byID[m.id]
			if !ok {
				continue
			}
			n := count[delivery{id, m.id}]
			recorded[k] = recorded[k] || n > 0
			if n > 1 || n == 0 && book.due(k, firstSent[k.pub][k]) {
				c.add(faultRecord, id, "%v (message %s) has %d records", k, m.id, n)
			}
			if n > 0 && !arrived[k] {
				c.add(faultRecord, id, "%v has a record and never came", k)
			}
		}
		for k := range arrived {
			if !recorded[k] {
				c.add(faultRecord, id, "%v came and has no record", k)
			}
		}
	}
}
