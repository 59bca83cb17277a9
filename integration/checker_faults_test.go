package integration

import (
	"fmt"
	"slices"
	"testing"
)

// scene writes a small ledger by hand: one publisher "p" on topic "t", one
// subscriber "s" with window 4.
type scene struct {
	*ledger
	a audit
}

func newScene() *scene {
	s := &scene{ledger: newLedger()}
	s.publisherConnected("p")
	s.link(false)
	s.asked("s", []want{{"t", 2}})
	s.granted("s")
	return s
}

func (s *scene) key(qos byte, seq int) key { return key{stream{"p", "t", qos}, seq} }

func (s *scene) link(present bool) { s.subscriberConnected("s", 4, present) }

// pub sends messages and has them acknowledged.
func (s *scene) pub(qos byte, seqs ...int) {
	for _, n := range seqs {
		s.sent(s.key(qos, n))
		s.acknowledged(s.key(qos, n))
	}
}

// get is an arrival.
func (s *scene) get(qos byte, seq int, id uint16, dup bool) {
	s.arrived("s", packet{kind: kindPublish, topic: "t", id: id, qos: qos, dup: dup, payload: s.key(qos, seq).payload(0)})
}

// done acknowledges an arrival to the end.
func (s *scene) done(qos byte, id uint16) {
	if qos == 1 {
		s.answered("s", kindPuback, id)
		return
	}
	s.answered("s", kindPubrec, id)
	s.arrived("s", packet{kind: kindPubrel, id: id})
	s.answered("s", kindPubcomp, id)
}

func (s *scene) deliver(qos byte, seq int, id uint16) { s.get(qos, seq, id, false); s.done(qos, id) }

// store appends to the log, record to the delivery records.
func (s *scene) store(qos byte, seq int) {
	s.a.messages = append(s.a.messages, storedMessage{
		id: fmt.Sprint(len(s.a.messages)), clientID: "p", topic: "t", payload: s.key(qos, seq).payload(0), qos: qos,
	})
}

func (s *scene) record(message int, id uint16) {
	s.a.records = append(s.a.records, storedRecord{
		clientID: "s", messageID: fmt.Sprint(message), seq: uint64(len(s.a.records) + 1), packetID: id, qos: 1,
	})
}

