package session

import (
	"rewindmq/schema"
	"rewindmq/store"
)

type ledgerKey struct {
	client string
	sid    uint64
}

// span is a stretch of the log, from (exclusive) to (inclusive; -1: no end), by
// the messages' TS: here it is the commit order.
type span struct {
	qos  uint8
	from uint64
	to   int64
}

func (s span) has(ts uint64) bool { return ts > s.from && (s.to < 0 || ts <= uint64(s.to)) }

// orderKey: MQTT-4.6.0-6 speaks of one publisher, topic and QoS.
type orderKey struct {
	from, topic   string
	published, at uint8
}

// ledger is what the client of one session saw and was promised, and what the
// store was told for it.
type ledger struct {
	w          *world
	client     string
	sid        uint64
	seen       map[uint64]uint16 // deliveries that arrived: seq to packet id
	big        map[uint64]bool   // of those
	app        map[schema.ID]int // how often a message came to the application
	last       map[orderKey]int  // k of the newest message
	had        map[orderKey]map[int]bool
	runs       map[schema.ID]int    // deliveries of retained runs, by message
	stale      map[string][3]uint64 // newest retained message seen live, by topic and QoS
	cover      map[string][]span    // from SUBACK on: what P2 demands
	spans      map[string][]span    // from SUBSCRIBE to UNSUBACK: what may come
	expect     map[string]request2  // retained messages
	subscribed []string
	small      bool // a client that takes no big messages was there

	dropped  map[schema.ID]bool
	recorded map[schema.ID]uint64
	records  map[uint64]schema.Delivery
	saved    map[uint64]bool // settled, and a saved cursor says so
	sends    map[uint64]int
	isRun    map[uint64]bool
	place    map[uint64]uint64 // TS of the message
	maxSeq   uint64
	runPlace map[schema.ID]schema.Cursor // of each run
}

func (w *world) ledger(client string, sid uint64) *ledger {
	k := ledgerKey{client, sid}
	l := w.ledgers[k]
	if l == nil {
		l = &ledger{
			w: w, client: client, sid: sid, seen: map[uint64]uint16{}, big: map[uint64]bool{}, app: map[schema.ID]int{},
			last: map[orderKey]int{}, had: map[orderKey]map[int]bool{}, runs: map[schema.ID]int{}, stale: map[string][3]uint64{},
			cover: map[string][]span{}, spans: map[string][]span{}, expect: map[string]request2{},
			dropped: map[schema.ID]bool{}, recorded: map[schema.ID]uint64{}, records: map[uint64]schema.Delivery{},
			saved: map[uint64]bool{}, sends: map[uint64]int{}, isRun: map[uint64]bool{}, place: map[uint64]uint64{}, runPlace: map[schema.ID]schema.Cursor{},
		}
		w.ledgers[k] = l
		w.order = append(w.order, l)
	}
	return l
}

// onRun judges the first arrival of a delivery of a retained run.
func (l *ledger) onRun(d *device, p *packet, x *pub) {
	if p.qos == 0 {
		return
	}
	l.runs[p.m.ID]++
	n := 0
	for _, f := range l.subscribed {
		if schema.Match(f, x.topic) {
			n++
		}
	}
	must(l.runs[p.m.ID] <= n, "R2: retained %s came %d times for %d SUBSCRIBE", x.name, l.runs[p.m.ID], n)
	if d.solo {
		must(l.stale[x.topic][p.qos] <= p.m.TS, "R3: retained %s came after a newer one", x.name)
	}
}

// onLog judges the first arrival of a message from the log.
func (l *ledger) onLog(d *device, p *packet, x *pub) {
	may := false
	for _, f := range simFilters {
		if schema.Match(f, x.topic) {
			for _, s := range l.spans[f] {
				may = may || s.has(p.m.TS)
			}
		}
	}
	must(may, "%s is from before SUBSCRIBE or after UNSUBACK", x.name)
	if p.m.Retain {
		s := l.stale[x.topic]
		s[p.qos] = max(s[p.qos], p.m.TS)
		l.stale[x.topic] = s
	}
	key := orderKey{from: x.from, topic: x.topic, published: x.qos, at: p.qos}
	if l.had[key] == nil {
		l.had[key] = map[int]bool{}
	}
	if !l.had[key][x.k] && !x.turned && l.w.firstTS[x.name] == p.m.TS { // else: sent again later by its publisher
		must(l.last[key] < x.k, "P4: %s after %d of the same publisher, topic and QoS", x.name, l.last[key])
		l.last[key] = x.k
		l.had[key][x.k] = true
	}
	if p.qos > 0 && l.app[p.m.ID] == 0 {
		l.app[p.m.ID] = 0 // it came
	}
}

// sends judges a PUBLISH that leaves.
func (o *owned) sends(a Action, e *entry) {
	w, l := o.n.w, o.l
	name := w.pubOf(a.Message).name
	if !o.s.o.Clean {
		r, ok := l.records[e.Seq]
		must(ok && r.MessageID == a.Message.ID && r.PacketID == a.PacketID && r.QoS == a.QoS, "P3: %s is sent and not recorded", name)
	}
	must(a.Dup == o.old[e.Seq], "P3: %s leaves with DUP %v, and its record is of a former connection: %v", name, a.Dup, o.old[e.Seq])
	if place, ok := l.runPlace[e.Retained]; ok {
		must(!place.After(e.Mark), "R3: retained %s is after the place of its run: the log brings it", name)
	}
	if o.c.eof || !o.c.dev.solo {
		return
	}
	must(!l.saved[e.Seq], "P3: %s sent again after its settlement was saved", name)
	must(a.Dup || l.sends[e.Seq] == 0, "P3: %s sent again with DUP=0", name)
	l.sends[e.Seq]++
	l.maxSeq = max(l.maxSeq, e.Seq)
	l.place[e.Seq] = a.Message.TS
	if !e.Retained.IsZero() {
		l.isRun[e.Seq] = true
	}
}

// writeOf is Model.Write for a session, and notes what the ledgers have to know.
func (w *world) writeOf(o *owned, doc store.Write) error {
	r, ok := doc.(store.Release)
	owner, _, _ := w.m.Owner(o.client)
	err := w.write(doc)
	if ok && r.Normal {
		if owner.Epoch == o.epoch && err == nil || owner.SID == o.s.o.Owner.SID && w.decided[o.client] <= o.epoch {
			o.c.will = willRemoved
		} else if o.c.will != willRemoved {
			o.c.will = willUnknown // a claimer may have decided it
		}
	}
	return err
}

func (w *world) decideWill(o schema.Owner) []schema.Will {
	owner, _, _ := w.m.Owner(o.ClientID)
	w.decided[o.ClientID] = owner.Epoch
	return w.m.DecideWill(o.ClientID, o.Epoch)
}

func (w *world) write(doc store.Write) error {
	err := w.m.Write(doc)
	if c, ok := doc.(store.SaveCursor); ok && err == nil {
		l := w.ledger(c.ClientID, c.SID)
		flight := map[uint64]bool{}
		for _, f := range c.Cursor.Flight {
			flight[f.Seq] = true
		}
		for seq := uint64(1); seq <= c.Cursor.Seq; seq++ {
			if !flight[seq] {
				l.saved[seq] = true
			}
		}
	}
	return err
}

func (w *world) retainedNow(topic string) *schema.Message {
	m := w.lastRetained[topic]
	if m == nil || len(m.Payload) == 0 {
		return nil
	}
	return m
}
