package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"rewindmq/wire"
)

// TestSubackCodes: a SUBACK under the packet id of its SUBSCRIBE, with a code for each
// filter, in their order: the QoS granted, or a failure [MQTT-3.8.4-1, MQTT-3.8.4-2,
// MQTT-3.8.4-5 to -7, MQTT-3.9.3-1, MQTT-3.9.3-2, MQTT-2.2.1-6, MQTT-3.2.2-10;
// 3.1.1: 3.8.4-1, 3.8.4-2, 3.8.4-4, 3.8.4-5, 3.9.3-1, 3.9.3-2].
func TestSubackCodes(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{SubscriptionsPerClient: 4, TopicLevels: 4})
	tests := []struct {
		filters string // filter:qos
		five    []wire.ReasonCode
		four    []wire.ReasonCode
	}{
		{"a:0 b:1 c:2", []wire.ReasonCode{0, 1, 2}, []wire.ReasonCode{0, 1, 2}},
		{"a/b/c/d/e:1 a:2", []wire.ReasonCode{0x8f, 2}, []wire.ReasonCode{0x80, 2}},
		{"$other/a:1 a:1 $SYS/none:0", []wire.ReasonCode{0x8f, 1, 0}, []wire.ReasonCode{0x80, 1, 0}},
		{"a:0 b:0 c:0 d:0 e:0 a:1", []wire.ReasonCode{0, 0, 0, 0, 0x97, 1}, []wire.ReasonCode{0, 0, 0, 0, 0x80, 1}},
	}
	for i, tt := range tests {
		for _, v := range versions() {
			var filters []wire.Filter
			for f := range strings.FieldsSeq(tt.filters) {
				topic, qos, _ := strings.Cut(f, ":")
				filters = append(filters, wire.Filter{Topic: topic, QoS: qos[0] - '0'})
			}
			p := h.clean(v, "p")
			id := uint16(1000*i + int(v))
			p.write(wire.AppendSubscribe(nil, v, &wire.Subscribe{PacketID: id, Filters: filters}))
			want := tt.five
			if v == wire.V311 {
				want = tt.four
			}
			if a := expect[*wire.Suback](p); a.PacketID != id || !slices.Equal(a.Codes, want) {
				t.Errorf("%v %s: SUBACK %d %v, want %d %v", v, tt.filters, a.PacketID, a.Codes, id, want)
			}
			p.disconnect()
		}
	}
}

// TestMalformedFilters: a filter that is not correctly formed makes the SUBSCRIBE or
// UNSUBSCRIBE malformed, wherever it stands in it [MQTT-4.7.1-1, MQTT-4.7.1-2,
// MQTT-4.8.2-1, MQTT-4.8.2-2; 3.1.1: 4.7.1-2, 4.7.1-3]. Nothing of the packet is
// carried out.
func TestMalformedFilters(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	for _, bad := range []string{"b#", "c/#/d", "#/d", "+d", "a/b+", "a/+b/c", "##", "$share/g", "$share/g/", "$share//a", "$share/g+/a", "$share/g/a#"} {
		for _, v := range versions() {
			for _, filters := range [][]string{{bad}, {"a", bad}, {bad, "a"}} {
				sub := &wire.Subscribe{PacketID: 1}
				for _, f := range filters {
					sub.Filters = append(sub.Filters, wire.Filter{Topic: f, QoS: 1})
				}
				for _, packet := range [][]byte{
					wire.AppendSubscribe(nil, v, sub), wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: 1, Filters: filters}),
				} {
					p := h.clean(v, "p")
					p.write(packet)
					if v == wire.V5 {
						if d := expect[*wire.Disconnect](p); d.Code != wire.MalformedPacket {
							t.Errorf("%v %q: DISCONNECT %v", v, filters, d.Code)
						}
					}
					p.closed()
				}
			}
		}
	}
	p, _ := h.connect(wire.V311, wire.Connect{ClientID: "kept"})
	p.write(wire.AppendSubscribe(nil, wire.V311, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: "a"}, {Topic: "b#"}}}))
	p.closed()
	if c, err := h.b.store.Counts(t.Context()); err != nil || c.Subscriptions != 0 {
		t.Errorf("%d subscriptions are stored (%v)", c.Subscriptions, err)
	}
}