// Each kind of fault is found, and what is allowed is not taken for one.
func TestCheckerClients(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string // kind of fault; empty: none
		run  func(s *scene)
	}{
		"all well": {"", func(s *scene) {
			s.pub(1, 1, 2)
			s.pub(2, 1, 2)
			s.deliver(1, 1, 1)
			s.deliver(2, 1, 2)
			s.deliver(1, 2, 3)
			s.deliver(2, 2, 4)
		}},
		"lost at the end":    {faultLost, func(s *scene) { s.pub(1, 1, 2); s.deliver(1, 1, 1) }},
		"lost in the middle": {faultLost, func(s *scene) { s.pub(1, 1, 2, 3); s.deliver(1, 1, 1); s.deliver(1, 3, 2) }},
		"lost QoS 2":         {faultLost, func(s *scene) { s.pub(2, 1, 2, 3); s.deliver(2, 1, 1); s.deliver(2, 3, 2) }},
		"passed over, not acknowledged": {faultLost, func(s *scene) {
			s.sent(s.key(1, 1))
			s.sent(s.key(1, 2))
			s.sent(s.key(1, 3))
			s.deliver(1, 1, 1)
			s.deliver(1, 3, 2)
		}},
		"not acknowledged, not delivered": {"", func(s *scene) { s.sent(s.key(1, 1)) }},
		"reordered":                       {faultReordered, func(s *scene) { s.pub(1, 1, 2, 3); s.deliver(1, 1, 1); s.deliver(1, 3, 2); s.deliver(1, 2, 3) }},
		"reordered QoS 2":                 {faultReordered, func(s *scene) { s.pub(2, 1, 2, 3); s.deliver(2, 1, 1); s.deliver(2, 3, 2); s.deliver(2, 2, 3) }},
		"QoS 1 twice, DUP=0":              {faultDuplicated, func(s *scene) { s.pub(1, 1); s.deliver(1, 1, 1); s.deliver(1, 1, 2) }},
		"QoS 1 repeated in the connection": {faultFlow, func(s *scene) {
			s.pub(1, 1)
			s.get(1, 1, 1, false)
			s.get(1, 1, 1, true)
		}},
		"QoS 1 resent unacknowledged": {"", func(s *scene) {
			s.pub(1, 1, 2)
			s.get(1, 1, 1, false)
			s.get(1, 2, 2, false)
			s.link(true)
			s.get(1, 1, 1, true)
			s.get(1, 2, 2, true)
		}},
		"QoS 1 resent, PUBACK in doubt": {"", func(s *scene) {
			s.pub(1, 1)
			s.deliver(1, 1, 1)
			s.link(true)
			s.get(1, 1, 1, true)
			s.done(1, 1)
		}},
		"QoS 1 resent out of order": {faultReordered, func(s *scene) {
			s.pub(1, 1, 2)
			s.get(1, 1, 1, false)
			s.get(1, 2, 2, false)
			s.link(true)
			s.get(1, 2, 2, true)
			s.get(1, 1, 1, true)
		}},
		"QoS 1 resent out of order, PUBACK in doubt": {faultReordered, func(s *scene) {
			s.pub(1, 1, 2)
			s.deliver(1, 1, 1)
			s.get(1, 2, 2, false)
			s.link(true)
			s.get(1, 2, 2, true)
			s.get(1, 1, 1, true)
		}},
		"the second copy comes first as a resend, under the id of the first": {"", func(s *scene) {
			s.sent(s.key(1, 1))
			s.pub(2, 1, 2, 3)
			s.publisherConnected("p")
			s.pub(1, 1)
			s.deliver(1, 1, 1)
			s.deliver(2, 1, 2)
			s.deliver(2, 2, 3)
			s.get(2, 3, 4, false)
			s.link(true)
			s.get(2, 3, 4, true)
			s.get(1, 1, 1, true)
		}},
		"QoS 1 resent under another id": {faultDuplicated, func(s *scene) {
			s.pub(1, 1)
			s.get(1, 1, 1, false)
			s.link(true)
			s.get(1, 1, 2, true)
		}},
		"QoS 1 resent twice in a connection": {faultDuplicated, func(s *scene) {
			s.pub(1, 1)
			s.deliver(1, 1, 1)
			s.link(true)
			s.get(1, 1, 1, true)
			s.done(1, 1)
			s.get(1, 1, 1, true)
		}},
		"first attempt was lost on the way": {"", func(s *scene) {
			s.pub(1, 1, 2)
			s.deliver(1, 1, 1)
			s.link(true)
			s.get(1, 2, 2, true)
		}},
		"DUP after what is new": {faultFlow, func(s *scene) {
			s.pub(1, 1, 2)
			s.get(1, 1, 1, false)
			s.link(true)
			s.get(1, 2, 2, false)
			s.get(1, 1, 1, true)
		}},
		"repeated with DUP=0": {faultFlow, func(s *scene) {
			s.pub(1, 1)
			s.get(1, 1, 1, false)
			s.link(true)
			s.get(1, 1, 1, false)
		}},
		"the publisher sent it twice": {"", func(s *scene) {
			s.sent(s.key(1, 1))
			s.sent(s.key(1, 2))
			s.publisherConnected("p")
			s.pub(1, 1, 2, 3)
			for i, seq := range []int{1, 2, 1, 2, 3} {
				s.deliver(1, seq, uint16(i+1))
			}
		}},
		"an empty run between": {"", func(s *scene) {
			s.sent(s.key(1, 1))
			s.publisherConnected("p")
			s.sent(s.key(1, 1))
			s.publisherConnected("p")
			s.pub(1, 1, 2)
			s.deliver(1, 1, 1)
			s.deliver(1, 2, 2)
		}},
		"L5: m2, m1, m2": {faultLost, func(s *scene) {
			s.sent(s.key(1, 1))
			s.sent(s.key(1, 2))
			s.publisherConnected("p")
			s.pub(1, 1, 2)
			for i, seq := range []int{2, 1, 2} {
				s.deliver(1, seq, uint16(i+1))
			}
		}},
		"a hole in a run": {faultLost, func(s *scene) {
			s.sent(s.key(1, 1))
			s.sent(s.key(1, 2))
			s.sent(s.key(1, 3))
			s.publisherConnected("p")
			s.pub(1, 2, 3)
			for i, seq := range []int{1, 3, 2, 3} {
				s.deliver(1, seq, uint16(i+1))
			}
		}},
		"QoS 2 resent before PUBREC": {"", func(s *scene) {
			s.pub(2, 1)
			s.get(2, 1, 1, false)
			s.link(true)
			s.get(2, 1, 1, true)
			s.done(2, 1)
		}},
		"QoS 2 resent, PUBREC in doubt": {"", func(s *scene) {
			s.pub(2, 1)
			s.get(2, 1, 1, false)
			s.answered("s", kindPubrec, 1)
			s.link(true)
			s.get(2, 1, 1, true)
			s.done(2, 1)
		}},
		"QoS 2 PUBREL repeated": {"", func(s *scene) {
			s.pub(2, 1)
			s.deliver(2, 1, 1)
			s.link(true)
			s.arrived("s", packet{kind: kindPubrel, id: 1})
			s.answered("s", kindPubcomp, 1)
		}},
		"QoS 2 again after PUBREL": {faultDuplicated, func(s *scene) {
			s.pub(2, 1)
			s.get(2, 1, 1, false)
			s.answered("s", kindPubrec, 1)
			s.arrived("s", packet{kind: kindPubrel, id: 1})
			s.link(true)
			s.get(2, 1, 1, true)
		}},
		"QoS 2 again after PUBCOMP":   {faultDuplicated, func(s *scene) { s.pub(2, 1); s.deliver(2, 1, 1); s.link(true); s.get(2, 1, 1, true) }},
		"QoS 2 again, another id":     {faultDuplicated, func(s *scene) { s.pub(2, 1); s.deliver(2, 1, 1); s.deliver(2, 1, 2) }},
		"a held id for another":       {faultFlow, func(s *scene) { s.pub(1, 1, 2); s.get(1, 1, 1, false); s.get(1, 2, 1, false) }},
		"PUBREL for a QoS 1 delivery": {faultFlow, func(s *scene) { s.pub(1, 1); s.get(1, 1, 1, false); s.arrived("s", packet{kind: kindPubrel, id: 1}) }},
		"window": {faultFlow, func(s *scene) {
			s.pub(1, 1, 2, 3, 4, 5)
			for n := 1; n <= 5; n++ {
				s.get(1, n, uint16(n), false)
			}
		}},
		"session lost": {faultFlow, func(s *scene) { s.link(false) }},
		"wrong QoS": {faultFlow, func(s *scene) {
			s.pub(2, 1)
			s.arrived("s", packet{kind: kindPublish, topic: "t", id: 1, qos: 1, payload: s.key(2, 1).payload(0)})
		}},
		"never sent": {faultPhantom, func(s *scene) { s.get(1, 1, 1, false) }},
		"wrong topic": {faultPhantom, func(s *scene) {
			s.pub(1, 1)
			s.arrived("s", packet{kind: kindPublish, topic: "u", id: 1, qos: 1, payload: s.key(1, 1).payload(0)})
		}},
		"before SUBSCRIBE": {faultPhantom, func(s *scene) {
			s.pub(1, 1)
			s.subscriberConnected("late", 4, false)
			s.asked("late", []want{{"t", 1}})
			s.granted("late")
			s.deliver(1, 1, 1)
			s.arrived("late", packet{kind: kindPublish, topic: "t", id: 1, qos: 1, payload: s.key(1, 1).payload(0)})
		}},
		"between SUBSCRIBE and SUBACK": {"", func(s *scene) {
			s.subscriberConnected("late", 4, false)
			s.asked("late", []want{{"t", 1}})
			s.pub(1, 1)
			s.granted("late")
			s.deliver(1, 1, 1)
		}},
		"publisher's own": {faultFlow, func(s *scene) { s.clientFault("p", "acks out of order") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene()
			c.run(s)
			expectFault(t, s.check(), c.want)
		})
	}
}

