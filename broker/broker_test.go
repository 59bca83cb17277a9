package broker

import (
	"fmt"
	"testing"

	"rewindmq/wire"
)

func versions() []wire.Version { return []wire.Version{wire.V311, wire.V5} }

// TestPublishSubscribe is the thin line: connect, append, acknowledge, tail,
// deliver.
func TestPublishSubscribe(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for qos := byte(0); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%v/qos%d", v, qos), func(t *testing.T) {
				t.Parallel()
				h := memoryHouse(t, Options{})
				sub := h.clean(v, "sub")
				sub.subscribe("a/+", qos)
				pub := h.clean(v, "pub")
				for i := range 20 {
					pub.publish("a/b", fmt.Sprint(i), qos, uint16(i+1))
					if m := sub.receive(fmt.Sprint(i)); m.QoS != qos || m.Dup || m.Retain {
						t.Fatalf("got %+v", m)
					}
				}
				pub.disconnect()
				sub.disconnect()
			})
		}
	}
}

// TestReplay shows that a persistent session gets what it missed, once, in order.
func TestReplay(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for qos := byte(1); qos <= 2; qos++ {
			t.Run(fmt.Sprintf("%v/qos%d", v, qos), func(t *testing.T) {
				t.Parallel()
				h := memoryHouse(t, Options{Window: 7, SessionQueue: 5})
				sub, present := h.persistent(v, "sub")
				if present {
					t.Fatal("session present at the first CONNECT")
				}
				sub.subscribe("a/#", qos)
				pub := h.clean(v, "pub")
				n := 0
				for round := range 4 {
					for range 30 {
						pub.publish("a/b", fmt.Sprint(n), qos, uint16(n+1))
						n++
					}
					for i := range 30 {
						sub.receive(fmt.Sprint(round*30 + i))
					}
					sub.ping()
					if round%2 == 0 {
						sub.cut()
					} else {
						sub.disconnect()
					}
					if sub, present = h.persistent(v, "sub"); !present {
						t.Fatal("session not present")
					}
				}
				sub.ping()
				sub.cut()
				for range 50 {
					pub.publish("a/b", fmt.Sprint(n), qos, uint16(n+1))
					n++
				}
				sub, _ = h.persistent(v, "sub")
				for i := n - 50; i < n; i++ {
					sub.receive(fmt.Sprint(i))
				}
				sub.ping()
			})
		}
	}
}

// TestTakeover: the second connection of a client id ends the first
// [MQTT-3.1.4-3], and gets what the first has not acknowledged.
func TestTakeover(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			first, _ := h.persistent(v, "sub")
			first.subscribe("a", 1)
			pub := h.clean(v, "pub")
			pub.publish("a", "1", 1, 1)
			m := *expect[*wire.Publish](first)
			second, present := h.persistent(v, "sub")
			if !present {
				t.Error("session not present")
			}
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](first); d.Code != wire.SessionTakenOver {
					t.Errorf("DISCONNECT %v", d.Code)
				}
			}
			first.closed()
			if again := second.receive("1"); !again.Dup || again.PacketID != m.PacketID {
				t.Errorf("got %+v, want a repeat of %+v", again, m)
			}
		})
	}
}

// TestRetained: RETAIN=1 for what was there at SUBSCRIBE, 0 for what comes live.
func TestRetained(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	pub := h.clean(wire.V5, "pub")
	for i := range 30 {
		pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{
			Topic: fmt.Sprintf("r/%02d", i), Payload: []byte(fmt.Sprint(i)), QoS: 1, PacketID: 9, Retain: true,
		}))
		pub.ack(wire.PUBACK, 9)
	}
	pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "r/03", QoS: 1, PacketID: 9, Retain: true}))
	pub.ack(wire.PUBACK, 9)
	sub := h.clean(wire.V5, "sub")
	sub.subscribe("r/#", 1)
	for i := range 30 {
		if i == 3 {
			continue // cleared [MQTT-3.3.1-6]
		}
		if m := sub.receive(fmt.Sprint(i)); !m.Retain {
			t.Errorf("%d: RETAIN=0", i)
		}
	}
	pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "r/01", Payload: []byte("new"), QoS: 1, PacketID: 9, Retain: true}))
	if m := sub.receive("new"); m.Retain {
		t.Error("live message with RETAIN=1 [MQTT-3.3.1-12]")
	}
}

// TestWill: published when the connection is cut [MQTT-3.1.2-8], not after a
// normal DISCONNECT [MQTT-3.1.2-10].
func TestWill(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub := h.clean(v, "sub")
			sub.subscribe("w", 1)
			will := &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1}
			dev, _ := h.connect(v, wire.Connect{ClientID: "dev", CleanStart: true, Will: will})
			dev.disconnect()
			dev, _ = h.connect(v, wire.Connect{ClientID: "dev", CleanStart: true, Will: will})
			dev.cut()
			sub.receive("gone")
			sub.ping()
		})
	}
}

// TestSys: the broker's state under $SYS, retained, and not matched by #
// [MQTT-4.7.2-1].
func TestSys(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	all := h.clean(wire.V5, "all")
	all.subscribe("#", 1)
	sub := h.clean(wire.V5, "sub")
	sub.subscribe("$SYS/broker/version", 1)
	if m := sub.receive("rewindmq unknown"); !m.Retain || m.QoS != 0 {
		t.Errorf("got %+v", m)
	}
	all.ping()
	pub := h.clean(wire.V5, "pub")
	pub.send("$SYS/broker/version", "mine", 1, 1)
	if a := expect[*wire.Ack](pub); a.Code != wire.TopicNameInvalid {
		t.Errorf("PUBACK %v, want topic_name_invalid", a.Code)
	}
}
