package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
)

// What the simulation does not reach.

func (p *play) subs(subs ...schema.Subscription) {
	codes := make([]Code, len(subs))
	for i := range subs {
		codes[i] = Code(subs[i].QoS)
	}
	p.do(func(s *Session) { s.OnSubscribe(1, subs, codes) })
	p.heard()
}

// [MQTT-3.3.4-2, MQTT-3.3.4-3, MQTT-3.8.3-3, MQTT-3.3.1-12, MQTT-3.3.1-13,
// MQTT-4.7.2-1].
func TestMatching(t *testing.T) {
	t.Parallel()
	type sub = schema.Subscription
	for _, tt := range []struct {
		name  string
		subs  []sub
		topic string
		qos   uint8
		from  string
		flag  bool // RETAIN
		want  string
	}{
		{"none matches", []sub{{Filter: "b", QoS: 1}}, "a", 1, "o", false, ""},
		{"lower QoS of the subscription", []sub{{Filter: "a", QoS: 1}}, "a", 2, "o", false, "m qos 1 id 1"},
		{"lower QoS of the message", []sub{{Filter: "a", QoS: 2}}, "a", 1, "o", false, "m qos 1 id 1"},
		{"QoS 0", []sub{{Filter: "a", QoS: 0}}, "a", 2, "o", false, "m qos 0"},
		{"overlap gives one copy, the highest QoS, all identifiers", []sub{{Filter: "a/+", QoS: 0, Identifier: 7}, {Filter: "a/#", QoS: 2, Identifier: 8}, {Filter: "a/x", QoS: 1, Identifier: 9}, {Filter: "b", QoS: 2, Identifier: 10}}, "a/x", 2, "o", false, "m qos 2 id 1 subscriptions [9 7 8]"},
		{"one identifier of two subscriptions comes once", []sub{{Filter: "a", QoS: 0, Identifier: 7}, {Filter: "#", QoS: 0, Identifier: 7}}, "a", 0, "o", false, "m qos 0 subscriptions [7]"},
		{"no local, its own", []sub{{Filter: "a", QoS: 1, NoLocal: true}}, "a", 1, "c", false, ""},
		{"no local, another's", []sub{{Filter: "a", QoS: 1, NoLocal: true}}, "a", 1, "o", false, "m qos 1 id 1"},
		{"no local beside one that is not", []sub{{Filter: "a", QoS: 2, NoLocal: true, Identifier: 1}, {Filter: "+", QoS: 1, Identifier: 2}}, "a", 2, "c", false, "m qos 1 id 1 subscriptions [2]"},
		{"RETAIN is 0 on what is live", []sub{{Filter: "a", QoS: 1, RetainHandling: 2}}, "a", 1, "o", true, "m qos 1 id 1"},
		{"retain as published", []sub{{Filter: "a", QoS: 1, RetainHandling: 2, RetainAsPublished: true}}, "a", 1, "o", true, "m qos 1 id 1 retain"},
		{"retain as published, not retained", []sub{{Filter: "a", QoS: 0, RetainHandling: 2, RetainAsPublished: true}}, "a", 0, "o", false, "m qos 0"},
		{"a topic with $ and a wildcard first", []sub{{Filter: "#", QoS: 1}, {Filter: "+/x", QoS: 1}}, "$SYS/x", 1, "o", false, ""},
		{"a topic with $ by its name", []sub{{Filter: "$SYS/#", QoS: 1}}, "$SYS/x", 1, "o", false, "m qos 1 id 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlay(t)
			p.connect()
			p.subs(tt.subs...)
			p.append(&schema.Message{ID: p.m.NewID(), Topic: tt.topic, Payload: []byte("m"), QoS: tt.qos, ClientID: tt.from, Retain: tt.flag})
			p.want(tt.want)
		})
	}
}

// [MQTT-3.3.1-9, MQTT-3.3.1-10, MQTT-3.3.1-11].
func TestRetainHandling(t *testing.T) {
	t.Parallel()
	for handling, want := range []string{"r qos 1 id 1 retain, SUBACK 2 [1], r qos 1 id 2 retain", "r qos 1 id 1 retain, SUBACK 2 [1]", "SUBACK 2 [1]"} {
		p := newPlay(t)
		p.retain("a", "r", 1)
		p.retain("b", "no", 1)
		p.retain("a/cleared", "no", 1)
		p.retain("a/cleared", "", 1)
		p.connect()
		p.run("a/#", 1, uint8(handling))
		p.do(func(s *Session) {
			s.OnSubscribe(2, []schema.Subscription{{Filter: "a/#", QoS: 1, RetainHandling: uint8(handling)}}, []Code{1})
		})
		p.want(want)
	}
}

