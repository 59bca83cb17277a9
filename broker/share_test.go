package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"rewindmq/broker/session"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

const shareT = "$share/g/t"

// TestSharedSpread: each message goes to one member, in order to each of them; all of
// them work. Another group of the same filter has its own.
func TestSharedSpread(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 8}, func(t *testing.T, s *site, v wire.Version) {
		for qos := byte(0); qos <= 2; qos++ {
			topic := fmt.Sprint("s", qos)
			name, other := "$share/g/"+topic, "$share/other/"+topic
			c, oc := newCrew(t), newCrew(t)
			ids := []string{}
			for i := range 3 {
				id := fmt.Sprintf("m%d-%d", qos, i)
				p := s.clean(v, id)
				if i == 0 {
					p = s.member(v, id, 0)
				}
				p.subscribe(name, qos)
				c.works(id, p)
				ids = append(ids, id)
			}
			p := s.clean(v, other)
			p.subscribe(other, qos)
			oc.works("other", p)
			s.online(name, 3)
			s.online(other, 1)
			s.clean(v, "pub").publishes(topic, qos, 1, 150)
			c.waitFor(1, 150)
			oc.waitFor(1, 150)
			c.once(1, 150)
			oc.once(1, 150)
			oc.ordered("other")
			for _, id := range ids {
				c.ordered(id)
				if n := len(c.of(id)); n < 10 {
					t.Errorf("QoS %d: %s got %d of 150", qos, id, n)
				}
			}
		}
	})
}

// TestSharedOneMember: all of it, in order, live and from the log.
func TestSharedOneMember(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 3, SessionQueue: 4}, func(t *testing.T, s *site, v wire.Version) {
		p := s.member(v, "m", 0)
		p.subscribe(shareT, 2)
		pub := s.clean(v, "pub")
		for i := 1; i <= 60; i++ { // beyond the queue: it becomes a reader of the log
			pub.publish("t", fmt.Sprint(i), byte(1+i%2), uint16(i))
		}
		for i := 1; i <= 60; i++ {
			if m := p.receive(fmt.Sprint(i)); m.QoS != byte(1+i%2) || m.Dup || m.Retain {
				t.Fatalf("got %+v", m)
			}
		}
		p.ping()
		pub.publish("t", "61", 1, 61)
		p.receive("61")
		p.ping()
	})
}

// TestF12_SharedQoS2: what was begun at QoS 2 is completed with the same member when it
// returns [MQTT-4.8.2-4], and goes to nobody if its session ends [MQTT-4.8.2-5].
func TestF12_SharedQoS2(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"before PUBREC", "after PUBREC", "SIGKILL", "SIGKILL after PUBREC", "session ends", "clean start"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			sites(t, Options{}, func(t *testing.T, s *site, v wire.Version) {
				a := s.member(v, "a", 0)
				a.subscribe(shareT, 2)
				s.online(shareT, 1)
				pub := s.clean(v, "pub")
				pub.publish("t", "1", 2, 1)
				m := a.delivery()
				b := s.member(v, "b", 0)
				b.subscribe(shareT, 2)
				s.online(shareT, 2)
				received := how == "after PUBREC" || how == "SIGKILL after PUBREC"
				if received {
					a.write(wire.AppendAck(nil, v, wire.PUBREC, m.PacketID, wire.Success))
					a.ack(wire.PUBREL, m.PacketID)
				}
				if how == "SIGKILL" || how == "SIGKILL after PUBREC" {
					s.kill()
					b = s.member(v, "b", 0)
					s.online(shareT, 1)
					pub = s.clean(v, "pub")
				} else {
					a.cut()
					s.gone("a")
				}
				switch {
				case how == "clean start":
					s.clean(v, "a")
				case how == "session ends":
					if v != wire.V5 {
						return
					}
					a = s.open(v, wire.Connect{ClientID: "a", SessionExpiry: 0})
					s.inFlight("a", 1)
					a.cut()
					s.gone("a")
				default:
					a = s.member(v, "a", 0)
					if received {
						a.ack(wire.PUBREL, m.PacketID)
						a.write(wire.AppendAck(nil, v, wire.PUBCOMP, m.PacketID, wire.Success))
					} else if again := a.receive("1"); again.PacketID != m.PacketID || !again.Dup {
						t.Errorf("completed with %+v, want a repeat of %+v", again, m)
					}
					a.ping()
				}
				// The other member never gets it; what follows it does.
				for i := 2; i <= 9; i++ {
					pub.publish("t", fmt.Sprint(i), 2, uint16(i))
				}
				b.settle()
				for _, early := range b.early {
					if string(early.Payload) == "1" {
						t.Error("the other member got it")
					}
				}
			})
		})
	}
}

