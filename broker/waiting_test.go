package broker

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// gatedClaims is a store whose claims wait while it is closed.
type gatedClaims struct {
	*storetest.Memory
	gate atomic.Pointer[chan struct{}]
}

func (s *gatedClaims) shut() (open func()) {
	gate := make(chan struct{})
	s.gate.Store(&gate)
	return func() {
		s.gate.Store(nil)
		close(gate)
	}
}

func (s *gatedClaims) Claim(ctx context.Context, claims []store.Claim) []store.Claimed {
	if gate := s.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
		}
	}
	return s.Memory.Claim(ctx, claims)
}

func device(will string) wire.Connect {
	return wire.Connect{
		ClientID: "dev", SessionExpiry: schema.NoExpiry, HasSessionExpiry: true,
		Will: &wire.Will{Topic: "w", Payload: []byte(will), QoS: 1},
	}
}

// wills gives the payloads of what the log has on the topic of wills.
func (u *bubble) wills(s store.Store) (payloads []string) {
	u.t.Helper()
	head, err := s.Head(u.t.Context())
	if err != nil {
		u.t.Fatal(err)
	}
	msgs, err := s.Read(u.t.Context(), schema.Cursor{}, head, []string{"w"})
	if err != nil {
		u.t.Fatal(err)
	}
	for {
		m, err := msgs.Next(u.t.Context())
		if err != nil {
			_ = msgs.Close()
			return payloads
		}
		payloads = append(payloads, string(m.Payload))
	}
}

// TestConnectHasAnEnd: a CONNECT that waits for the store is refused after openTime. Its
// claim, which lands later, is let go of again, and its will, which was never accepted,
// is not published; that of the connection before is, once.
func TestConnectHasAnEnd(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &gatedClaims{Memory: storetest.NewMemory(storetest.Options{Lanes: 1})}
				u := openBubble(t, s, Options{})
				defer u.close()
				first, code, served := u.connect(v, device("first"))
				if code != wire.Success {
					t.Fatalf("CONNACK %v", code)
				}
				s.Refuse(store.ErrNoSpace) // the will has to wait
				open := s.shut()
				_ = first.nc.Close()
				<-served
				begin := time.Now()
				second, code, served := u.connect(v, device("second"))
				if want := refused(v, wire.ServerUnavailable); code != want {
					t.Errorf("CONNACK %v, want %v", code, want)
				}
				_ = second.nc.Close()
				<-served
				if took := time.Since(begin); took > openTime+2*flushTimeout {
					t.Errorf("it waited for %v", took)
				}
				// Another one meets the claim that is on its way, and waits for it.
				third, code, served := u.connect(v, device("third"))
				if want := refused(v, wire.ServerUnavailable); code != want {
					t.Errorf("CONNACK %v, want %v", code, want)
				}
				_ = third.nc.Close()
				<-served
				open()
				s.Refuse(nil)
				time.Sleep(10 * orphansEvery)
				synctest.Wait()
				if info, err := s.LookSession(t.Context(), "dev"); err != nil || info.Connected {
					t.Errorf("the session is %+v, %v, want it let go of", info, err)
				}
				if n := u.b.orphans.len(); n != 0 {
					t.Errorf("%d sessions are not finished", n)
				}
				if got := u.wills(s); len(got) != 1 || got[0] != "first" {
					t.Errorf("wills %q, want the first, once", got)
				}
				last, code, _ := u.connect(v, device("last"))
				if code != wire.Success {
					t.Errorf("CONNACK %v", code)
				}
				_ = last.nc.Close()
			})
		})
	}
}

// TestConnectWaitsForWill: while the store has no room for the will that is due, CONNECTs
// of its client are refused; what is left of those whose peers have given up is bounded;
// and the will is published once, before what the client publishes next.
func TestConnectWaitsForWill(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem := storetest.NewMemory(storetest.Options{Lanes: 1})
		u := openBubble(t, mem, Options{})
		defer u.close()
		first, _, served := u.connect(wire.V5, device("first"))
		mem.Refuse(store.ErrNoSpace)
		_ = first.nc.Close()
		<-served
		for range 8 { // gives up after a second, and tries again
			p, _ := u.dial(wire.V5)
			c := device("again")
			c.Version = wire.V5
			p.write(wire.AppendConnect(nil, &c))
			time.Sleep(time.Second)
			_ = p.nc.Close()
		}
		synctest.Wait()
		if n := u.b.connections.Load(); n > 2 {
			t.Errorf("%d connections of peers that are gone are held", n)
		}
		time.Sleep(2 * openTime)
		synctest.Wait()
		if n := u.b.connections.Load(); n != 0 {
			t.Errorf("%d connections of peers that are gone are held for good", n)
		}
		p, code, served := u.connect(wire.V5, device("refused"))
		if code != wire.ServerUnavailable {
			t.Errorf("CONNACK %v, want 0x88", code)
		}
		_ = p.nc.Close()
		<-served
		p, _ = u.dial(wire.V5)
		c := device("last")
		c.Version = wire.V5
		p.write(wire.AppendConnect(nil, &c))
		time.Sleep(time.Second)
		mem.Refuse(nil)
		if code := expect[*wire.Connack](p).Code; code != wire.Success {
			t.Errorf("CONNACK %v", code)
		}
		p.publish("w", "next", 1, 1)
		if got := u.wills(mem); len(got) != 2 || got[0] != "first" || got[1] != "next" {
			t.Errorf("got %q, want the first will, then what was published", got)
		}
		p.write(wire.AppendClientDisconnect(nil, p.v, &wire.Disconnect{}))
		_ = p.nc.Close()
	})
}

// TestConnectWaitsForFormer: the former connection cannot let go, as the store takes no
// writes.
func TestConnectWaitsForFormer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem := storetest.NewMemory(storetest.Options{Lanes: 1})
		u := openBubble(t, mem, Options{})
		defer u.close()
		first, _, _ := u.connect(wire.V5, device("first"))
		mem.Hold(true)
		_ = first.nc.Close()
		p, code, served := u.connect(wire.V5, device("second"))
		if code != wire.ServerUnavailable {
			t.Errorf("CONNACK %v, want 0x88", code)
		}
		_ = p.nc.Close()
		<-served
		mem.Hold(false)
		p, code, _ = u.connect(wire.V5, device("third"))
		if code != wire.Success {
			t.Errorf("CONNACK %v", code)
		}
		_ = p.nc.Close()
	})
}