// [MQTT-3.8.4-1, MQTT-3.10.4-4]: requests are answered one at a time, in order.
func TestRequestsAreInOrder(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.connect()
	p.hold[DoHead] = true
	p.do(func(s *Session) {
		s.OnSubscribe(1, []schema.Subscription{{Filter: "a", QoS: 1}, {Filter: "b", QoS: 2}}, []Code{1, 0x8f, 2})
		s.OnUnsubscribe(2, []string{"a", "none"})
		s.OnSubscribe(3, nil, []Code{0x8f})
		s.OnSubscribe(4, []schema.Subscription{{Filter: "c"}}, []Code{0})
	})
	p.want("")
	if n := p.s.Requests(); n != 4 {
		t.Errorf("%d requests wait", n)
	}
	p.release(DoHead)
	p.want("SUBACK 3 [143], SUBACK 1 [1 143 2], UNSUBACK 2 [0 17], SUBACK 4 [0]") // nothing in 3 is written
	p.publish("a", "m1", 1)
	p.publish("b", "m2", 2)
	p.publish("c", "m3", 2)
	p.want("m2 qos 2 id 1, m3 qos 0")
	if n := len(p.m.Subscriptions("c", p.s.Owner().SID)); n != 2 || p.s.Subscriptions() != 2 {
		t.Errorf("%d subscriptions are stored, %d known", n, p.s.Subscriptions())
	}
}

// An UNSUBSCRIBE in the middle of a replay, and a SUBSCRIBE.
func TestSubscriptionsChangeWhileReplaying(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window = 1
	p.begin("a", 1)
	p.subs(schema.Subscription{Filter: "b", QoS: 1})
	p.close(ReasonDetached)
	p.heard()
	for i := range 6 {
		p.publish([]string{"a", "b", "c"}[i%3], fmt.Sprint("m", i), 1)
	}
	p.connect()
	p.want("m0 qos 1 id 1")
	p.do(func(s *Session) { s.OnUnsubscribe(1, []string{"b"}) })
	p.subs(schema.Subscription{Filter: "c", QoS: 1})
	p.publish("c", "m6", 1)
	for range 5 {
		p.ack(Puback, 1)
	}
	p.want("m3 qos 1 id 1, m6 qos 1 id 1") // m2, m5 are from before the SUBSCRIBE
}

// [MQTT-3.3.4-9], reason 0x93: more than the Receive Maximum unacknowledged.
func TestReceiveMaximum(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.ReceiveMaximum = 2
	p.connect()
	p.send("m1", 2, 1) // stored, but not released by the client: it counts
	p.hold[DoAppend] = true
	p.send("m2", 1, 2)
	p.send("m3", 0, 0) // QoS 0 does not count
	p.want("PUBREC 1")
	p.send("m4", 1, 3)
	p.want("closed: receive_max")

	p = newPlay(t)
	p.o.ReceiveMaximum = 2
	p.connect()
	for i := range 10 { // what is answered does not count
		p.send(fmt.Sprint("m", i), 1, 1)
		p.send(fmt.Sprint("n", i), 2, 2)
		p.do(func(s *Session) { s.OnPubrel(2) })
	}
	if got := p.heard(); strings.Contains(got, "closed") || strings.Count(got, "PUBACK 1") != 10 || strings.Count(got, "PUBCOMP 2") != 10 {
		t.Error(got)
	}

	p = newPlay(t) // a 3.1.1 client is not told the limit: it is held back
	p.o.ReceiveMaximum, p.o.CanRefuse = 2, false
	p.connect()
	p.hold[DoAppend] = true
	p.send("m1", 1, 1)
	if !p.s.Admit() {
		t.Error("held back at one of two")
	}
	p.send("m2", 0, 0)
	if p.s.Admit() || p.s.Waiting() != 2 {
		t.Errorf("not held back at two of two: %d wait", p.s.Waiting())
	}
	p.release(DoAppend)
	if !p.s.Admit() {
		t.Error("held back for ever")
	}
	p.want("PUBACK 1")
}

// The quota that a former connection's QoS 2 messages take is taken anew when they
// are sent again.
func TestReceiveMaximumAfterAReconnect(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.ReceiveMaximum = 2
	p.connect()
	p.send("m1", 2, 1)
	p.send("m2", 2, 2)
	p.heard()
	p.again()
	p.send("m1", 2, 1)
	p.do(func(s *Session) { s.OnPubrel(2) })
	p.send("m3", 2, 2)
	p.want("PUBREC 1, PUBCOMP 2, PUBREC 2")
	p.send("m4", 1, 3)
	p.want("closed: receive_max, let go")
	if got := p.logged(); got != "m1 m2 m3" {
		t.Error("log: " + got)
	}
}

