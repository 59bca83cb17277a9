package broker

import (
	"encoding/hex"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// clock is a clock that a test moves: from a moment at which it stands still, or ahead
// of the true one.
type clock struct {
	stopped time.Time
	ahead   atomic.Int64
}

func (c *clock) now() time.Time {
	t := c.stopped
	if t.IsZero() {
		t = time.Now()
	}
	return t.Add(time.Duration(c.ahead.Load()))
}

func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// clockedHouse is a house whose broker and store go by one clock.
func clockedHouse(t *testing.T, o Options) (*house, *clock) {
	t.Helper()
	c := &clock{}
	o.Now = c.now
	return openHouse(t, storetest.NewMemory(storetest.Options{Lanes: 2, Now: c.now}), o), c
}

// raw turns hex digits, with blanks, into bytes.
func raw(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestConnectRefused: what is answered to a CONNECT that cannot be served, and that
// nothing behind it is processed: one CONNACK at most, then the end [MQTT-3.2.2-6,
// MQTT-3.2.2-7, MQTT-3.1.4-1, MQTT-3.1.4-2, MQTT-3.1.4-6, MQTT-3.14.0-1,
// MQTT-4.13.2-1; 3.1.1: 3.1.4-1, 3.1.4-5, 3.2.2-4 to -6].
func TestConnectRefused(t *testing.T) {
	t.Parallel()
	const mqtt4, mqtt5 = "0004 4d515454 04", "0004 4d515454 05"
	tests := []struct {
		name, connect string
		v             wire.Version
		answer        string // "": none
	}{
		// [MQTT-3.1.2-1, MQTT-3.1.2-2; 3.1.1: 3.1.2-1, 3.1.2-2]
		{"another protocol", "100d 0004 48545450 04 02 003c 0001 61", wire.V311, ""},
		{"level 3 of MQTT", "100d 0004 4d515454 03 02 003c 0001 61", wire.V311, "20020001"},
		{"level 6", "100e 0004 4d515454 06 02 003c 00 0001 61", wire.V5, "2003008400"},
		// [MQTT-3.1.2-3]
		{"reserved flag, 3.1.1", "100d" + mqtt4 + "03 003c 0001 61", wire.V311, ""},
		{"reserved flag, 5", "100e" + mqtt5 + "03 003c 00 0001 61", wire.V5, "2003008100"},
		// [MQTT-3.1.3-3]
		{"no client id", "100a" + mqtt4 + "02 003c", wire.V311, ""},
		// [MQTT-3.1.3-8; 3.1.1: 3.1.3-8, 3.1.3-9]
		{"empty id, session kept, 3.1.1", "100c" + mqtt4 + "00 003c 0000", wire.V311, "20020002"},
		{"id with a control character, 3.1.1", "100d" + mqtt4 + "02 003c 0001 07", wire.V311, "20020002"},
		{"id with a control character, 5", "100e" + mqtt5 + "02 003c 00 0001 07", wire.V5, "2003008500"},
		// [MQTT-3.1.2-11 to -13, MQTT-3.1.2-16 to -19; 3.1.1: 3.1.2-18 to -22]
		{"will QoS without a will", "100d" + mqtt4 + "0a 003c 0001 61", wire.V311, ""},
		{"will retain without a will", "100d" + mqtt4 + "22 003c 0001 61", wire.V311, ""},
		{"will QoS 3", "1014" + mqtt4 + "1e 003c 0001 61 0001 77 0002 6162", wire.V311, ""},
		{"will flag without fields", "100d" + mqtt4 + "06 003c 0001 61", wire.V311, ""},
		{"user name without its flag", "1010" + mqtt4 + "02 003c 0001 61 0001 75", wire.V311, ""},
		{"user name flag without one", "100d" + mqtt4 + "82 003c 0001 61", wire.V311, ""},
		{"password flag without one", "1010" + mqtt4 + "c2 003c 0001 61 0001 75", wire.V311, ""},
		{"password without a user name, 3.1.1", "1010" + mqtt4 + "42 003c 0001 61 0001 70", wire.V311, ""},
		// [MQTT-3.1.3-11]
		{"will topic is not UTF-8", "1013" + mqtt4 + "06 003c 0001 61 0001 ff 0001 70", wire.V311, ""},
		{"will to $SYS", "1017" + mqtt5 + "06 003c 00 0001 61 00 0003 245359 0001 70", wire.V5, "2003009000"},
		// [MQTT-4.12.0-1]
		{"authentication method", "1012" + mqtt5 + "02 003c 04 15 0001 78 0001 61", wire.V5, "2003008c00"},
		// [MQTT-3.1.0-1]
		{"PINGREQ first", "c000", wire.V311, ""},
	}
	h := memoryHouse(t, Options{})
	watch := h.clean(wire.V5, "watch")
	watch.subscribe("behind/#", 0)
	for _, tt := range tests {
		p := h.dial(tt.v)
		behind := wire.AppendPublish(nil, tt.v, &wire.Publish{Topic: "behind/t", Payload: []byte(tt.name)})
		p.write(append(raw(t, tt.connect), behind...))
		_ = p.nc.SetReadDeadline(time.Now().Add(patience))
		var got []byte
		for buf := make([]byte, 64); ; {
			n, err := p.nc.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if hex.EncodeToString(got) != tt.answer {
			t.Errorf("%s: answered %x, want %q", tt.name, got, tt.answer)
		}
	}
	watch.send("behind/t", "end", 0, 0)
	watch.receive("end")
}

// TestConnectClientID: which client ids are taken, and that they alone name the
// session [MQTT-3.1.3-2, MQTT-3.1.3-5, MQTT-3.1.2-5, MQTT-3.1.2-6; 3.1.1: 3.1.2-4].
func TestConnectClientID(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	for _, v := range versions() {
		ids := []string{"a", "0123456789abcdefghijklm", "ABCDEFGHIJKLMNOPQRSTUVW", "nopqrstuvwxyzXYZ"}
		for i, id := range ids {
			id = v.String()[:1] + id[1:]
			p, present := h.persistent(v, id)
			if present {
				t.Errorf("%v %q: session present", v, id)
			}
			p.subscribe("id/"+ids[i], 1)
			p.disconnect()
		}
		for i, id := range ids {
			pub := h.clean(v, "pub")
			pub.publish("id/"+ids[i], "for "+id, 1, 1)
			pub.disconnect()
			p, present := h.persistent(v, v.String()[:1]+id[1:])
			if !present {
				t.Errorf("%v %q: no session", v, id)
			}
			p.receive("for " + id)
			p.ping()
			p.disconnect()
		}
	}
}

// TestConnectAssignedID: an empty client id becomes one that nobody else has, and
// that the client may come back with [MQTT-3.1.3-6, MQTT-3.1.3-7, MQTT-3.2.2-16].
func TestConnectAssignedID(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	kept := wire.Connect{SessionExpiry: schema.NoExpiry, HasSessionExpiry: true}
	one, first := h.connect(wire.V5, kept)
	_, second := h.connect(wire.V5, kept)
	if first.AssignedClientID == "" || first.AssignedClientID == second.AssignedClientID {
		t.Fatalf("assigned %q and %q", first.AssignedClientID, second.AssignedClientID)
	}
	one.subscribe("t", 1)
	one.disconnect()
	kept.ClientID = first.AssignedClientID
	if _, ack := h.connect(wire.V5, kept); !ack.SessionPresent || ack.AssignedClientID != "" {
		t.Errorf("back as %q: %+v", kept.ClientID, ack)
	}
	old, _ := h.connect(wire.V311, wire.Connect{CleanStart: true})
	old.ping()
}

// TestConnack: CONNACK is the first packet and comes once, whatever waits; it says
// nothing of authentication, and no response information [MQTT-3.1.4-5,
// MQTT-3.2.0-1, MQTT-3.2.0-2, MQTT-3.2.2-1, MQTT-4.12.0-6, MQTT-3.1.2-28; 3.1.1:
// 3.1.4-4].
func TestConnack(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub, _ := h.persistent(v, "sub")
			sub.subscribe("t", 1)
			sub.disconnect()
			pub := h.clean(v, "pub")
			pub.publish("t", "waiting", 1, 1)
			sub, ack := h.connect(v, wire.Connect{ClientID: "sub", SessionExpiry: schema.NoExpiry, HasSessionExpiry: v == wire.V5})
			if !ack.SessionPresent || ack.AuthMethod != "" || ack.AuthData != nil || ack.ResponseInfo != "" || ack.ReasonString != "" {
				t.Errorf("CONNACK %+v", ack)
			}
			sub.receive("waiting")
			// [MQTT-3.1.0-2]
			sub.write(wire.AppendConnect(nil, &wire.Connect{Version: v, ClientID: "sub", CleanStart: true}))
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](sub); d.Code != wire.ProtocolError {
					t.Errorf("DISCONNECT %v", d.Code)
				}
			}
			sub.closed()
		})
	}
}