// What the store says is held against the ledger in the same way.
func TestCheckerAudit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		run  func(s *scene)
	}{
		"all well":                {"", func(*scene) {}},
		"acknowledged, not there": {faultLog, func(s *scene) { s.pub(1, 4) }},
		"QoS 2 twice":             {faultLog, func(s *scene) { s.store(2, 1); s.record(4, 4) }},
		"more than was sent":      {faultLog, func(s *scene) { s.store(1, 3); s.record(4, 4) }},
		"never sent":              {faultLog, func(s *scene) { s.store(1, 9) }},
		"wrong order":             {faultLog, func(s *scene) { m := s.a.messages; m[0], m[1] = m[1], m[0]; s.a.records = nil }},
		"altered":                 {faultLog, func(s *scene) { s.a.messages[0].topic = "u" }},
		"no record":               {faultRecord, func(s *scene) { s.a.records = s.a.records[:3] }},
		"two records":             {faultRecord, func(s *scene) { s.record(3, 4) }},
		"hole in seq":             {faultRecord, func(s *scene) { s.a.records = slices.Delete(s.a.records, 1, 2) }},
		"records out of order": {faultRecord, func(s *scene) {
			r := s.a.records
			r[0].messageID, r[1].messageID = r[1].messageID, r[0].messageID
		}},
		"record without a message": {faultRecord, func(s *scene) { s.record(7, 4) }},
		"a fence":                  {"", func(s *scene) { s.record(7, 0); s.a.records[4].messageID = "" }},
		"record, never delivered": {faultRecord, func(s *scene) {
			s.sent(s.key(1, 4))
			s.store(1, 4)
			s.record(4, 4)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene()
			s.pub(1, 1, 2, 3)
			s.pub(2, 1)
			for n := 1; n <= 3; n++ {
				s.deliver(1, n, uint16(n))
				s.store(1, n)
				s.record(n-1, uint16(n))
			}
			s.deliver(2, 1, 4)
			s.store(2, 1)
			s.record(3, 4)
			c.run(s)
			expectFault(t, s.checkAudit(s.a), c.want)
		})
	}
}

func expectFault(t *testing.T, got []fault, kind string) {
	t.Helper()
	if kind == "" && len(got) > 0 {
		t.Errorf("found %v, want no fault", got)
	}
	if kind != "" && !slices.ContainsFunc(got, func(f fault) bool { return f.kind == kind }) {
		t.Errorf("found %v, want %s", got, kind)
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/#", "a", true},
		{"a/#", "a/b/c", true},
		{"a/+", "a", false},
		{"a/+", "a/", true},
		{"+/b", "a/b", true},
		{"#", "$SYS/x", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
		{"a", "a/b", false},
		{"#", "/", true},
	} {
		if matches(c.filter, c.topic) != c.want {
			t.Errorf("matches(%q, %q) != %t", c.filter, c.topic, c.want)
		}
	}
}