// A message that the store refuses: MQTT 5 is told, by PUBACK or PUBREC, and goes
// on [MQTT-4.3.3-9]; 3.1.1 is closed. What is refused for another reason than the
// message itself ends the connection.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		qos  uint8
		v5   bool
		err  error
		want string
	}{
		{1, true, store.ErrTooLarge, "PUBACK 1 code 0x83"},
		{1, true, fmt.Errorf("full: %w", store.ErrNoSpace), "PUBACK 1 code 0x97"},
		{2, true, store.ErrTooLarge, "PUBREC 1 code 0x83"},
		{2, true, store.ErrNoSpace, "PUBREC 1 code 0x97"},
		{0, true, store.ErrNoSpace, ""},
		{1, true, store.ErrPublisherFailed, "closed: refused, let go"},
		{2, true, store.ErrClosed, "closed: refused, let go"},
		{0, false, store.ErrTooLarge, "closed: refused, let go"},
		{1, false, store.ErrTooLarge, "closed: refused, let go"},
		{2, false, store.ErrTooLarge, "closed: refused, let go"},
	} {
		p := newPlay(t)
		p.o.CanRefuse = tt.v5
		p.connect()
		p.hold[DoAppend] = true
		p.send("m1", tt.qos, 1)
		p.do(func(s *Session) { s.OnAppended(store.Appended{Outcome: store.Refused, Err: tt.err}) })
		p.want(tt.want)
		if p.s.Closing() {
			continue
		}
		// The id is free: what comes under it is another message.
		p.held = nil
		p.release(DoAppend)
		p.send("m2", 2, 1)
		p.want("PUBREC 1")
		c, _ := p.m.Cursor("c", p.s.Owner().SID)
		if got := p.logged(); got != "m2" || len(c.Inbound) != 1 {
			t.Errorf("QoS %d, %v: log %q, inbound %v", tt.qos, tt.err, got, c.Inbound)
		}
	}
}

// [MQTT-4.3.3-2 to MQTT-4.3.3-13]: what a client may repeat, and what it should not.
func TestAcknowledgements(t *testing.T) {
	t.Parallel()
	type step struct {
		do   func(*play)
		want string
	}
	ack := func(kind AckKind, id uint16, code ...Code) func(*play) {
		return func(p *play) {
			c := Success
			if len(code) > 0 {
				c = code[0]
			}
			p.do(func(s *Session) { s.OnAck(kind, id, c) })
		}
	}
	publish := func(name string, qos uint8) func(*play) { return func(p *play) { p.publish("a", name, qos) } }
	for name, steps := range map[string][]step{
		"QoS 1": {
			{publish("m1", 1), "m1 qos 1 id 1"},
			{ack(Puback, 2), ""}, // unknown
			{ack(Puback, 1, 0x97), ""},
			{ack(Puback, 1), ""},
			{ack(Pubcomp, 1), ""},
		},
		"PUBREC of QoS 1": {
			{publish("m1", 1), "m1 qos 1 id 1"},
			{ack(Pubrec, 1), "closed: protocol_error, let go"},
		},
		"PUBREC of QoS 1 with an error": {
			{publish("m1", 1), "m1 qos 1 id 1"},
			{ack(Pubrec, 1, 0x80), "closed: protocol_error, let go"},
		},
		"PUBCOMP of QoS 1": {
			{publish("m1", 1), "m1 qos 1 id 1"},
			{ack(Pubcomp, 1), "closed: protocol_error, let go"},
		},
		"PUBACK of QoS 2": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{ack(Puback, 1), "closed: protocol_error, let go"},
		},
		"PUBACK of QoS 2 behind PUBREL": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{ack(Pubrec, 1), "PUBREL 1"},
			{ack(Puback, 1), "closed: protocol_error, let go"},
		},
		"PUBCOMP before PUBREC": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{ack(Pubcomp, 1), "closed: protocol_error, let go"},
		},
		"PUBCOMP before PUBREL": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{func(p *play) { p.hold[DoWrite] = true }, ""},
			{ack(Pubrec, 1), ""},
			{ack(Pubcomp, 1), "closed: protocol_error"},
		},
		"QoS 2": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{ack(Pubrec, 1), "PUBREL 1"},
			{ack(Pubrec, 1), "PUBREL 1"}, // repeated
			{ack(Pubcomp, 1), ""},
			{ack(Pubcomp, 1), ""},
			{ack(Pubrec, 1), "PUBREL 1 code 0x92"}, // unknown
		},
		"PUBREC with an error": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{ack(Pubrec, 1, 0x97), ""}, // no PUBREL, the id is free
			{func(p *play) {
				for i := range 3 {
					p.publish("a", fmt.Sprint("n", i), 2)
				}
			}, "n0 qos 2 id 2, n1 qos 2 id 3, n2 qos 2 id 1"},
		},
		"PUBREC repeated while the first is being noted": {
			{publish("m1", 2), "m1 qos 2 id 1"},
			{func(p *play) { p.hold[DoWrite] = true }, ""},
			{ack(Pubrec, 1), ""},
			{ack(Pubrec, 1), ""},
			{func(p *play) { p.release(DoWrite) }, "PUBREL 1"},
		},
		"PUBREC with an error while a good one is being noted": {
			{func(p *play) { p.publish("a", "m1", 2); p.publish("a", "m2", 2); p.publish("a", "m3", 2) }, "m1 qos 2 id 1, m2 qos 2 id 2, m3 qos 2 id 3"},
			{func(p *play) { p.hold[DoWrite] = true }, ""},
			{ack(Pubrec, 1), ""},
			{ack(Pubrec, 1, 0x80), ""},
			{publish("m4", 2), "m4 qos 2 id 1"},
			{func(p *play) { p.release(DoWrite) }, ""}, // a PUBREL would be taken for m4's
		},
		"PUBREL for nothing": {
			{func(p *play) { p.do(func(s *Session) { s.OnPubrel(9) }) }, "PUBCOMP 9"},
		},
		"PUBLISH and PUBREL repeated": {
			{func(p *play) { p.send("m1", 2, 7); p.send("m1", 2, 7) }, "PUBREC 7, PUBREC 7"},
			{func(p *play) { p.hold[DoWrite] = true }, ""},
			{func(p *play) { p.do(func(s *Session) { s.OnPubrel(7); s.OnPubrel(7) }) }, ""},
			{func(p *play) { p.release(DoWrite) }, "PUBCOMP 7"}, // one answers both
			{func(p *play) { p.send("m2", 2, 7) }, "PUBREC 7"},
			{func(p *play) { p.say("%s", p.logged()) }, "m1 m2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlay(t)
			p.begin("a", 2)
			for _, s := range steps {
				s.do(p)
				p.want(s.want)
			}
		})
	}
}

