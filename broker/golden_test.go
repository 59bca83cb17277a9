package broker

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rewindmq/broker/session"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

var rewrite = flag.Bool("rewrite", false, "write the golden traces anew")

// TestGolden runs the scripts of testdata/golden: who sends which packet, and what
// the broker answers, packet by packet. A line that begins with "<" is what was
// read; -rewrite writes these lines anew, so that a reviewer reads protocol.
//
// Commands:
//
//	open NAME 3.1.1|5 CLIENTID [clean] [expiry=S] [rm=N] [alias=N] [max=N]
//		[will=TOPIC,PAYLOAD,QOS] [will-delay=S] [will-retain]
//	NAME PUBLISH TOPIC PAYLOAD [qos=N] [id=N] [dup] [retain] [expiry=S] [alias=N]
//		with - for an empty topic or payload
//	NAME SUBSCRIBE ID FILTER [qos=N] [nl] [rap] [rh=N] [sid=N]
//	NAME UNSUBSCRIBE ID FILTER
//	NAME PUBACK|PUBREC|PUBREL|PUBCOMP ID [CODE]
//	NAME PINGREQ | NAME DISCONNECT [CODE] [expiry=S]
//	NAME read N        the next N packets, or "end" for the end of the connection
//	NAME cut           the connection is reset, and the broker has noticed
//	NAME saved         the session's cursor is stored
//	restart            the broker is killed, and starts again
//	pass S             the clocks of broker and store, which stand still else, go on
//	server rm=N | server window=N
//	                   the broker is a new one with that Receive Maximum or window
func TestGolden(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := runGolden(t, string(want))
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(want, []byte(got)) {
				t.Errorf("%s differs; -rewrite writes it anew. Now:\n%s", path, got)
			}
		})
	}
}

// golden is a script while it runs.
type golden struct {
	t     *testing.T
	h     *house
	clock *clock
	peers map[string]*peer
	ids   map[string]string // of clients, by name
	out   strings.Builder
}

func runGolden(t *testing.T, script string) string {
	g := &golden{t: t, clock: &clock{stopped: time.Now()}, peers: map[string]*peer{}, ids: map[string]string{}}
	g.serve(storetest.NewMemory(storetest.Options{Lanes: 2, Now: g.clock.now}), Options{})
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "<") {
			continue
		}
		g.out.WriteString(line + "\n")
		if words := strings.Fields(line); len(words) > 0 && words[0][0] != '#' {
			g.command(words)
		}
	}
	for name, p := range g.peers {
		p.write(wire.AppendPingreq(nil))
		if pk := p.read(); fmt.Sprintf("%T", pk) != "*wire.Pingresp" {
			t.Errorf("%s: left over at the end: %s", name, show(pk))
		}
	}
	return g.out.String()
}

func (g *golden) command(words []string) {
	switch {
	case words[0] == "open":
		g.open(words[1], words[2], words[3], options(words[4:]))
	case words[0] == "restart":
		g.h.mem.Kill()
		g.restart()
	case words[0] == "pass":
		g.settled()
		g.clock.advance(time.Duration(number(words[1])) * time.Second)
	case words[0] == "server":
		o := options(words[1:])
		g.h.stop()
		g.serve(storetest.NewMemory(storetest.Options{Lanes: 2, Now: g.clock.now}), Options{ReceiveMaximum: number(o["rm"]), Window: number(o["window"])})
	case len(words) < 2 || g.peers[words[0]] == nil:
		g.t.Fatalf("what is %q?", strings.Join(words, " "))
	case words[1] == "read":
		g.read(words[0], words[2])
	case words[1] == "saved":
		g.saved(g.ids[words[0]])
	case words[1] == "cut":
		g.peers[words[0]].cut()
		delete(g.peers, words[0])
		g.until("end", func() bool { return g.h.b.roster.get(g.ids[words[0]]) == nil })
	default:
		g.send(g.peers[words[0]], words[1], words[2:])
	}
}

// settled waits until the sessions whose connections have ended are let go of.
func (g *golden) settled() {
	open := map[string]bool{}
	for name := range g.peers {
		open[g.ids[name]] = true
	}
	for _, id := range g.ids {
		if !open[id] {
			g.until("let go of "+id, func() bool { return g.h.b.roster.get(id) == nil })
		}
	}
}

// saved waits until what the client was sent is acknowledged and stored.
func (g *golden) saved(id string) {
	g.until("save "+id, func() (done bool) {
		g.h.b.roster.get(id).input(func(s *session.Session) {
			if done = s.InFlight() == 0 && s.Saved(); !done {
				s.Save()
			}
		})
		return done
	})
}

// until waits for a condition.
func (g *golden) until(what string, cond func() bool) {
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			g.t.Fatalf("does not %s", what)
		}
		<-tick.C
	}
}

func (g *golden) restart() {
	for _, p := range g.peers {
		p.cut()
	}
	g.peers = map[string]*peer{}
	mem := g.h.mem
	g.h.abandon()
	g.serve(mem.Reopen(), Options{})
}

func (g *golden) serve(s store.Store, o Options) {
	o.Now = g.clock.now
	g.h = openHouse(g.t, s, o)
}

func options(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
	}
	return out
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func has(o map[string]string, k string) bool {
	_, ok := o[k]
	return ok
}

