package broker

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

// TestPublishAnswers: each PUBLISH is answered by its QoS, under its packet id,
// when the message is stored; then the id stands for a new message
// [MQTT-3.3.4-1, MQTT-2.2.1-5, MQTT-4.3.2-4, MQTT-4.3.2-5, MQTT-4.3.3-8,
// MQTT-4.3.3-11, MQTT-4.3.3-12; 3.1.1: 4.3.2-2, 4.3.3-2].
func TestPublishAnswers(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub := h.clean(v, "sub")
			sub.subscribe("t", 2)
			pub := h.clean(v, "pub")
			pub.publish("t", "zero", 0, 0)
			pub.ping() // no answer to QoS 0
			sub.receive("zero")
			for _, id := range []uint16{1, 1, 65535, 7} {
				for qos := byte(1); qos <= 2; qos++ {
					text := fmt.Sprintf("%d with %d", qos, id)
					pub.publish("t", text, qos, id)
					sub.receive(text)
				}
			}
			pub.ping()
		})
	}
}

// TestForwardedHeader: DUP and RETAIN of what is forwarded are not the publisher's,
// QoS 0 has no packet id [MQTT-3.3.1-3, MQTT-4.3.1-1, MQTT-2.2.1-2, MQTT-3.3.1-2,
// MQTT-3.3.1-12, MQTT-3.3.1-13, MQTT-4.3.2-2, MQTT-4.3.3-2; 3.1.1: 3.3.1-9].
func TestForwardedHeader(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			plain := h.clean(v, "plain")
			plain.subscribe("t/+", 2)
			asPublished := h.clean(wire.V5, "rap")
			asPublished.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{
				PacketID: 1, Filters: []wire.Filter{{Topic: "t/+", QoS: 2, RetainAsPublished: true}},
			}))
			expect[*wire.Suback](asPublished)
			pub := h.clean(v, "pub")
			for qos := byte(0); qos <= 2; qos++ {
				for _, retain := range []bool{false, true} {
					text := fmt.Sprint(qos, retain)
					p := wire.Publish{Topic: fmt.Sprintf("t/%d", qos), Payload: []byte(text), QoS: qos, Retain: retain, Dup: qos > 0}
					if qos > 0 {
						p.PacketID = 9
					}
					pub.write(wire.AppendPublish(nil, v, &p))
					switch qos {
					case 1:
						pub.ack(wire.PUBACK, 9)
					case 2:
						pub.ack(wire.PUBREC, 9)
						pub.write(wire.AppendAck(nil, v, wire.PUBREL, 9, wire.Success))
						pub.ack(wire.PUBCOMP, 9)
					}
					if m := plain.receive(text); m.Dup || m.Retain || m.QoS != qos {
						t.Errorf("%s: got %+v", text, m)
					}
					if m := asPublished.receive(text); m.Dup || m.Retain != retain || m.QoS != qos {
						t.Errorf("%s, as published: got %+v", text, m)
					}
				}
			}
		})
	}
}

// everyProperty is a message with all properties that are passed on.
func everyProperty() *schema.Properties {
	return &schema.Properties{
		HasPayloadFormat: true, PayloadFormat: 1, ContentType: "text/plain; charset=\"utf-8\"", ResponseTopic: "answer/to",
		CorrelationData: []byte{0, 1, 0xff}, User: []schema.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: ""}, {Key: "b", Value: "0"}},
	}
}

// TestForwardedProperties: they come unchanged and in order, in a message and in a
// will, live and replayed [MQTT-3.3.2-4, MQTT-3.3.2-13, MQTT-3.3.2-15 to -20,
// MQTT-3.1.3-10, MQTT-1.5.7-1].
func TestForwardedProperties(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	want := everyProperty()
	away, _ := h.persistent(wire.V5, "away")
	away.subscribe("t", 1)
	away.disconnect()
	sub := h.clean(wire.V5, "sub")
	sub.subscribe("t", 1)
	pub := h.clean(wire.V5, "pub")
	pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "t", Payload: []byte("message"), QoS: 1, PacketID: 1, Properties: want}))
	pub.ack(wire.PUBACK, 1)
	dev, _ := h.connect(wire.V5, wire.Connect{ClientID: "dev", CleanStart: true, Will: &wire.Will{
		Topic: "t", Payload: []byte("will"), QoS: 1, Properties: want,
	}})
	h.until("take the message", func() bool { return len(sub.early) == 1 || sub.peek() })
	dev.cut()
	check := func(p *peer, text string) {
		t.Helper()
		if m := p.receive(text); !reflect.DeepEqual(m.Properties, want) {
			t.Errorf("%s: got %+v, want %+v", text, m.Properties, want)
		}
	}
	check(sub, "message")
	check(sub, "will")
	away, _ = h.persistent(wire.V5, "away")
	check(away, "message")
	check(away, "will")
	// [MQTT-2.2.2-1] Without properties their length is 0, and not left out.
	pub.publish("t", "bare", 1, 2)
	if m := sub.receive("bare"); m.Properties != nil {
		t.Errorf("got %+v", m.Properties)
	}
}