// F-05: the first message is held, 70,000 others pass. Ids go round without it,
// nothing grows, and after SIGKILL it comes again, with at most a window.
func TestF05_OneHeld(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window, p.o.Quota = 50, 50
	p.begin("a", 1)
	p.publish("a", "held", 1)
	p.want("held qos 1 id 1")
	for i := range 70_000 {
		p.publish("a", "m", 1)
		e := p.s.win.flight[len(p.s.win.flight)-1]
		if e.PacketID == 1 || int(e.PacketID) > 50 {
			t.Fatalf("message %d has id %d", i, e.PacketID)
		}
		p.ack(Puback, e.PacketID)
		p.out = nil
		if i%1000 == 0 {
			p.tick()
		}
	}
	if n := p.s.InFlight(); n != 1 {
		t.Errorf("%d in flight", n)
	}
	w := &p.s.win
	if len(w.freed) > 50 || cap(w.freed) > 500 || cap(w.flight) > 500 || len(p.s.line) > 0 || cap(p.s.line) > 500 || p.s.Queued() > 0 {
		t.Errorf("freed %d/%d, flight %d, line %d/%d, queued %d", len(w.freed), cap(w.freed), cap(w.flight), len(p.s.line), cap(p.s.line), p.s.Queued())
	}
	p.again()
	got := p.heard()
	if !strings.HasPrefix(got, "held qos 1 id 1 dup") || strings.Count(got, "dup") > 50 || strings.Count(got, "dup") != strings.Count(got, "qos") {
		t.Error(got)
	}
}

// F-07: the quota belongs to the connection [MQTT-4.9.0-1].
func TestF07_QuotaIsTheConnections(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window, p.o.Quota = 1, 1
	p.begin("a", 1)
	p.publish("a", "m0", 1)
	p.close(ReasonDetached)
	p.heard()
	for i := range 4 {
		p.publish("a", fmt.Sprint("m", i+1), 1)
	}
	p.o.Window, p.o.Quota = 4, 4
	p.connect()
	p.want("m0 qos 1 id 1 dup, m1 qos 1 id 2, m2 qos 1 id 3, m3 qos 1 id 4")
	p.ack(Puback, 1)
	p.want("m4 qos 1 id 1")

	// The other way: four in flight come back to a client that takes one.
	p.crash()
	p.o.Window, p.o.Quota = 1, 1
	p.connect()
	p.want("m1 qos 1 id 2 dup")
	p.ack(Puback, 3) // not yet sent here: it settles nothing
	p.want("")
	for id := range uint16(3) {
		p.ack(Puback, id+2)
	}
	p.want("m2 qos 1 id 3 dup, m3 qos 1 id 4 dup, m4 qos 1 id 1 dup")
	p.ack(Puback, 1)
	p.publish("a", "m5", 1)
	p.want("m5 qos 1 id 1")
}