// TestCleanStart: it ends the session with all of it, and what comes next is new
// [MQTT-3.1.2-4, MQTT-3.1.4-4, MQTT-3.2.2-2, MQTT-3.2.2-3; 3.1.1: 3.1.2-6, 3.1.4-3].
// Retained messages are not part of it: [MQTT-3.1.2-7] of 3.1.1.
func TestCleanStart(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			dev, _ := h.persistent(v, "dev")
			dev.subscribe("t/#", 2)
			dev.write(wire.AppendPublish(nil, v, &wire.Publish{Topic: "t/kept", Payload: []byte("kept"), QoS: 1, PacketID: 1, Retain: true}))
			dev.ack(wire.PUBACK, 1)
			dev.delivery()
			dev.cut()
			clean, ack := h.connect(v, wire.Connect{ClientID: "dev", CleanStart: true})
			if ack.SessionPresent {
				t.Error("session present after a clean start")
			}
			pub := h.clean(v, "pub")
			pub.publish("t/a", "not for dev", 2, 1)
			clean.ping()
			clean.disconnect()
			if _, present := h.persistent(v, "dev"); present {
				t.Error("session present after a clean one")
			}
			fresh := h.clean(v, "fresh")
			fresh.subscribe("t/#", 1)
			fresh.receive("kept")
		})
	}
}