// peek takes the next delivery in advance.
func (p *peer) peek() bool {
	p.t.Helper()
	p.early = append(p.early, *expect[*wire.Publish](p))
	return true
}

// TestMessageExpiry: it is counted down while the message waits, and what has
// expired is not delivered; a handshake that has begun goes on [MQTT-3.3.2-5,
// MQTT-3.3.2-6, MQTT-4.3.3-7, MQTT-4.3.3-13].
func TestMessageExpiry(t *testing.T) {
	t.Parallel()
	h, c := clockedHouse(t, Options{})
	sub, _ := h.persistent(wire.V5, "sub")
	sub.subscribe("t/#", 2)
	sub.disconnect()
	pub := h.clean(wire.V5, "pub")
	send := func(text string, seconds uint32, retain bool) {
		pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{
			Topic: "t/" + text, Payload: []byte(text), QoS: 1, PacketID: 1, HasExpiry: true, MessageExpiry: seconds, Retain: retain,
		}))
		pub.ack(wire.PUBACK, 1)
	}
	send("long", 100, true)
	send("short", 30, true)
	c.advance(40 * time.Second)
	check := func(p *peer, retain bool) {
		t.Helper()
		if m := p.receive("long"); !m.HasExpiry || m.MessageExpiry > 60 || m.MessageExpiry < 55 || m.Retain != retain {
			t.Errorf("got %+v, want 60 s left", m)
		}
		p.ping()
	}
	sub, _ = h.persistent(wire.V5, "sub")
	check(sub, false)
	fresh := h.clean(wire.V5, "fresh")
	fresh.subscribe("t/#", 1)
	check(fresh, true)
	// A QoS 2 message that expires in the middle of the publisher's handshake.
	pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{
		Topic: "t/two", Payload: []byte("two"), QoS: 2, PacketID: 2, HasExpiry: true, MessageExpiry: 10,
	}))
	pub.ack(wire.PUBREC, 2)
	m := sub.delivery()
	c.advance(20 * time.Second)
	pub.write(wire.AppendAck(nil, wire.V5, wire.PUBREL, 2, wire.Success))
	pub.ack(wire.PUBCOMP, 2)
	sub.write(wire.AppendAck(nil, wire.V5, wire.PUBREC, m.PacketID, wire.Success))
	sub.ack(wire.PUBREL, m.PacketID)
	sub.write(wire.AppendAck(nil, wire.V5, wire.PUBCOMP, m.PacketID, wire.Success))
}

// TestTopicAliases: none above what either side allows, none without leave, and
// none from another connection [MQTT-3.1.2-26, MQTT-3.1.2-27, MQTT-3.3.2-7 to -9,
// MQTT-3.3.2-11, MQTT-3.3.2-12].
func TestTopicAliases(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	for _, maximum := range []uint16{0, 1, 3} {
		sub, _ := h.connect(wire.V5, wire.Connect{ClientID: "sub", CleanStart: true, TopicAliasMaximum: maximum})
		sub.subscribe("t/#", 0)
		pub, ack := h.connect(wire.V5, wire.Connect{ClientID: "pub", CleanStart: true})
		// Each alias that the server allows, set and then used.
		for round := range 2 {
			for a := uint16(1); a <= ack.TopicAliasMaximum; a++ {
				p := wire.Publish{Topic: fmt.Sprintf("t/%d", a), TopicAlias: a, Payload: []byte("x")}
				if round == 1 {
					p.Topic = ""
				}
				pub.write(wire.AppendPublish(nil, wire.V5, &p))
			}
		}
		names := map[uint16]string{}
		for i := range 2 * int(ack.TopicAliasMaximum) {
			m := sub.delivery()
			if m.TopicAlias > maximum {
				t.Fatalf("alias %d, maximum %d", m.TopicAlias, maximum)
			}
			if m.Topic == "" {
				m.Topic = names[m.TopicAlias]
			} else if m.TopicAlias > 0 {
				names[m.TopicAlias] = m.Topic
			}
			if want := fmt.Sprintf("t/%d", i%int(ack.TopicAliasMaximum)+1); m.Topic != want {
				t.Fatalf("delivery %d: topic %q, want %q", i, m.Topic, want)
			}
		}
		pub.cut()
		// What the server answers to a wrong alias, the last of them by another
		// connection's.
		for alias, code := range map[uint16]wire.ReasonCode{
			ack.TopicAliasMaximum + 1: wire.TopicAliasInvalid, 1: wire.ProtocolError,
		} {
			pub := h.clean(wire.V5, "pub")
			pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{TopicAlias: alias, Payload: []byte("x")}))
			if d := expect[*wire.Disconnect](pub); d.Code != code {
				t.Errorf("alias %d: DISCONNECT %v, want %v", alias, d.Code, code)
			}
			pub.closed()
		}
		sub.ping()
		sub.disconnect()
	}
}