// [MQTT-3.3.4-10, MQTT-4.9.0-3] The quota holds back PUBLISH alone: the PUBREL of what the
// client has received comes at once, also from behind a PUBLISH that waits.
func TestQuotaDoesNotHoldBackPubrel(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 2)
	for i := range 3 {
		p.publish("a", fmt.Sprint("m", i), 2)
	}
	p.ack(Pubrec, 3)
	p.ack(Pubrec, 1)
	p.heard()
	p.crash()
	p.o.Window, p.o.Quota = 1, 1
	p.connect()
	p.want("PUBREL 1, PUBREL 3")
	p.ack(Pubcomp, 1)
	p.want("")
	p.ack(Pubcomp, 3)
	p.want("m1 qos 2 id 2 dup")
}

// F-10: expiry does not remove what is under way; what was never sent expires.
func TestF10_ExpiryAndFlight(t *testing.T) {
	t.Parallel()
	expiring := func(p *play, name string) {
		p.append(&schema.Message{ID: p.m.NewID(), Topic: "a", Payload: []byte(name), QoS: 2, ClientID: "o", Expiry: p.m.Now().Add(2 * time.Second)})
	}
	p := newPlay(t) // (a)
	p.begin("a", 2)
	expiring(p, "m1")
	p.ack(Pubrec, 1)
	p.heard()
	p.wait(4 * time.Second)
	p.again()
	p.want("PUBREL 1")

	p = newPlay(t) // (b)
	p.begin("a", 2)
	expiring(p, "m1")
	p.heard()
	p.wait(4 * time.Second)
	p.again()
	p.want("m1 qos 2 id 1 dup")

	p = newPlay(t) // (c)
	p.o.Window = 1
	p.begin("a", 2)
	p.publish("a", "m1", 2)
	expiring(p, "m2")
	p.wait(4 * time.Second)
	p.ack(Pubrec, 1)
	p.ack(Pubcomp, 1)
	p.want("m1 qos 2 id 1, dropped: expired, PUBREL 1")
	p.tick()
	p.again()
	p.want("")
}

// F-11: one message of ten is too large for the client: nine come, in order, also
// live with a full window, and it does not come later either [MQTT-3.1.2-25].
func TestF11_TooLarge(t *testing.T) {
	t.Parallel()
	publish := func(p *play) {
		for i := range 10 {
			name := fmt.Sprint("m", i)
			if i == 4 {
				name += " is large"
			}
			p.publish("a", name, 1)
		}
	}
	for _, isLive := range []bool{false, true} {
		p := newPlay(t)
		p.o.MaximumPacketSize, p.o.Window = 5, 2
		p.begin("a", 1)
		if isLive {
			publish(p)
		} else {
			p.close(ReasonDetached)
			p.heard()
			publish(p)
			p.connect()
		}
		for i := range 9 {
			p.ack(Puback, uint16(i%2+1))
		}
		p.want("m0 qos 1 id 1, m1 qos 1 id 2, m2 qos 1 id 1, m3 qos 1 id 2, dropped: too_large, " +
			"m5 qos 1 id 1, m6 qos 1 id 2, m7 qos 1 id 1, m8 qos 1 id 2, m9 qos 1 id 1")
		p.crash()
		p.o.MaximumPacketSize = 100
		p.connect()
		if got := p.heard(); strings.Contains(got, "large") {
			t.Error(got)
		}
	}
}

// Retention removed what was in flight: QoS 1 is settled, QoS 2 goes on with PUBREL.
func TestTrimmedFlight(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 2)
	p.publish("a", "m1", 1)
	p.publish("a", "m2", 2)
	p.publish("a", "m3", 1)
	p.tick()
	p.heard()
	p.m.Trim(schema.At(1, 2))
	p.again()
	p.want("dropped: trimmed, dropped: trimmed, m3 qos 1 id 3 dup, PUBREL 2")
	p.ack(Pubcomp, 2)
	p.ack(Puback, 3)
	if p.s.InFlight() != 0 {
		t.Errorf("%d in flight", p.s.InFlight())
	}
}

// A clean session: recorded after the send, nothing saved, nothing kept.
func TestCleanSession(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.expiry = 0
	p.begin("a", 2)
	p.hold[DoRecord] = true
	for i := range 5 {
		p.publish("a", fmt.Sprint("m", i), 1)
		p.ack(Puback, uint16(i%3+1))
	}
	p.want("m0 qos 1 id 1, m1 qos 1 id 2, m2 qos 1 id 3") // three records wait: a bound
	p.release(DoRecord)
	p.ack(Puback, 4)
	p.ack(Puback, 5)
	p.want("m3 qos 1 id 4, m4 qos 1 id 5")
	p.publish("a", "m5", 2)
	p.ack(Pubrec, 6)
	p.want("m5 qos 2 id 6, PUBREL 6")
	p.hold[DoWrite] = true
	p.send("n1", 2, 7)
	p.do(func(s *Session) { s.OnPubrel(7) })
	p.want("PUBREC 7, PUBCOMP 7")
	p.tick()
	p.release(DoWrite)
	if c, _ := p.m.Cursor("c", p.s.Owner().SID); c.Seq != 0 || len(c.Inbound) != 0 {
		t.Errorf("saved: %+v", c)
	}
	p.close(ReasonNormal)
	p.want("closed: normal, let go")
	if _, _, ok := p.m.Owner("c"); ok {
		t.Error("the session is still there")
	}
}