// TestF12_SharedQoS1: what a member left unacknowledged at QoS 1 another gets as soon
// as the link is lost, as a new message; and the first does not get it again.
func TestF12_SharedQoS1(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"cut", "disconnect", "clean session", "SIGKILL"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			sites(t, Options{}, func(t *testing.T, s *site, v wire.Version) {
				a := s.member(v, "a", 0)
				if how == "clean session" {
					a.disconnect()
					s.gone("a")
					a = s.clean(v, "a")
				}
				a.subscribe(shareT, 1)
				s.online(shareT, 1)
				pub := s.clean(v, "pub")
				pub.publishes("t", 1, 1, 5)
				a.receive("1")
				for i := 2; i <= 5; i++ {
					if m := a.delivery(); string(m.Payload) != fmt.Sprint(i) {
						t.Fatalf("got %q", m.Payload)
					}
				}
				s.inFlight("a", 4)
				s.save("a")
				b := s.member(v, "b", 0)
				b.subscribe(shareT, 1)
				s.online(shareT, 2)
				switch how {
				case "SIGKILL":
					s.kill()
					b = s.member(v, "b", 0)
				case "disconnect":
					a.write(wire.AppendClientDisconnect(nil, v, &wire.Disconnect{}))
				default:
					a.cut()
				}
				for i := 2; i <= 5; i++ {
					if m := b.receive(fmt.Sprint(i)); m.Dup { // [MQTT-3.3.1-1] the first attempt for b
						t.Errorf("message %d came with DUP", i)
					}
				}
				b.ping()
				if how != "SIGKILL" {
					s.gone("a")
				}
				a = s.member(v, "a", 0)
				a.ping()
			})
		})
	}
}

// TestSharedBacklog: while all members are offline the group keeps what comes, without
// a cap, also over a SIGKILL; whoever comes first gets it.
func TestSharedBacklog(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 20, SessionQueue: 8}, func(t *testing.T, s *site, v wire.Version) {
		for _, id := range []string{"a", "b"} {
			p := s.member(v, id, 0)
			p.subscribe(shareT, 2)
			p.cut()
			s.gone(id)
		}
		s.online(shareT, 0)
		pub := s.clean(v, "pub")
		pub.publishes("t", 1, 1, 150)
		pub.publishes("u", 1, 151, 160)
		pub.publish("t", "qos 0", 0, 0) // is not replayed
		pub.ping()
		s.kill()
		pub = s.clean(v, "pub")
		pub.publishes("t", 2, 151, 200)
		c := newCrew(t)
		c.works("b", s.member(v, "b", 0))
		c.waitFor(1, 100)
		c.works("a", s.member(v, "a", 0))
		c.waitFor(1, 200)
		s.inFlight("a", 0)
		s.inFlight("b", 0)
		c.once(1, 200)
		c.ordered("a")
		c.ordered("b")
	})
}

// TestG3_LastMemberLeaves: who comes when the group has ended gets nothing from before.
func TestG3_LastMemberLeaves(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"UNSUBSCRIBE", "session end"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			sites(t, Options{}, func(t *testing.T, s *site, v wire.Version) {
				a := s.member(v, "a", 0)
				if how == "session end" {
					a.disconnect()
					s.gone("a")
					a = s.clean(v, "a")
				}
				a.subscribe(shareT, 1)
				pub := s.clean(v, "pub")
				pub.publish("t", "1", 1, 1)
				a.delivery() // and no PUBACK
				if how == "UNSUBSCRIBE" {
					a.unsubscribe(shareT)
				} else {
					a.cut()
					s.gone("a")
				}
				pub.publishes("t", 1, 2, 5)
				b := s.member(v, "b", 0)
				b.subscribe(shareT, 1)
				pub.publish("t", "6", 1, 6)
				b.receive("6")
				a.cut()
				s.gone("a")
				s.online(shareT, 1)
				b.ping()
				pub.publish("t", "7", 1, 7)
				b.receive("7")
				b.ping()
			})
		})
	}
}