// TestUnsubackCodes: filters are compared byte by byte; the answer comes also when
// nothing is deleted, with a code for each in MQTT 5 [MQTT-3.10.4-1, MQTT-3.10.4-4
// to -6, MQTT-3.11.3-1, MQTT-3.11.3-2, MQTT-2.2.1-6; 3.1.1: 3.10.4-1, 3.10.4-4 to
// -6].
func TestUnsubackCodes(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			p := h.clean(v, "p")
			for _, f := range []string{"a/+", "a/b", "é"} {
				p.subscribe(f, 1)
			}
			filters := []string{"a/#", "a/+", "A/B", "a/b/", "e\u0301"}
			p.write(wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: 4711, Filters: filters}))
			want := []wire.ReasonCode{0x11, 0, 0x11, 0x11, 0x11}
			if v == wire.V311 {
				want = nil
			}
			if a := expect[*wire.Unsuback](p); a.PacketID != 4711 || !slices.Equal(a.Codes, want) {
				t.Errorf("UNSUBACK %d %v, want %v", a.PacketID, a.Codes, want)
			}
			pub := h.clean(v, "pub")
			pub.publish("a/c", "only +", 1, 1)
			pub.publish("a/b", "still", 1, 2)
			p.receive("still")
			pub.publish("é", "still", 1, 3)
			p.receive("still")
			p.ping()
		})
	}
}

// TestDeliveredQoS: the lower of the message's and the subscription's
// [MQTT-3.8.4-8; 3.1.1: 3.8.4-6], and the highest of several [MQTT-3.3.4-2],
// under a topic that a filter matches [MQTT-3.3.2-3, MQTT-4.5.0-1].
func TestDeliveredQoS(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			subs := make([]*peer, 4)
			for q := range 3 {
				subs[q] = h.clean(v, fmt.Sprint("sub", q))
				subs[q].subscribe("q/+", byte(q))
			}
			subs[3] = h.clean(v, "several")
			for q, f := range []string{"q/#", "q/+", "#"} {
				subs[3].subscribe(f, byte(q))
			}
			pub := h.clean(v, "pub")
			for q := byte(0); q <= 2; q++ {
				text := fmt.Sprint("at ", q)
				pub.publish("p/none", text, q, 1)
				pub.publish("q/t", text, q, 1)
				for i, s := range subs {
					want := min(q, byte(i))
					if i == 3 { // # matches p/none, too
						if m := s.receive(text); m.Topic != "p/none" || m.QoS != q {
							t.Errorf("got %+v", m)
						}
						want = q
					}
					if m := s.receive(text); m.Topic != "q/t" || m.QoS != want {
						t.Errorf("subscribed at %d: got %+v, want QoS %d", i, m, want)
					}
				}
			}
			for _, s := range subs {
				s.ping()
			}
		})
	}
}

// TestUnsubscribeInFlight: a delivery that has begun is completed after UNSUBSCRIBE,
// also on another connection; none begins [MQTT-3.10.4-2, MQTT-3.10.4-3].
func TestUnsubscribeInFlight(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{Window: 1})
			sub, _ := h.persistent(v, "sub")
			sub.subscribe("t", 2)
			pub := h.clean(v, "pub")
			pub.publish("t", "begun", 2, 1)
			m := sub.delivery()
			pub.publish("t", "waiting", 2, 2) // the window is full
			sub.write(wire.AppendUnsubscribe(nil, v, &wire.Unsubscribe{PacketID: 2, Filters: []string{"t"}}))
			expect[*wire.Unsuback](sub)
			sub.cut()
			sub, _ = h.persistent(v, "sub")
			if again := sub.receive("begun"); again.PacketID != m.PacketID || !again.Dup {
				t.Errorf("got %+v, want %+v again", again, m)
			}
			sub.ping()
		})
	}
}

