package integration

import (
	"fmt"
	"testing"
	"time"
)

// needStreams skips a test of the change streams where they are off.
func needStreams(t *testing.T) {
	t.Helper()
	if !chosen("mongodb") || noStreams {
		t.Skip("no mongodb, or no change streams: REWINDMQ_TEST_STORES, REWINDMQ_TEST_NO_STREAMS")
	}
}

// valved gives a broker that reaches the shared set by a valve, on the place of b.
func (b *broker) valved(name string, with ...launch) (*broker, *valve) {
	b.t.Helper()
	v := valveTo(b.t, replicaSet.get(b.t).Members()[0].Addr())
	args := append([]string{"--store", v.uri()}, b.place.args[2:]...)
	o := prepare(b.t, backend{name: "mongodb", place: func(*testing.T, string) place {
		p := b.place
		p.args = args
		return p
	}}, with...)
	o.node = name
	o.start()
	return o, v
}

// streams publishes by pub to a topic that sub has, until the stream of b has
// shown it one.
func (b *broker) streams(pub, sub *client, topic string) {
	b.t.Helper()
	for i := 0; ; i++ {
		before := sum(b.metrics(), "change_stream_events_total", `op="insert"`)
		text := fmt.Sprint("warm ", i)
		pub.publish(message{topic: topic, qos: 1, payload: []byte(text)})
		sub.settle(sub.takePayload(text))
		if sum(b.metrics(), "change_stream_events_total", `op="insert"`) > before {
			return
		}
		if i == 500 {
			b.t.Fatal("the tail does not stream")
		}
	}
}

// S-43: the connection of the change stream says nothing any more, and stays open;
// what is published on another node is missing. A PINGREQ of the client, and in
// another case a PUBLISH, makes it arrive. Without either the watchdog on the
// stream does, 5.25 s after its last answer: so the bound is half of that.
func TestS43_SilentStream(t *testing.T) {
	t.Parallel()
	needStreams(t)
	const watchdog = 5250 * time.Millisecond
	for _, poke := range []string{"PINGREQ", "PUBLISH", "nothing"} {
		t.Run(poke, func(t *testing.T) {
			t.Parallel()
			a := start(t, mongodbBackend())
			b, v := a.valved("n2")
			pub := a.open(transient(v5, "pub"))
			sub := b.open(persistent(v5, "sub"))
			sub.subscribe(want{"s43/#", 1})
			var took []time.Duration
			for round := range rounds(10) {
				b.streams(pub, sub, "s43/warm")
				v.hold(true, streamLinks)
				began := time.Now()
				for i := range 3 {
					pub.publish(message{topic: "s43/t", qos: 1, payload: fmt.Appendf(nil, "%d %d", round, i)})
				}
				if err := sub.firstByteWithin(quickly); err == nil {
					t.Log("it came before anybody asked: the stream was not held in time")
				}
				switch poke {
				case "PINGREQ":
					sub.send([]byte{kindPingreq << 4, 0})
				case "PUBLISH":
					sub.send(message{topic: "other", qos: 0, payload: []byte("x")}.packet(v5, 0, false))
				}
				for i := range 3 {
					sub.settle(sub.takePayload(fmt.Sprintf("%d %d", round, i)))
				}
				took = append(took, time.Since(began))
				if poke == "PINGREQ" {
					sub.await(kindPingresp)
				}
				v.hold(false, streamLinks)
			}
			// The machine may be busy in one round; it is not in all of them.
			best := took[0]
			for _, d := range took {
				best = min(best, d)
			}
			t.Logf("after %v", took)
			if poke != "nothing" && best > watchdog/2 {
				t.Errorf("it took %v: nothing but the watchdog on the stream made it arrive", best)
			}
			if poke == "nothing" && best < watchdog/2 {
				t.Errorf("it took %v without a poke: the test shows nothing", best)
			}
			sub.nothing()
			pub.disconnect()
		})
	}
}

// S-66: a node has no change stream any more, and a client of its own goes to another
// node: the old connection is told, and ends, though nothing is written to its
// session. The claims are polled.
func TestTakeoverWithoutStreams(t *testing.T) {
	t.Parallel()
	needStreams(t)
	a := start(t, mongodbBackend())
	b, v := a.valved("n2")
	dev := persistent(v5, "dev")
	old := b.open(dev)
	old.subscribe(want{"s66/#", 1})
	v.shut(true, streamLinks)
	now := a.open(dev).expectPresent(true)
	began := time.Now()
	rest := old.closed()
	t.Logf("after %v", time.Since(began).Round(time.Millisecond))
	if len(rest) == 0 || rest[len(rest)-1].kind != kindDisconnect || rest[len(rest)-1].code != 0x8e {
		t.Errorf("the old connection got %v, want DISCONNECT 0x8E", rest)
	}
	pub := b.open(transient(v5, "pub"))
	pub.publish(message{topic: "s66/t", qos: 1, payload: []byte("x")})
	now.settle(now.takePayload("x"))
	now.nothing()
}

// Item 4: while the connections of the change streams say nothing, and new ones say
// nothing either, the lanes are read: nobody waits for the stream to be opened.
func TestHeldStream(t *testing.T) {
	t.Parallel()
	needStreams(t)
	a := start(t, mongodbBackend())
	b, v := a.valved("n2")
	pub := a.open(transient(v5, "pub"))
	sub := b.open(persistent(v5, "sub"))
	sub.subscribe(want{"held/#", 1})
	b.streams(pub, sub, "held/warm")
	v.hold(true, streamLinks)
	send := func(text string) time.Duration {
		t.Helper()
		pub.publish(message{topic: "held/t", qos: 1, payload: []byte(text)})
		began := time.Now()
		sub.settle(sub.takePayload(text))
		return time.Since(began)
	}
	t.Logf("the first comes after %v", send("first").Round(time.Millisecond))
	// To open a stream takes 5.25 s here, and it is tried again and again.
	late, n := 0, 0
	for began := time.Now(); time.Since(began) < 12*time.Second; n++ {
		if send(fmt.Sprint(n)) > time.Second {
			late++
		}
		elapse(t, 100*time.Millisecond)
	}
	t.Logf("%d of %d came after more than a second", late, n)
	if n < 20 || late > n/10 {
		t.Errorf("%d of %d came after more than a second", late, n)
	}
	v.hold(false, streamLinks)
	b.streams(pub, sub, "held/warm")
	sub.nothing()
}