func (p *peer) unsubscribe(filter string) {
	p.t.Helper()
	p.write(wire.AppendUnsubscribe(nil, p.v, &wire.Unsubscribe{PacketID: 77, Filters: []string{filter}}))
	pk := p.read()
	for {
		m, ok := pk.(*wire.Publish)
		if !ok {
			break
		}
		p.early = append(p.early, *m)
		pk = p.read()
	}
	if a, ok := pk.(*wire.Unsuback); !ok || a.PacketID != 77 {
		p.t.Fatalf("got %#v, want UNSUBACK 77", pk)
	}
}

// TestSharedReceiveMaximumOne: members that take one message at a time share the load;
// nobody gets a second before the first is acknowledged.
func TestSharedReceiveMaximumOne(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 1}, func(t *testing.T, s *site, v wire.Version) {
		a, b := s.member(v, "a", 1), s.member(v, "b", 1)
		a.subscribe(shareT, 1)
		b.subscribe(shareT, 1)
		s.online(shareT, 2)
		pub := s.clean(v, "pub")
		pub.publishes("t", 1, 1, 80)
		x, y := a.delivery(), b.delivery()
		a.settle()
		b.settle()
		if len(a.early)+len(b.early) > 0 {
			t.Error("a second message before the first was acknowledged")
		}
		if got := []string{string(x.Payload), string(y.Payload)}; !slices.Contains(got, "1") || !slices.Contains(got, "2") {
			t.Errorf("the first two are %q", got)
		}
		c := newCrew(t)
		for _, m := range []struct {
			p  *peer
			id string
			m  wire.Publish
		}{{a, "a", x}, {b, "b", y}} {
			m.p.early = append(m.p.early, m.m)
			c.works(m.id, m.p)
		}
		c.waitFor(1, 80)
		s.inFlight("a", 0)
		s.inFlight("b", 0)
		c.once(1, 80)
		c.ordered("a")
		c.ordered("b")
	})
}

// TestSharedSlowMember: one that does not acknowledge holds what it was given, and
// nobody else; when it goes the others get that too.
func TestSharedSlowMember(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 4}, func(t *testing.T, s *site, v wire.Version) {
		slow := s.member(v, "slow", 0)
		slow.subscribe(shareT, 1)
		fast := s.member(v, "fast", 0)
		fast.subscribe(shareT, 1)
		s.online(shareT, 2)
		c := newCrew(t)
		c.works("fast", fast)
		pub := s.clean(v, "pub")
		pub.publishes("t", 1, 1, 100)
		s.until("give what the slow one does not hold to the fast one", func() bool {
			cl, n := s.b.roster.get("slow"), 0
			cl.input(func(ses *session.Session) { n = ses.InFlight() })
			return n > 0 && n+len(c.of("fast")) == 100
		})
		slow.cut()
		c.waitFor(1, 100)
		c.once(1, 100)
	})
}

// TestSharedUnsubscribe: in the middle of a stream one member goes; what it was given
// it keeps, everything else the other gets.
func TestSharedUnsubscribe(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 5}, func(t *testing.T, s *site, v wire.Version) {
		a, b := s.member(v, "a", 0), s.member(v, "b", 0)
		a.subscribe(shareT, 2)
		b.subscribe(shareT, 2)
		s.online(shareT, 2)
		pub := s.clean(v, "pub")
		pub.publishes("t", 2, 1, 10) // five for each
		s.inFlight("a", 5)
		a.unsubscribe(shareT)
		c := newCrew(t)
		c.works("a", a)
		c.works("b", b)
		s.online(shareT, 1)
		pub.publishes("t", 2, 11, 60)
		c.waitFor(1, 60)
		s.inFlight("a", 0)
		s.inFlight("b", 0)
		c.once(1, 60)
		if n := len(c.of("a")); n != 5 {
			t.Errorf("the one that left got %d messages, want the 5 that it had been given", n)
		}
	})
}

