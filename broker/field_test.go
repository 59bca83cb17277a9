package broker

import (
	"testing"
	"time"

	"rewindmq/store/embedded"
	"rewindmq/wire"
)

// TestF27d_ClockStepsBack: the clock goes back by an hour while clients are connected.
// Nobody is disconnected, and no session, will or message expires early, or an hour
// late.
func TestF27d_ClockStepsBack(t *testing.T) {
	t.Parallel()
	c := &clock{}
	log, err := embedded.Open(embedded.Options{Dir: t.TempDir(), Node: "node-1", Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	h := openHouse(t, log, Options{Now: c.now})
	watch := h.clean(wire.V5, "watch")
	watch.subscribe("w", 1)
	idle, _ := h.connect(wire.V5, wire.Connect{ClientID: "idle", CleanStart: true, KeepAlive: 60})
	away, _ := h.connect(wire.V5, wire.Connect{ClientID: "away", SessionExpiry: 3, HasSessionExpiry: true})
	away.subscribe("t", 1)
	stays, _ := h.connect(wire.V5, wire.Connect{ClientID: "stays", SessionExpiry: 600, HasSessionExpiry: true})
	stays.subscribe("t", 1)
	stays.disconnect()
	dev, _ := h.connect(wire.V5, wire.Connect{
		ClientID: "dev", SessionExpiry: 600, HasSessionExpiry: true, Will: &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1, Delay: 3},
	})
	pub := h.clean(wire.V5, "pub")
	send := func(text string, expiry uint32) {
		pub.write(wire.AppendPublish(nil, wire.V5, &wire.Publish{
			Topic: "t", Payload: []byte(text), QoS: 1, PacketID: 1, HasExpiry: true, MessageExpiry: expiry,
		}))
		pub.ack(wire.PUBACK, 1)
	}
	send("long", 600)
	away.receive("long")
	dev.cut()
	away.disconnect()
	h.until("let go of them", func() bool { return h.b.roster.get("dev") == nil && h.b.roster.get("away") == nil })

	c.advance(-time.Hour)
	begin := time.Now()
	idle.ping()
	watch.ping()
	send("short", 2)
	if m := watch.receive("gone"); m.Retain {
		t.Errorf("got %+v", m)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("a will with a delay of 3 s came after %v", took)
	}
	h.until("end the session of 3 s", func() bool { return h.b.stored.Load() == 5 })
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("a session of 3 s ended after %v", took)
	}
	stays, ack := h.connect(wire.V5, wire.Connect{ClientID: "stays", SessionExpiry: 600, HasSessionExpiry: true})
	if !ack.SessionPresent {
		t.Error("a session of 600 s is gone")
	}
	stays.receive("long")
	stays.ping() // the other one has expired
	idle.ping()
}