// A clean session that leaves no records: nothing waits for them, and a shared
// delivery, whose record is the claim, has one all the same (share_test.go).
func TestCleanSessionUnrecorded(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.expiry, p.o.Unrecorded = 0, true
	p.retain("a/r", "r0", 1)
	p.begin("a/#", 2)
	p.run("a/#", 2, 0)
	p.hold[DoRecord] = true
	p.want("r0 qos 1 id 1 retain")
	p.ack(Puback, 1)
	for i := range 5 {
		p.publish("a", fmt.Sprint("m", i), 1)
		p.ack(Puback, uint16(i+2))
	}
	p.want("m0 qos 1 id 2, m1 qos 1 id 3, m2 qos 1 id 4, m3 qos 1 id 5, m4 qos 1 id 6")
	if n := len(p.m.Records("c", p.s.Owner().SID, 0)); n != 0 {
		t.Errorf("%d records", n)
	}
	p.publish("a", "m5", 2)
	p.ack(Pubrec, 7)
	p.ack(Pubcomp, 7)
	p.want("m5 qos 2 id 7, PUBREL 7")
	p.close(ReasonNormal)
	p.want("closed: normal, let go")
}

// A connection that takes no more: QoS 1 and runs wait; nothing is lost.
func TestBlockedConnection(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.retain("r", "r0", 0)
	p.begin("a", 1)
	p.do(func(s *Session) { s.Block(true) })
	p.publish("a", "m1", 1)
	p.publish("a", "m2", 1)
	p.run("r", 0, 0)
	p.want("")
	p.do(func(s *Session) { s.Block(false) })
	p.want("r0 qos 0 retain, m1 qos 1 id 1, m2 qos 1 id 2")
}

// What the store answers when it fails ends the connection, and does not release
// the session.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, fail := range map[string]func(*play){
		"a write": func(p *play) {
			p.hold[DoWrite] = true
			p.send("m", 2, 1)
			p.do(func(s *Session) { s.OnWritten(broken, false) })
		},
		"a record": func(p *play) {
			p.hold[DoRecord] = true
			p.publish("a", "m", 1)
			p.do(func(s *Session) { s.OnRecorded(broken, false) })
		},
	} {
		p := newPlay(t)
		p.begin("a", 1)
		fail(p)
		p.want("closed: store, let go")
		if p.claim(); p.claimed.Released {
			t.Errorf("%s in doubt, and released", name)
		}
	}
	p := newPlay(t)
	p.connect()
	p.hold[DoHead] = true
	p.do(func(s *Session) { s.OnSubscribe(1, []schema.Subscription{{Filter: "a"}}, []Code{0}) })
	p.do(func(s *Session) { s.OnHead(schema.Cursor{}, broken) })
	p.want("closed: store, let go")
}

// A session that closes takes no input any more, and answers none.
func TestClosedTakesNothing(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 2)
	p.publish("a", "m1", 2)
	p.hold[DoWrite], p.hold[DoRecord], p.hold[DoAppend], p.hold[DoHead] = true, true, true, true
	p.send("n1", 1, 1)
	p.send("n2", 2, 2)
	p.publish("a", "m2", 1)
	p.ack(Pubrec, 1)
	p.do(func(s *Session) { s.OnSubscribe(1, []schema.Subscription{{Filter: "b"}}, []Code{0}) })
	p.heard()
	p.close(ReasonDetached)
	p.do(func(s *Session) {
		s.OnPublish(&schema.Message{Topic: "x", QoS: 1}, 3)
		s.OnPubrel(2)
		s.OnAck(Puback, 1, Success)
		s.Block(true)
		s.Block(false)
		s.Tick(p.h)
		s.Merge(p.h)
		if s.Offer(&schema.Message{Topic: "a", Mark: schema.Mark{Lane: 1, N: 99}, QoS: 1}) || s.OnCaughtUp(p.h) || s.Feed([]*schema.Message{{}}) != 0 || s.Hungry() {
			t.Error("a closing session takes messages")
		}
		if _, _, ok := s.OnAttach(); ok {
			t.Error("a closing session attaches")
		}
	})
	for _, k := range []Do{DoHead, DoAppend, DoRecord, DoWrite} {
		p.release(k)
	}
	p.want("closed: detached, let go")
	if p.connect(); !p.claimed.Released {
		t.Error("not released")
	}
	p.want("PUBREL 1, m2 qos 1 id 2 dup") // PUBREC was noted all the same
}