// TestSharedAndPlain: a client with a shared and a plain subscription to the same topic
// gets both, each in its order, and each goes on by itself.
func TestSharedAndPlain(t *testing.T) {
	t.Parallel()
	sites(t, Options{Window: 6}, func(t *testing.T, s *site, v wire.Version) {
		p := s.member(v, "both", 0)
		p.subscribe("t", 1)
		p.subscribe(shareT, 1)
		pub := s.clean(v, "pub")
		pub.publishes("t", 1, 1, 3)
		for range 3 {
			p.delivery()
		}
		s.inFlight("both", 6)
		p.cut()
		s.gone("both")
		pub.publishes("t", 1, 4, 40)
		c := newCrew(t)
		c.works("both", s.member(v, "both", 0))
		s.until("deliver two of each", func() bool {
			got := c.total()
			for i := 1; i <= 40; i++ {
				if got[fmt.Sprint(i)] < 2 {
					return false
				}
			}
			return true
		})
		s.inFlight("both", 0)
		for payload, n := range c.total() {
			if n != 2 {
				t.Errorf("message %s came %d times", payload, n)
			}
		}
	})
}

// TestSharedRestart: SIGKILLs in the middle of a load; at QoS 2 each message comes once,
// at QoS 1 at least once.
func TestSharedRestart(t *testing.T) {
	t.Parallel()
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("qos", qos), func(t *testing.T) {
			t.Parallel()
			sites(t, Options{Window: 7, SessionQueue: 16}, func(t *testing.T, s *site, v wire.Version) {
				ids := []string{"a", "b", "c"}
				for _, id := range ids {
					s.member(v, id, 0).subscribe(shareT, 2)
				}
				c := newCrew(t)
				n := 0
				for range 4 {
					var workers []*worker
					for _, id := range ids {
						workers = append(workers, c.works(id, s.member(v, id, 0)))
					}
					pub := s.clean(v, "pub")
					for range 40 {
						n++
						pub.publish("t", fmt.Sprint(n), qos, uint16(n))
					}
					s.kill(workers...)
				}
				for _, id := range ids {
					c.works(id, s.member(v, id, 0))
				}
				c.waitFor(1, n)
				for _, id := range ids {
					s.inFlight(id, 0)
				}
				most := 1
				if qos == 1 {
					most = 5 // what was in flight at a SIGKILL is repeated
				}
				c.times(1, n, 1, most)
			})
		})
	}
}

// TestSharedNotReading: a member whose connection takes no bytes is passed over.
func TestSharedNotReading(t *testing.T) {
	t.Parallel()
	sites(t, Options{OutboxBytes: 16 << 10}, func(t *testing.T, s *site, v wire.Version) {
		deaf := s.member(v, "deaf", 0)
		deaf.subscribe(shareT, 1)
		s.online(shareT, 1)
		cl := s.b.roster.get("deaf")
		cl.input(func(ses *session.Session) { ses.Block(true) })
		fine := s.member(v, "fine", 0)
		fine.subscribe(shareT, 1)
		s.online(shareT, 2)
		s.clean(v, "pub").publishes("t", 1, 1, 20)
		for i := 1; i <= 20; i++ {
			fine.receive(fmt.Sprint(i))
		}
		fine.disconnect()
		s.gone("fine")
		s.clean(v, "pub2").publishes("t", 1, 21, 22)
		deaf.ping()
		cl.drained() // and it goes on as soon as it reads
		deaf.receive("21")
		deaf.receive("22")
	})
}

// TestSharedFilters: what is no shared filter [MQTT-4.8.2-1, MQTT-4.8.2-2], No Local
// [MQTT-3.8.3-4], and what CONNACK says.
func TestSharedFilters(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	p, ack := h.connect(wire.V5, wire.Connect{ClientID: "five", CleanStart: true})
	if ack.SharedUnavailable {
		t.Error("CONNACK says that shared subscriptions are not available")
	}
	bad := []string{"$share", "$share/g/$SYS/#", "$share/g/$share/h/a"}
	var filters []wire.Filter
	for _, f := range bad {
		filters = append(filters, wire.Filter{Topic: f, QoS: 1})
	}
	filters = append(filters, wire.Filter{Topic: "$share/g/+/#", QoS: 1}, wire.Filter{Topic: "$share/g//", QoS: 2})
	p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 1, Filters: filters}))
	codes := expect[*wire.Suback](p).Codes
	for i, f := range filters {
		want := wire.TopicFilterInvalid
		if i >= len(bad) {
			want = wire.ReasonCode(f.QoS)
		}
		if codes[i] != want {
			t.Errorf("%s: %v, want %v", f.Topic, codes[i], want)
		}
	}
	p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 2, Filters: []wire.Filter{{Topic: shareT, NoLocal: true}}}))
	if d := expect[*wire.Disconnect](p); d.Code != wire.ProtocolError {
		t.Errorf("No Local: DISCONNECT %v", d.Code)
	}
	p.closed()
	for _, f := range []string{"$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a", "$share/a+b/c", "$share/g/a#", "$share/g/a/#/b"} {
		for _, v := range versions() {
			p := h.clean(v, "malformed")
			p.write(wire.AppendSubscribe(nil, v, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: f}}}))
			if v == wire.V5 {
				if d := expect[*wire.Disconnect](p); d.Code != wire.MalformedPacket {
					t.Errorf("%s: DISCONNECT %v", f, d.Code)
				}
			}
			p.closed()
		}
	}
}