// TestKeepAliveOfTheClient: the server tells none of its own, and so the client's
// holds [MQTT-3.2.2-22, MQTT-3.1.2-22; 3.1.1: 3.1.2-24].
func TestKeepAliveOfTheClient(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			begin := time.Now()
			p, ack := h.connect(v, wire.Connect{ClientID: "p", CleanStart: true, KeepAlive: 1})
			if ack.ServerKeepAlive != nil {
				t.Errorf("server keep alive %d", *ack.ServerKeepAlive)
			}
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](p); d.Code != wire.KeepAliveTimeout {
					t.Errorf("DISCONNECT %v", d.Code)
				}
			}
			p.closed()
			if took := time.Since(begin); took < 1400*time.Millisecond {
				t.Errorf("closed after %v, want one and a half seconds", took)
			}
		})
	}
}

// TestNoReasonStrings: with problem information 0 no answer bears a reason string
// or user properties [MQTT-3.1.2-29].
func TestNoReasonStrings(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	p := h.dial(wire.V5)
	p.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: "p", CleanStart: true}))
	expect[*wire.Connack](p)
	p.send("$no", "x", 1, 1)
	if a := expect[*wire.Ack](p); a.Code != wire.TopicNameInvalid || a.Reason != "" || a.User != nil {
		t.Errorf("PUBACK %+v", a)
	}
	p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 2, Filters: []wire.Filter{{Topic: "$no"}}}))
	if a := expect[*wire.Suback](p); a.Codes[0] != wire.TopicFilterInvalid || a.Reason != "" || a.User != nil {
		t.Errorf("SUBACK %+v", a)
	}
	p.write(wire.AppendUnsubscribe(nil, wire.V5, &wire.Unsubscribe{PacketID: 3, Filters: []string{"none"}}))
	if a := expect[*wire.Unsuback](p); a.Reason != "" || a.User != nil {
		t.Errorf("UNSUBACK %+v", a)
	}
}

// TestSessionExpiry: a session is kept while its connection is open, and for its
// expiry after that, and then gone with its subscriptions [MQTT-3.1.2-23,
// MQTT-4.1.0-1, MQTT-4.1.0-2; 3.1.1: 4.1.0-1, 4.1.0-2].
func TestSessionExpiry(t *testing.T) {
	t.Parallel()
	h, c := clockedHouse(t, Options{})
	open := func() (*peer, bool) {
		p, ack := h.connect(wire.V5, wire.Connect{ClientID: "dev", SessionExpiry: 10, HasSessionExpiry: true})
		return p, ack.SessionPresent
	}
	dev, _ := open()
	dev.subscribe("t", 1)
	pub := h.clean(wire.V5, "pub")
	c.advance(time.Minute) // open: no expiry
	pub.publish("t", "1", 1, 1)
	dev.receive("1")
	dev.disconnect()
	h.until("let go", func() bool { return h.b.roster.get("dev") == nil })
	c.advance(9 * time.Second)
	dev, present := open()
	if !present {
		t.Error("session gone before its expiry")
	}
	dev.disconnect()
	h.until("let go", func() bool { return h.b.roster.get("dev") == nil })
	c.advance(11 * time.Second)
	if dev, present = open(); present {
		t.Error("session there after its expiry")
	}
	pub.publish("t", "2", 1, 2)
	dev.ping()
}

// until waits for a condition.
func (h *house) until(what string, cond func() bool) {
	h.t.Helper()
	(&golden{t: h.t, h: h}).until(what, cond)
}