// How often the cursor is saved: a second after a change; ten minutes after a
// merge; after 1,000 deliveries.
func TestSaves(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	saves := 0
	p.begin("a", 1)
	p.tick()
	count := func(do func()) int {
		before := saves
		do()
		return saves - before
	}
	tick := func(after time.Duration) func() {
		return func() {
			p.wait(after)
			p.s.Tick(p.h)
			for _, a := range p.s.Actions() {
				if _, ok := a.Write.(store.SaveCursor); ok {
					saves++
				}
				p.carry(a)
			}
		}
	}
	if n := count(tick(time.Hour)); n != 1 {
		t.Errorf("%d saves of the merge at the beginning", n)
	}
	if n := count(tick(time.Hour)); n != 0 {
		t.Errorf("%d saves of nothing", n)
	}
	p.publish("a", "m", 1)
	if n := count(tick(0)); n != 1 {
		t.Errorf("%d saves, long after the last", n)
	}
	p.ack(Puback, 1)
	if n := count(tick(500 * time.Millisecond)); n != 0 {
		t.Errorf("%d saves within a second", n)
	}
	if n := count(tick(500 * time.Millisecond)); n != 1 {
		t.Errorf("%d saves after a second", n)
	}
	p.publish("elsewhere", "x", 1)
	if n := count(tick(9 * time.Minute)); n != 0 {
		t.Errorf("%d saves of a merge", n)
	}
	if n := count(tick(2 * time.Minute)); n != 1 {
		t.Errorf("%d saves of a merge after ten minutes", n)
	}
	p.m.SetNow(p.m.Now().Add(-time.Hour)) // the clock steps back
	p.publish("a", "m", 1)
	if n := count(tick(0)); n != 1 {
		t.Errorf("%d saves after a step of the clock", n)
	}
	before, _ := p.m.Cursor("c", p.s.Owner().SID)
	for range defaultSaveDeliveries {
		p.publish("a", "m", 1)
		p.ack(Puback, p.s.win.flight[0].PacketID)
	}
	if after, _ := p.m.Cursor("c", p.s.Owner().SID); after.Seq < before.Seq+defaultSaveDeliveries-1 {
		t.Errorf("seq %d is saved after %d more deliveries than %d", after.Seq, defaultSaveDeliveries, before.Seq)
	}
}

// Bad options are refused.
func TestNewChecksOptions(t *testing.T) {
	t.Parallel()
	good := newPlay(t).o
	for _, change := range []func(*Options){
		func(o *Options) { o.Window = 0 },
		func(o *Options) { o.Window = 65536 },
		func(o *Options) { o.Quota = 0 },
		func(o *Options) { o.Quota = 65536 },
		func(o *Options) { o.ReceiveMaximum = 0 },
	} {
		o := good
		change(&o)
		if _, err := New(o, &store.Claimed{}); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	if _, err := New(good, &store.Claimed{}); err != nil {
		t.Error(err)
	}
}

// While a record is under way, what passes behind it without one takes no memory.
func TestLineStaysShort(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 1)
	p.hold[DoRecord] = true
	p.publish("a", "m", 1)
	for i := range 1000 {
		p.publish("a", fmt.Sprint("q", i), 0)
		p.do(func(s *Session) { s.Merge(p.h) })
	}
	if n := len(p.s.line); n > 10 {
		t.Errorf("%d steps wait", n)
	}
	if !p.s.after.After(schema.Mark{Lane: p.h.Newest(), N: 1}) {
		t.Errorf("after %v covers what is under way", p.s.after)
	}
	p.release(DoRecord)
	if len(p.s.line) > 0 || !p.s.after.Covers(p.h) {
		t.Errorf("%d steps wait, after %v, H %v", len(p.s.line), p.s.after, p.h)
	}
}

// The ids of a clean session go round: one that was held is given again after all
// others, also when some are held on and the window is small, and 65,535 can be held.
func TestWindowGoesRound(t *testing.T) {
	t.Parallel()
	var w window
	w.init(2, true)
	add := func() *entry {
		t.Helper()
		if !w.room() {
			t.Fatalf("no room, %d held", w.len())
		}
		e := &entry{Flight: schema.Flight{PacketID: w.peek()}}
		w.add(e)
		return e
	}
	kept := add()
	if w.settle(add()); kept.PacketID != 1 || w.last != 2 {
		t.Fatalf("ids %d and %d, want 1 and 2", kept.PacketID, w.last)
	}
	for want := 3; want <= 2*maximumPacketIDs; want++ {
		id := uint16((want-1)%maximumPacketIDs + 1)
		if id == kept.PacketID {
			continue
		}
		e := add()
		if e.PacketID != id {
			t.Fatalf("id %d, want %d", e.PacketID, id)
		}
		if w.room() {
			t.Fatal("room for a third one")
		}
		w.settle(e)
	}
	w = window{}
	w.init(maximumPacketIDs, true)
	seen := map[uint16]bool{0: true}
	for range maximumPacketIDs {
		e := add()
		if seen[e.PacketID] {
			t.Fatalf("id %d is given twice, or 0", e.PacketID)
		}
		seen[e.PacketID] = true
	}
	if w.room() || w.peek() != 0 {
		t.Error("there is room for more than there are ids")
	}
}