// TestSharedOptions: the QoS granted to the member [MQTT-4.8.2-3], its subscription
// identifier and Retain As Published hold; nothing retained comes at SUBSCRIBE; a
// second SUBSCRIBE changes them at once.
func TestSharedOptions(t *testing.T) {
	t.Parallel()
	sites(t, Options{}, func(t *testing.T, s *site, v wire.Version) {
		pub := s.clean(v, "pub")
		retained := func(payload string) {
			pub.write(wire.AppendPublish(nil, v, &wire.Publish{Topic: "t", Payload: []byte(payload), QoS: 2, PacketID: 9, Retain: true}))
			pub.ack(wire.PUBREC, 9)
			pub.write(wire.AppendAck(nil, v, wire.PUBREL, 9, wire.Success))
			pub.ack(wire.PUBCOMP, 9)
		}
		retained("0")
		p := s.member(v, "m", 0)
		subscribe := func(id uint32, qos byte, rap bool) {
			f := wire.Filter{Topic: shareT, QoS: qos, RetainAsPublished: rap && v == wire.V5}
			sub := &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{f}}
			if v == wire.V5 {
				sub.SubscriptionID = id
			}
			p.write(wire.AppendSubscribe(nil, v, sub))
			expect[*wire.Suback](p)
			s.online(shareT, 1)
		}
		for i, tt := range []struct {
			qos byte
			rap bool
		}{{1, true}, {0, false}, {2, true}, {2, false}} {
			subscribe(uint32(i+10), tt.qos, tt.rap)
			retained(fmt.Sprint(i + 1))
			m := p.receive(fmt.Sprint(i + 1))
			if m.QoS != tt.qos || m.Retain != (tt.rap && v == wire.V5) {
				t.Errorf("with %+v: %+v", tt, m)
			}
			if v == wire.V5 && (len(m.SubscriptionIDs) != 1 || m.SubscriptionIDs[0] != uint32(i+10)) {
				t.Errorf("with %+v: identifiers %v", tt, m.SubscriptionIDs)
			}
		}
	})
}

// TestSharedRefused: a message that a member refuses goes to nobody else
// [MQTT-4.8.2-6].
func TestSharedRefused(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	a, _ := h.persistent(wire.V5, "a")
	a.subscribe(shareT, 2)
	pub := h.clean(wire.V5, "pub")
	for qos := byte(1); qos <= 2; qos++ {
		pub.publish("t", fmt.Sprint("refused ", qos), qos, 1)
		m := a.delivery()
		kind := wire.PUBACK
		if qos == 2 {
			kind = wire.PUBREC
		}
		a.write(wire.AppendAck(nil, wire.V5, kind, m.PacketID, wire.QuotaExceeded))
	}
	a.ping()
	b, _ := h.persistent(wire.V5, "b")
	b.subscribe(shareT, 2)
	a.cut()
	h.until("let go of a", func() bool { return h.b.roster.get("a") == nil })
	pub.publish("t", "fine", 1, 3)
	b.receive("fine")
	b.ping()
}

// TestSharedTooLarge: what one member cannot take another gets; what none can take is
// passed.
func TestSharedTooLarge(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	small, _ := h.connect(wire.V5, wire.Connect{ClientID: "small", CleanStart: true, MaximumPacketSize: 100})
	small.subscribe(shareT, 1)
	pub := h.clean(wire.V5, "pub")
	large := string(make([]byte, 200))
	pub.publish("t", large, 1, 1)
	pub.publish("t", "1", 1, 2)
	small.receive("1")
	big := h.clean(wire.V5, "big")
	big.subscribe(shareT, 1)
	(&site{house: h, t: t}).online(shareT, 2)
	for range 5 {
		pub.publish("t", large, 1, 3)
		big.receive(large)
	}
	small.ping()
}