// TestAnswerTooLarge: a SUBACK or UNSUBACK that the client could not take ends the
// connection, and the request is not carried out [MQTT-3.1.2-24].
func TestAnswerTooLarge(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	open := func() *peer {
		p, _ := h.connect(wire.V5, wire.Connect{ClientID: "p", CleanStart: true, MaximumPacketSize: 32})
		return p
	}
	filters := func(n int) (list []wire.Filter, names []string) {
		for i := range n {
			names = append(names, fmt.Sprint("f", i))
			list = append(list, wire.Filter{Topic: names[i]})
		}
		return list, names
	}
	fits, names := filters(27) // 32 bytes of SUBACK
	p := open()
	p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 1, Filters: fits}))
	if a := expect[*wire.Suback](p); len(a.Codes) != len(fits) {
		t.Errorf("SUBACK with %d codes", len(a.Codes))
	}
	p.write(wire.AppendUnsubscribe(nil, wire.V5, &wire.Unsubscribe{PacketID: 2, Filters: names}))
	expect[*wire.Unsuback](p)
	p.disconnect()
	more, names := filters(28)
	for _, request := range [][]byte{
		wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 1, Filters: more}),
		wire.AppendUnsubscribe(nil, wire.V5, &wire.Unsubscribe{PacketID: 1, Filters: names}),
	} {
		p := open()
		p.write(request)
		if d := expect[*wire.Disconnect](p); d.Code != wire.PacketTooLarge {
			t.Errorf("DISCONNECT %v", d.Code)
		}
		p.closed()
	}
}

// TestSameFilterTwice: [MQTT-3.8.4-5] a SUBSCRIBE is handled as a sequence of SUBSCRIBE
// packets, each filter by itself: what the first of two asks for is not taken back by the
// second, and the second meets a subscription that exists [MQTT-3.3.1-10].
func TestSameFilterTwice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		handling [2]byte
		retained bool
	}{{[2]byte{0, 2}, true}, {[2]byte{2, 1}, false}, {[2]byte{1, 2}, true}, {[2]byte{2, 0}, true}, {[2]byte{2, 2}, false}} {
		for _, apart := range []bool{false, true} {
			h := memoryHouse(t, Options{})
			pub := h.clean(wire.V5, "pub")
			pub.write(wire.AppendPublish(nil, pub.v, &wire.Publish{Topic: "t", Payload: []byte("kept"), QoS: 1, PacketID: 1, Retain: true}))
			pub.ack(wire.PUBACK, 1)
			p := h.clean(wire.V5, "p")
			filters := []wire.Filter{{Topic: "t", QoS: 0, RetainHandling: c.handling[0]}, {Topic: "t", QoS: 1, RetainHandling: c.handling[1]}}
			if apart {
				b := wire.AppendSubscribe(nil, p.v, &wire.Subscribe{PacketID: 1, Filters: filters[:1]})
				p.write(wire.AppendSubscribe(b, p.v, &wire.Subscribe{PacketID: 2, Filters: filters[1:]}))
			} else {
				p.write(wire.AppendSubscribe(nil, p.v, &wire.Subscribe{PacketID: 1, Filters: filters}))
			}
			got, codes := []string{}, 0
			for !slices.Contains(got, "live") || c.retained && !slices.Contains(got, "kept") {
				switch pk := p.read().(type) {
				case *wire.Suback:
					if codes += len(pk.Codes); codes == 2 {
						pub.publish("t", "live", 1, 2)
					}
				case *wire.Publish:
					got = append(got, string(pk.Payload))
					if string(pk.Payload) == "live" && pk.QoS != 1 {
						t.Errorf("%v: QoS %d, want that of the second", c.handling, pk.QoS)
					}
				}
			}
			want := []string{"kept", "live"}
			if !c.retained {
				want = want[1:]
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("handling %v, apart %t: got %q, want %q", c.handling, apart, got, want)
			}
		}
	}
}
