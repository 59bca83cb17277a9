package broker

import (
	"context"
	"errors"
	"testing"
	"time"

	"rewindmq/broker/session"
	"rewindmq/store"
	"rewindmq/wire"
)

var errStoreAway = errors.New("the store is away")

// look gives what the store knows of a session.
func (h *house) look(id string) (store.SessionInfo, error) {
	return h.b.store.LookSession(context.Background(), id)
}

// orphan lets the store fail while a connection ends, until the session is known to be
// let go of without a release.
func (h *house) orphan(id string, end func()) {
	h.t.Helper()
	h.mem.Fail(errStoreAway)
	end()
	h.until("let go of "+id+" without a release", func() bool { return h.b.roster.get(id) == nil && h.b.orphans.len() == 1 })
}

// released waits until the node has finished what it let go of.
func (h *house) released(id string) {
	h.t.Helper()
	h.until("finish "+id, func() bool {
		info, err := h.look(id)
		return h.b.orphans.len() == 0 && (errors.Is(err, store.ErrNoSession) || err == nil && !info.Connected)
	})
}

// TestOrphanWill: the release fails, as the store is away, and the client does not come
// back: its will is published all the same, once, when its delay is over; after
// DISCONNECT 0x00 it is not; and its session ends when its expiry is over.
func TestOrphanWill(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		delay, expiry uint32
		normal        bool
		will, stays   bool
	}{
		"at once":                   {0, 600, false, true, true},
		"after a delay":             {1, 600, false, true, true},
		"with the end of a session": {600, 1, false, true, false},
		"of a clean session":        {600, 0, false, true, false},
		"removed by DISCONNECT":     {0, 600, true, false, true},
		"removed, with a delay":     {1, 600, true, false, true},
		"removed, clean":            {0, 0, true, false, false},
		"removed, short":            {0, 1, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			watch := h.clean(wire.V5, "watch")
			watch.subscribe("w", 0) // without records: the store may be away
			dev, _ := h.connect(wire.V5, wire.Connect{
				ClientID: "dev", SessionExpiry: c.expiry, HasSessionExpiry: true,
				Will: &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1, Delay: c.delay},
			})
			before, err := h.look("dev")
			if err != nil {
				t.Fatal(err)
			}
			h.orphan("dev", func() {
				if c.normal {
					dev.disconnect()
				} else {
					dev.cut()
				}
			})
			watch.ping()
			h.mem.Fail(nil)
			h.released("dev")
			if c.will {
				watch.receive("gone")
			}
			if c.stays {
				if info, err := h.look("dev"); err != nil || info.SID != before.SID || info.Expiry != c.expiry {
					t.Errorf("the session is %+v, %v; was %+v", info, err, before)
				}
			} else {
				h.until("end the session", func() bool {
					_, err := h.look("dev")
					return errors.Is(err, store.ErrNoSession)
				})
			}
			pub := h.clean(wire.V5, "pub")
			pub.publish("w", "end", 1, 1)
			watch.receive("end")
			watch.ping()
		})
	}
}

// TestOrphanReturns: a client that returns is served, whether the node has finished its
// session before or not, and gets what was open.
func TestOrphanReturns(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for _, first := range []bool{false, true} {
			h := memoryHouse(t, Options{})
			dev, _ := h.persistent(v, "dev")
			dev.subscribe("t", 1)
			pub := h.clean(v, "pub")
			pub.publish("t", "1", 1, 1)
			m := dev.delivery()
			h.orphan("dev", dev.cut)
			h.mem.Fail(nil)
			if first {
				h.released("dev")
			}
			dev, present := h.persistent(v, "dev")
			if !present {
				t.Error("session not present")
			}
			if again := dev.receive("1"); !again.Dup || again.PacketID != m.PacketID {
				t.Errorf("got %+v, want a repeat of %+v", again, m)
			}
			pub.publish("t", "2", 1, 2)
			dev.receive("2")
			h.until("forget the one of before", func() bool {
				cl := h.b.roster.get("dev")
				return cl != nil && cl.c != nil
			})
			dev.ping()
			dev.disconnect()
			h.released("dev")
		}
	}
}