// TestSharedLetsGo: with its last member online a group's goroutines end, and its place
// is saved.
func TestSharedLetsGo(t *testing.T) {
	t.Parallel()
	sites(t, Options{}, func(t *testing.T, s *site, v wire.Version) {
		for range 3 {
			p := s.member(v, "m", 0)
			p.subscribe(shareT, 1)
			pub := s.clean(v, "pub")
			pub.publish("t", "1", 1, 1)
			p.receive("1")
			s.inFlight("m", 0)
			p.disconnect()
			s.gone("m")
			s.online(shareT, 0)
			g, err := s.b.store.OpenGroup(t.Context(), shareT)
			if err != nil || len(g.Claimed) > 0 || len(g.Again) > 0 {
				t.Errorf("left behind: %+v, %v", g, err)
			}
		}
		counts, err := s.b.store.Counts(t.Context())
		if err != nil || counts.Shared != 1 {
			t.Errorf("counted %+v, %v", counts, err)
		}
	})
}

// groupless is a store that keeps no groups.
type groupless struct{ *storetest.Memory }

func (groupless) OpenGroup(context.Context, string) (store.Group, error) {
	return store.Group{}, errors.ErrUnsupported
}

// TestSharedUnavailable: on such a store a shared subscription is refused, and CONNACK
// says so; it does not just get nothing.
func TestSharedUnavailable(t *testing.T) {
	t.Parallel()
	h := openHouse(t, groupless{storetest.NewMemory(storetest.Options{})}, Options{})
	p, ack := h.connect(wire.V5, wire.Connect{ClientID: "five", CleanStart: true})
	p.write(wire.AppendSubscribe(nil, wire.V5, &wire.Subscribe{PacketID: 1, Filters: []wire.Filter{{Topic: shareT}, {Topic: "t"}}}))
	if codes := expect[*wire.Suback](p).Codes; codes[0] != wire.SharedSubscriptionsNotSupported || codes[1] != 0 || !ack.SharedUnavailable {
		t.Errorf("SUBACK %v, CONNACK %+v", codes, ack)
	}
}

// TestG1_TwoNodes: two nodes on one store each have members of a group. What both want
// to give goes to one; what a node leaves behind that dies, the other gives.
func TestG1_TwoNodes(t *testing.T) {
	t.Parallel()
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprint("qos", qos), func(t *testing.T) {
			t.Parallel()
			mem := storetest.NewMemory(storetest.Options{Lanes: 2})
			there := mem.Join()
			a := openHouse(t, mem, Options{})
			b := openHouse(t, there, Options{})
			c := newCrew(t)
			p, _ := a.persistent(wire.V5, "a")
			p.subscribe(shareT, 2)
			q, _ := b.persistent(wire.V5, "b")
			q.subscribe(shareT, 2)
			c.works("a", p)
			w := c.works("b", q)
			n := 0
			for range 50 {
				for i, h := range []*house{a, b} {
					pub := h.clean(wire.V5, fmt.Sprint("pub", i))
					n++
					pub.publish("t", fmt.Sprint(n), qos, 1)
					pub.disconnect()
				}
			}
			c.waitFor(1, n)
			c.once(1, n)
			c.ordered("a")
			c.ordered("b")
			most := 1
			if qos == 1 { // what is left behind
				most = 2
				lazy, _ := b.persistent(wire.V5, "lazy")
				lazy.subscribe(shareT, 1)
				(&site{house: b, t: t}).online(shareT, 2)
				pub := a.clean(wire.V5, "pub")
				cl := b.b.roster.get("lazy")
				for held := 0; held == 0; {
					n++
					pub.publish("t", fmt.Sprint(n), 1, 1)
					cl.input(func(s *session.Session) { held = s.InFlight() })
				}
			}
			there.Kill()
			w.cut()
			b.abandon()
			pub := a.clean(wire.V5, "pub")
			for range 20 {
				n++
				pub.publish("t", fmt.Sprint(n), qos, 1)
			}
			c.waitFor(1, n)
			c.times(1, n, 1, most)
		})
	}
}