// What the client has published before its SUBSCRIBE is not delivered for it, however
// slow the store is; what it publishes behind it is.
func TestPublishBeforeSubscribe(t *testing.T) {
	t.Parallel()
	for _, held := range []Do{DoAppend, DoWrite} { // the append, and the entry of QoS 2 before it
		p := newPlay(t)
		p.connect()
		p.hold[held] = true
		p.send("before", 2, 1)
		p.subscribe("x", 1)
		p.send("behind", 2, 2)
		p.want("")
		for range 3 { // each lets the next one come
			p.release(held)
			p.flow()
		}
		got := strings.Split(p.heard(), ", ")
		slices.Sort(got)
		if want := "PUBREC 1, PUBREC 2, SUBACK 100 [1], behind qos 1 id 1"; strings.Join(got, ", ") != want {
			t.Errorf("held %v: left: %q, want %s", held, got, want)
		}
		if log := p.logged(); log != "before behind" {
			t.Errorf("held %v: the log has %s", held, log)
		}
	}
}

// The window against a plain list: ids are unique, in 1..size, given to what has
// been free for longest among those that this connection gave, and there is room
// exactly when one is free.
func TestWindowProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var w window
		size := rapid.IntRange(1, 5).Draw(t, "size")
		w.init(size, false)
		held := map[uint16]*entry{}
		last := map[uint16]int{} // when an id was last free again, of those given here
		seq := uint64(0)
		for range rapid.IntRange(0, 4).Draw(t, "restored") {
			id := uint16(rapid.IntRange(1, 8).Draw(t, "id"))
			if held[id] == nil {
				seq++
				e := &entry{Flight: schema.Flight{Seq: seq, PacketID: id}}
				held[id] = e
				w.restore(e)
			}
		}
		restored := map[uint16]bool{}
		for id := range held {
			restored[id] = true
		}
		for now := range rapid.IntRange(0, 40).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "add") {
				id := w.peek()
				free := len(held) < size && id != 0
				if w.room() != free {
					t.Fatalf("room %v, %d of %d held, free id %d", w.room(), len(held), size, id)
				}
				if !free {
					continue
				}
				if held[id] != nil || int(id) > size {
					t.Fatalf("id %d is given: it is held, or above %d", id, size)
				}
				for other := uint16(1); int(other) <= size; other++ {
					if held[other] == nil && !restored[other] && !restored[id] && last[other] < last[id] {
						t.Fatalf("id %d is given, and %d has been free for longer", id, other)
					}
				}
				seq++
				e := &entry{Flight: schema.Flight{Seq: seq, PacketID: id}}
				held[id] = e
				w.add(e)
			} else if len(w.flight) > 0 {
				e := w.flight[rapid.IntRange(0, len(w.flight)-1).Draw(t, "which")]
				w.settle(e)
				delete(held, e.PacketID)
				last[e.PacketID] = now + 1
			}
			if w.len() != len(held) || len(w.byID) != len(held) || len(w.freed) > size {
				t.Fatalf("%d in flight, %d ids, %d held, freed %v", w.len(), len(w.byID), len(held), w.freed)
			}
			for i, e := range w.flight {
				if i > 0 && w.flight[i-1].Seq >= e.Seq || w.byID[e.PacketID] != e {
					t.Fatalf("the flight is not in order, or not that of the ids")
				}
			}
		}
	})
}

// What is not in the log goes to who is subscribed now, at QoS 0.
func TestTell(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.MaximumPacketSize = 5
	p.connect()
	tell := func(topic, name string) {
		p.do(func(s *Session) { s.Tell(&schema.Message{Topic: topic, Payload: []byte(name), Retain: true}) })
	}
	tell("$SYS/x", "m0")
	p.subs(schema.Subscription{Filter: "#", QoS: 2}, schema.Subscription{Filter: "$SYS/+", QoS: 2, Identifier: 3, RetainAsPublished: true})
	tell("$SYS/x", "m1")
	tell("$SYS/x/y", "m2")
	tell("$SYS/x", "m3 is large")
	p.want("m1 qos 0 retain subscriptions [3]")
}