// TestRetainedState: RETAIN replaces, RETAIN=0 does not, an empty payload clears and
// is not kept [MQTT-3.3.1-5 to -8; 3.1.1: 3.3.1-5, 3.3.1-7, 3.3.1-8, 3.3.1-10 to
// -12].
func TestRetainedState(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			pub := h.clean(v, "pub")
			live := h.clean(v, "live")
			live.subscribe("r", 1)
			for i, step := range []struct {
				payload string
				qos     byte
				retain  bool
				after   string
			}{
				{"one", 1, true, "one"},
				{"not kept", 1, false, "one"},
				{"", 1, false, "one"}, // an empty message like any other
				{"zero", 0, true, "zero"},
				{"two", 1, true, "two"},
				{"", 1, true, ""},
				{"", 1, true, ""},
				{"three", 1, true, "three"},
			} {
				p := wire.Publish{Topic: "r", Payload: []byte(step.payload), QoS: step.qos, Retain: step.retain}
				if step.qos == 1 {
					p.PacketID = 1
				}
				pub.write(wire.AppendPublish(nil, v, &p))
				if step.qos == 1 {
					pub.ack(wire.PUBACK, 1)
				}
				if m := live.receive(step.payload); m.Retain {
					t.Errorf("step %d: RETAIN=1 in a live message", i)
				}
				fresh := h.clean(v, "fresh")
				fresh.subscribe("r", 1)
				if step.after != "" {
					if m := fresh.receive(step.after); !m.Retain {
						t.Errorf("step %d: RETAIN=0", i)
					}
				}
				fresh.ping()
				fresh.disconnect()
			}
		})
	}
}

// TestWillRetain: the will is stored with the session, and published with the RETAIN
// and QoS that it has; none without one [MQTT-3.1.2-7, MQTT-3.1.2-8, MQTT-3.1.2-14,
// MQTT-3.1.2-15; 3.1.1: 3.1.2-12, 3.1.2-16, 3.1.2-17].
func TestWillRetain(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			watch := h.clean(v, "watch")
			watch.subscribe("w/#", 2)
			for i, retain := range []bool{false, true} {
				for qos := byte(0); qos <= 2; qos++ {
					topic := fmt.Sprintf("w/%d/%d", i, qos)
					dev, _ := h.connect(v, wire.Connect{ClientID: "dev", CleanStart: true, Will: &wire.Will{Topic: topic, Payload: []byte(topic), QoS: qos, Retain: retain}})
					dev.cut()
					if m := watch.receive(topic); m.QoS != qos || m.Retain {
						t.Errorf("%s: got %+v", topic, m)
					}
				}
			}
			h.clean(v, "without").cut()
			h.until("let go", func() bool { return h.b.roster.get("without") == nil })
			watch.ping()
			late := h.clean(v, "late")
			late.subscribe("w/#", 2)
			for qos := range 3 {
				if m := late.receive(fmt.Sprintf("w/1/%d", qos)); !m.Retain {
					t.Errorf("got %+v, want RETAIN", m)
				}
			}
			late.ping()
		})
	}
}

// TestRefusedPublish: MQTT 5 gets a reason code, 3.1.1 the end of the connection
// ([MQTT-3.3.5-2] of 3.1.1); the packet id is free again [MQTT-4.3.3-9].
func TestRefusedPublish(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{TopicLevels: 3})
	for _, topic := range []string{"$SYS/x", "a/b/c/d"} {
		for qos := byte(1); qos <= 2; qos++ {
			five := h.clean(wire.V5, "five")
			five.send(topic, "x", qos, 5)
			if a := expect[*wire.Ack](five); a.Code != wire.TopicNameInvalid || a.ID != 5 || a.Type != wire.PUBACK+wire.PacketType(qos)-1 {
				t.Errorf("%s at QoS %d: %+v", topic, qos, a)
			}
			five.publish("fine", "x", qos, 5)
			five.disconnect()
			four := h.clean(wire.V311, "four")
			four.send(topic, "x", qos, 5)
			four.closed()
		}
	}
}

// TestPublishInDoubt: a message whose fate is not known is not answered, and the
// connection ends: [MQTT-4.8.0-2] of 3.1.1.
func TestPublishInDoubt(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			pub := h.clean(v, "pub")
			pub.ping()
			h.mem.Doubt()
			pub.send("t", "x", 1, 1)
			if err := h.mem.UntilDoubt(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			pub.ping()
			h.mem.Resolve(false, store.InDoubt)
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](pub); d.Code != wire.ServerBusy {
					t.Errorf("DISCONNECT %v", d.Code)
				}
			}
			pub.closed()
		})
	}
}