// TestOrphanRecord: a delivery's record stays in doubt; the session is let go of, and
// finished.
func TestOrphanRecord(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	dev, _ := h.connect(wire.V5, wire.Connect{
		ClientID: "dev", SessionExpiry: 1, HasSessionExpiry: true, Will: &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1},
	})
	dev.subscribe("t", 1)
	watch := h.clean(wire.V5, "watch")
	watch.subscribe("w", 0)
	pub := h.clean(wire.V5, "pub")
	h.orphan("dev", func() { pub.publish("t", "1", 1, 1) })
	if d := expect[*wire.Disconnect](dev); d.Code != wire.UnspecifiedError {
		t.Errorf("DISCONNECT %v", d.Code)
	}
	h.mem.Fail(nil)
	watch.receive("gone")
	h.until("end the session", func() bool {
		_, err := h.look("dev")
		return errors.Is(err, store.ErrNoSession)
	})
	h.released("dev")
	watch.ping()
}

// TestOrphanElsewhere: a session that another node has claimed is not this one's to
// finish.
func TestOrphanElsewhere(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	dev, _ := h.persistent(wire.V5, "dev")
	h.orphan("dev", dev.cut)
	h.mem.Fail(nil)
	other := h.mem.ClaimElsewhere("dev")
	h.until("forget it", func() bool { return h.b.orphans.len() == 0 })
	if info, err := h.look("dev"); err != nil || info.Owner != other && info.Epoch <= other.Epoch {
		t.Errorf("%+v, %v; claimed elsewhere as %+v", info, err, other)
	}
}

// TestEndSession: the operator ends sessions: with a connection, which is closed with
// 0x98, and without; wills are published, subscriptions are gone.
func TestEndSession(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		for _, online := range []bool{true, false} {
			h := memoryHouse(t, Options{})
			watch := h.clean(v, "watch")
			watch.subscribe("w", 1)
			will := &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1}
			if v == wire.V5 {
				will.Delay = 600
			}
			dev, _ := h.connect(v, wire.Connect{ClientID: "dev", SessionExpiry: 600, HasSessionExpiry: v == wire.V5, Will: will})
			dev.subscribe("t", 1)
			if !online {
				dev.cut()
				h.until("let go", func() bool { return h.b.roster.get("dev") == nil })
			}
			if err := h.b.EndSession(t.Context(), "dev"); err != nil {
				t.Fatal(err)
			}
			if online {
				if v == wire.V5 {
					if d := expect[*wire.Disconnect](dev); d.Code != wire.AdministrativeAction {
						t.Errorf("DISCONNECT %v, want 0x98", d.Code)
					}
				}
				dev.closed()
			}
			watch.receive("gone")
			if _, err := h.look("dev"); !errors.Is(err, store.ErrNoSession) {
				t.Errorf("the session is there: %v", err)
			}
			dev, present := h.persistent(v, "dev")
			if present {
				t.Error("session present")
			}
			pub := h.clean(v, "pub")
			pub.publish("t", "nobody", 1, 1)
			dev.ping()
			watch.ping()
			if err := h.b.EndSession(t.Context(), "nobody"); !errors.Is(err, store.ErrNoSession) {
				t.Errorf("a session that is not there: %v", err)
			}
		}
	}
}

// TestEndSessionFails: when the store fails in the middle, it is ended when the store is
// back.
func TestEndSessionFails(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	dev, _ := h.persistent(wire.V5, "dev")
	dev.subscribe("t", 1)
	if cl := h.b.roster.get("dev"); cl != nil {
		cl.input((*session.Session).Save)
	}
	h.mem.Hold(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.b.EndSession(ctx, "dev"); err == nil {
		t.Error("ended, with a store that does not answer")
	}
	h.mem.Hold(false)
	if err := h.b.EndSession(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.look("dev"); !errors.Is(err, store.ErrNoSession) {
		t.Errorf("the session is there: %v", err)
	}
}