func (g *golden) open(name, version, id string, o map[string]string) {
	v := wire.V311
	if version == "5" {
		v = wire.V5
	}
	c := wire.Connect{
		Version: v, ClientID: id, CleanStart: has(o, "clean"), RequestProblemInfo: true,
		HasSessionExpiry: has(o, "expiry"), SessionExpiry: uint32(number(o["expiry"])), ReceiveMaximum: uint16(number(o["rm"])),
		TopicAliasMaximum: uint16(number(o["alias"])), MaximumPacketSize: uint32(number(o["max"])),
	}
	if w := strings.Split(o["will"], ","); len(w) == 3 {
		c.Will = &wire.Will{
			Topic: w[0], Payload: []byte(w[1]), QoS: byte(number(w[2])), Delay: uint32(number(o["will-delay"])), Retain: has(o, "will-retain"),
		}
	}
	p := g.h.dial(v)
	p.write(wire.AppendConnect(nil, &c))
	g.peers[name], g.ids[name] = p, id
	g.read(name, "1")
}

func (g *golden) send(p *peer, what string, words []string) {
	acks := map[string]wire.PacketType{"PUBACK": wire.PUBACK, "PUBREC": wire.PUBREC, "PUBREL": wire.PUBREL, "PUBCOMP": wire.PUBCOMP}
	switch what {
	case "PUBLISH":
		o := options(words[2:])
		p.write(wire.AppendPublish(nil, p.v, &wire.Publish{
			Topic: strings.TrimPrefix(words[0], "-"), Payload: []byte(strings.TrimPrefix(words[1], "-")), TopicAlias: uint16(number(o["alias"])), QoS: byte(number(o["qos"])), PacketID: uint16(number(o["id"])),
			Dup: has(o, "dup"), Retain: has(o, "retain"), HasExpiry: has(o, "expiry"), MessageExpiry: uint32(number(o["expiry"])),
		}))
	case "SUBSCRIBE":
		o := options(words[2:])
		p.write(wire.AppendSubscribe(nil, p.v, &wire.Subscribe{PacketID: uint16(number(words[0])), SubscriptionID: uint32(number(o["sid"])), Filters: []wire.Filter{{
			Topic: words[1], QoS: byte(number(o["qos"])), NoLocal: has(o, "nl"), RetainAsPublished: has(o, "rap"), RetainHandling: byte(number(o["rh"])),
		}}}))
	case "UNSUBSCRIBE":
		p.write(wire.AppendUnsubscribe(nil, p.v, &wire.Unsubscribe{PacketID: uint16(number(words[0])), Filters: words[1:]}))
	case "PINGREQ":
		p.write(wire.AppendPingreq(nil))
	case "DISCONNECT":
		o := options(words)
		d := &wire.Disconnect{HasSessionExpiry: has(o, "expiry"), SessionExpiry: uint32(number(o["expiry"]))}
		if len(words) > 0 {
			d.Code = wire.ReasonCode(number(words[0]))
		}
		p.write(wire.AppendClientDisconnect(nil, p.v, d))
	default:
		if acks[what] == 0 {
			g.t.Fatalf("what is %s?", what)
		}
		code := wire.Success
		if len(words) > 1 {
			code = wire.ReasonCode(number(words[1]))
		}
		p.write(wire.AppendAck(nil, p.v, acks[what], uint16(number(words[0])), code))
	}
}

func (g *golden) read(name, n string) {
	p := g.peers[name]
	if n == "end" {
		_ = p.nc.SetReadDeadline(time.Now().Add(patience))
		_, err := p.r.ReadPacket()
		if !errors.Is(err, io.EOF) {
			g.t.Errorf("%s: %v, want the end", name, err)
		}
		g.out.WriteString("< end of the connection\n")
		_ = p.nc.Close()
		delete(g.peers, name)
		return
	}
	for range number(n) {
		g.out.WriteString("< " + show(p.read()) + "\n")
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// show writes a packet as people read it. What the server tells of its limits is
// left out.
func show(pk wire.Packet) string {
	switch p := pk.(type) {
	case *wire.Connack:
		return fmt.Sprintf("CONNACK %v present=%v", p.Code, p.SessionPresent)
	case *wire.Publish:
		s := fmt.Sprintf("PUBLISH %s %s qos=%d", orDash(p.Topic), orDash(string(p.Payload)), p.QoS)
		if p.QoS > 0 {
			s += fmt.Sprintf(" id=%d", p.PacketID)
		}
		if p.Dup {
			s += " DUP"
		}
		if p.Retain {
			s += " RETAIN"
		}
		if p.HasExpiry {
			s += fmt.Sprintf(" expiry=%d", p.MessageExpiry)
		}
		if p.TopicAlias > 0 {
			s += fmt.Sprintf(" alias=%d", p.TopicAlias)
		}
		if len(p.SubscriptionIDs) > 0 {
			s += fmt.Sprintf(" sid=%v", p.SubscriptionIDs)
		}
		return s
	case *wire.Ack:
		s := fmt.Sprintf("%v %d", p.Type, p.ID)
		if p.Code != wire.Success {
			s += " " + p.Code.String()
		}
		return s
	case *wire.Suback:
		return fmt.Sprintf("SUBACK %d %v", p.PacketID, p.Codes)
	case *wire.Unsuback:
		return fmt.Sprintf("UNSUBACK %d %v", p.PacketID, p.Codes)
	case *wire.Disconnect:
		return fmt.Sprintf("DISCONNECT %v", p.Code)
	case *wire.Pingresp:
		return "PINGRESP"
	}
	return fmt.Sprintf("%T", pk)
}
