package broker

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// TestHangUpOnTalker: a peer that goes on sending after the broker has closed its
// connection, and never closes its end, is let go of after a short time, whatever its
// keep alive: packets, or one packet that never ends.
func TestHangUpOnTalker(t *testing.T) {
	t.Parallel()
	endless := wire.AppendPublish(nil, wire.V5, &wire.Publish{Topic: "t", Payload: make([]byte, 100_000), QoS: 1, PacketID: 1})
	for name, c := range map[string]struct {
		keepAlive uint16
		talk      func(i int) []byte
		within    time.Duration
	}{
		"packets":                {60, func(int) []byte { return wire.AppendPingreq(nil) }, flushTimeout + time.Second},
		"packets, no keep alive": {0, func(int) []byte { return wire.AppendPingreq(nil) }, flushTimeout + time.Second},
		"one packet":             {60, func(i int) []byte { return endless[300*i : 300*(i+1)] }, 3 * flushTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				u := openBubble(t, storetest.NewMemory(storetest.Options{Lanes: 1}), Options{})
				defer u.close()
				zombie, _, served := u.connect(wire.V5, wire.Connect{ClientID: "z", CleanStart: true, KeepAlive: c.keepAlive})
				go func() { _, _ = io.Copy(io.Discard, zombie.nc) }() // it reads, too
				talked := make(chan struct{})
				go func() {
					defer close(talked)
					for i := range 300 {
						time.Sleep(500 * time.Millisecond) // of the bubble's time
						if _, err := zombie.nc.Write(c.talk(i)); err != nil {
							return
						}
					}
				}()
				time.Sleep(5 * time.Second)
				if over(served) {
					t.Fatal("it is not served while the session is its own")
				}
				begin := time.Now()
				other, code, _ := u.connect(wire.V5, wire.Connect{ClientID: "z", CleanStart: true})
				if code != wire.Success {
					t.Fatalf("CONNACK %v", code)
				}
				<-served
				if took := time.Since(begin); took > c.within {
					t.Errorf("served for %v after the takeover", took)
				}
				_ = other.nc.Close()
				_ = zombie.nc.Close()
				<-talked
			})
		})
	}
}

// TestStopWithTalker: such a peer does not hold up the end of the broker.
func TestStopWithTalker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := openBubble(t, storetest.NewMemory(storetest.Options{Lanes: 1}), Options{})
		zombie, _, _ := u.connect(wire.V311, wire.Connect{ClientID: "z", CleanStart: true, KeepAlive: 60})
		silent, _ := u.dial(wire.V5) // without CONNECT
		go func() { _, _ = io.Copy(io.Discard, zombie.nc) }()
		talked := make(chan struct{})
		go func() {
			defer close(talked)
			for {
				time.Sleep(500 * time.Millisecond) // of the bubble's time
				if _, err := zombie.nc.Write(wire.AppendPingreq(nil)); err != nil {
					return
				}
			}
		}()
		time.Sleep(5 * time.Second)
		begin := time.Now()
		u.close()
		if took := time.Since(begin); took > 3*flushTimeout {
			t.Errorf("the end took %v", took)
		}
		_ = silent.nc.Close()
		_ = zombie.nc.Close()
		<-talked
	})
}

// TestFullOutboxHoldsNothingBack: what was read is appended though the peer does not
// read, and the connection waits for it.
func TestFullOutboxHoldsNothingBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem := storetest.NewMemory(storetest.Options{Lanes: 1})
		u := openBubble(t, mem, Options{OutboxBytes: 1024})
		p, _, _ := u.connect(wire.V5, wire.Connect{ClientID: "p", CleanStart: true})
		pings := bytes.Repeat(wire.AppendPingreq(nil), 512)
		p.write(pings[:2])
		synctest.Wait() // the answer is being written, the others wait
		p.write(pings)
		synctest.Wait()
		before, err := mem.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The answers behind the message fill the outbox.
		m := wire.AppendPublish(nil, p.v, &wire.Publish{Topic: "t", Payload: []byte("reading"), QoS: 1, PacketID: 1})
		p.write(append(m, pings[:40]...))
		synctest.Wait()
		cl := u.b.roster.get("p")
		if full, _ := cl.c.out.state(); !full {
			t.Error("the outbox is not full: the test shows nothing")
		}
		if head, err := mem.Head(t.Context()); err != nil || head.Equal(before) {
			t.Errorf("the message was read and is not appended while its publisher does not read: head %v, %v", head, err)
		}
		go func() { _, _ = io.Copy(io.Discard, p.nc) }()
		u.close()
		_ = p.nc.Close()
	})
}
