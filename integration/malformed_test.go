package integration

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// witness is a persistent session with a message waiting, a retained message, and
// half a QoS 2 handshake: what bad input must not touch.
type witness struct {
	b   *broker
	sub session
	dev session
}

func newWitness(b *broker) *witness {
	w := &witness{b: b, sub: persistent(v5, "witness"), dev: persistent(v311, "witness-dev")}
	c := b.open(w.sub)
	c.subscribe(want{"w/#", 2}, want{"bad/#", 2})
	c.disconnect()
	b.publishTexts("w/t", 1, "waiting")
	dev := b.open(w.dev)
	dev.publish(message{topic: "kept", qos: 1, retain: true, payload: []byte("kept")})
	dev.send(message{topic: "w/t", qos: 2, payload: []byte("half")}.packet(v311, 9, false))
	dev.awaitID(kindPubrec, 9)
	dev.cut()
	return w
}

// check proves that the same process still has all of it, and took nothing on
// bad/#.
func (w *witness) check() {
	w.b.t.Helper()
	select {
	case <-w.b.proc.ended:
		w.b.t.Fatal("the broker has ended")
	default:
	}
	dev := w.b.open(w.dev).expectPresent(true)
	dev.ack(kindPubrel, 9)
	dev.awaitID(kindPubcomp, 9)
	w.b.publishTexts("bad/end", 2, "end")
	c := w.b.open(w.sub).expectPresent(true)
	for _, text := range []string{"waiting", "half", "end"} {
		c.settle(c.takePayload(text))
	}
	fresh := w.b.open(transient(v5, "witness-fresh"))
	fresh.subscribe(want{"kept", 1})
	fresh.settle(fresh.takePayload("kept"))
}

// behind is a valid PUBLISH at QoS 1 to bad/t that follows each fault in the same
// write: it must not be processed.
func behind(version byte) []byte {
	return message{topic: "bad/t", qos: 1, payload: []byte("behind a fault")}.packet(version, 77, false)
}

// What is not MQTT closes the connection, and nothing else
// [MQTT-4.13.1-1, 4.8.0-1].
func TestMalformed(t *testing.T) {
	before := map[string]string{ // in place of CONNECT
		"PINGREQ first":           "c000",
		"PUBLISH first":           "320700016100017878",
		"SUBSCRIBE first":         "8206000100016101",
		"packet type 0":           "0000",
		"AUTH first":              "f000",
		"HTTP":                    "474554202f20485454502f312e310d0a0d0a",
		"TLS":                     "1603010200010001fc0303",
		"five length bytes":       "10ffffffffff01",
		"CONNECT with flags":      "111000044d5154540402003c0004646576 31",
		"no protocol name":        "100c 0000 0402003c0004 64657631",
		"protocol name MQTX":      "1010 00044d515458 0402003c0004 64657631",
		"protocol level 9":        "1010 00044d515454 0902003c0004 64657631",
		"reserved connect flag":   "1010 00044d515454 0403003c0004 64657631",
		"will QoS without will":   "1010 00044d515454 040a003c0004 64657631",
		"will QoS 3":              "1018 00044d515454 041e003c0004 64657631 000162 0002 7878 00",
		"password without user":   "1013 00044d515454 0442003c0004 64657631 000170",
		"client id cut off":       "100e 00044d515454 0402003c0008 6465",
		"client id not UTF-8":     "100e 00044d515454 0402003c0002 c328",
		"client id with NUL":      "100e 00044d515454 0402003c0002 6100",
		"client id a surrogate":   "100f 00044d515454 0402003c0003 eda080",
		"trailing byte":           "1011 00044d515454 0402003c0004 64657631 00",
		"v5 property twice":       "101b 00044d515454 0502003c 0a 1100000001 1100000002 0004 64657631",
		"v5 Receive Maximum 0":    "1014 00044d515454 0502003c 03 210000 0004 64657631",
		"v5 unknown property":     "1013 00044d515454 0502003c 02 7f00 0004 64657631",
		"v5 property cut off":     "1013 00044d515454 0502003c 02 1100 0004 64657631",
		"v5 property length lies": "1012 00044d515454 0502003c 7f 0004 64657631",
	}
	after := map[string]map[byte]string{ // behind CONNECT, by version
		"second CONNECT":         {v311: "101000044d5154540402003c000464657631", v5: "101100044d5154540502003c00000464657631"},
		"packet type 0":          {v311: "0000", v5: "0000"},
		"CONNACK from a client":  {v311: "20020000", v5: "2003000000"},
		"SUBACK from a client":   {v311: "9003000100", v5: "900400010000"},
		"PINGRESP from a client": {v311: "d000", v5: "d000"},
		"PUBREL flags":           {v311: "60020001", v5: "60020001"},
		"PUBACK flags":           {v311: "41020001", v5: "41020001"},
		"PINGREQ with a body":    {v311: "c00100", v5: "c00100"},
		"five length bytes":      {v311: "30ffffffffff01", v5: "30ffffffffff01"},
		"QoS 3":                  {v311: "36 06 0001 61 0001 78", v5: "36 07 0001 61 0001 00 78"},
		"QoS 0 with DUP":         {v311: "38 04 0001 61 78", v5: "38 05 0001 61 00 78"},
		"packet id 0":            {v311: "32 06 0001 61 0000 78", v5: "32 07 0001 61 0000 00 78"},
		"topic with +":           {v311: "32 06 0001 2b 0001 78", v5: "32 07 0001 2b 0001 00 78"},
		"topic with #":           {v311: "32 07 0002 6123 0001 78", v5: "32 08 0002 6123 0001 00 78"},
		"empty topic":            {v311: "32 05 0000 0001 78", v5: "32 06 0000 0001 00 78"},
		"topic not UTF-8":        {v311: "32 07 0002 c328 0001 78", v5: "32 08 0002 c328 0001 00 78"},
		"topic with NUL":         {v311: "32 07 0002 6100 0001 78", v5: "32 08 0002 6100 0001 00 78"},
		"topic a surrogate":      {v311: "32 08 0003 eda080 0001 78", v5: "32 09 0003 eda080 0001 00 78"},
		"topic length lies":      {v311: "32 06 00ff 61 0001 78", v5: "32 07 00ff 61 0001 00 78"},
		"no packet id":           {v311: "32 03 0001 61", v5: "32 03 0001 61"},
		"SUBSCRIBE flags":        {v311: "80 06 0001 0001 61 00", v5: "80 07 0001 00 0001 61 00"},
		"SUBSCRIBE for nothing":  {v311: "82 02 0001", v5: "82 03 0001 00"},
		"SUBSCRIBE cut off":      {v311: "82 05 0001 0001 61", v5: "82 06 0001 00 0001 61"},
		"SUBSCRIBE QoS 3":        {v311: "82 06 0001 0001 61 03", v5: "82 07 0001 00 0001 61 03"},
		"SUBSCRIBE id 0":         {v311: "82 06 0000 0001 61 00", v5: "82 07 0000 00 0001 61 00"},
		"filter not UTF-8":       {v311: "82 07 0001 0002 c328 00", v5: "82 08 0001 00 0002 c328 00"},
		"UNSUBSCRIBE flags":      {v311: "a0 05 0001 0001 61", v5: "a0 06 0001 00 0001 61"},
		"UNSUBSCRIBE nothing":    {v311: "a2 02 0001", v5: "a2 03 0001 00"},
		"DISCONNECT flags":       {v311: "e100", v5: "e100"},
		"PUBACK too short":       {v311: "4001 00", v5: "4001 00"},
		"AUTH":                   {v311: "f000", v5: "f0021800"},
		"reserved options":       {v5: "82 07 0001 00 0001 61 c0"},
		"retain handling 3":      {v5: "82 07 0001 00 0001 61 30"},
		"payload format 2":       {v5: "32 09 0001 61 0001 02 0102 78"},
		"expiry twice":           {v5: "32 11 0001 61 0001 0a 0200000001 0200000002 78"},
		"property cut off":       {v5: "32 0a 0001 61 0001 03 020000 78"},
		"alias 0":                {v5: "32 0a 0001 61 0001 03 230000 78"},
		"identifier in PUBLISH":  {v5: "32 09 0001 61 0001 02 0b01 78"},
		"identifier 0":           {v5: "82 09 0001 02 0b00 0001 61 00"},
		"property of another":    {v5: "32 0a 0001 61 0001 03 210001 78"},
	}
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		w := newWitness(b)
		for name, packet := range before {
			c := b.dial(v311, name)
			c.send(append(fromHex(packet), behind(v311)...))
			for _, p := range c.closed() {
				if p.kind != kindConnack && p.kind != kindDisconnect || p.code == 0 {
					t.Errorf("%s: answered with %v", name, p)
				}
			}
		}
		for name, packets := range after {
			for version, packet := range packets {
				c := b.open(transient(version, fmt.Sprintf("bad-%s", freeName())))
				c.send(append(fromHex(packet), behind(version)...))
				for _, p := range c.closed() {
					if version == v311 || p.kind != kindDisconnect || p.code < 0x80 {
						t.Errorf("v%d, %s: answered with %v", version, name, p)
					}
				}
			}
		}
		w.check()
		b.expectLog("bad/t")
	})
}

// A filter that breaks the rules of wildcards makes its packet malformed, wherever it
// stands in it; nothing of the packet is carried out [MQTT-4.7.1-1, 4.7.1-2].
func TestInvalidFilters(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		for _, version := range []byte{v311, v5} {
			for _, filter := range []string{"", "a/#/b", "a#", "#a", "a/b+", "+a/b", "a/+b/c", "##", "++"} {
				dev := persistent(version, "bad-"+freeName())
				c := b.open(dev)
				c.send(subscribePacket(version, 5, nil, want{"bad/ok", 1}, want{filter, 1}))
				for _, p := range c.closed() {
					if version == v311 || p.kind != kindDisconnect || p.code != 0x81 {
						t.Errorf("v%d, filter %q: got %v", version, filter, p)
					}
				}
				b.publishTexts("bad/ok", 1, "to nobody")
				c = b.open(dev).expectPresent(true)
				c.ping()
				if len(c.inbox) > 0 {
					t.Errorf("v%d, filter %q: got %v", version, filter, c.inbox)
				}
				c.cut()
			}
		}
	})
}

// Half a packet, then silence: closed in time, nothing stored, nobody else held
// up [MQTT-3.1.2-22; 3.1.1: 3.1.2-24].
func TestHalfAPacket(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s, launch{env: []string{"REWINDMQ_CONNECT_TIMEOUT=1s"}})
		w := newWitness(b)
		begin := time.Now()
		var all []*client
		for _, half := range []string{"", "10", "1010", "101000044d5154", "101000044d5154540402003c00046465"} {
			c := b.dial(v311, fmt.Sprintf("half a CONNECT %q", half))
			c.sendHex(half)
			all = append(all, c)
		}
		whole := message{topic: "bad/t", qos: 1, payload: bytes.Repeat([]byte("x"), 1000)}
		for _, version := range []byte{v311, v5} {
			dev := transient(version, fmt.Sprintf("half-%d", version))
			dev.keepAlive = 1
			for _, n := range []int{1, 3, 8, 500, 1005} {
				dev.clientID += "x"
				c := b.open(dev)
				c.send(whole.packet(version, 1, false)[:n])
				all = append(all, c)
			}
		}
		for _, c := range all {
			c.refused()
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("closed after %v, want about 1.5 s", took)
		}
		w.check()
		b.expectLog("bad/t")
	})
}

// Payloads of every size around the limits, at each QoS, arrive byte for byte,
// live, and after a SIGKILL from the log; one byte more than the largest packet
// is refused and closes only its own connection [MQTT-3.1.2-24, 3.2.2-15].
func TestPayloadSizes(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		const limit = 4 << 20
		b := start(t, s, launch{env: []string{"REWINDMQ_LIMITS__PACKET_SIZE=4MiB"}})
		w := newWitness(b)
		away := b.open(persistent(v5, "away"))
		away.subscribe(want{"size/t", 2})
		away.disconnect()
		live := b.open(transient(v311, "live"))
		live.subscribe(want{"size/t", 2})
		const overhead = 2 + len("size/t") + 2 // in the remaining length, v3.1.1
		var sizes []int
		for _, edge := range []int{0, 127, 16383, 2097151, 4096, 512, limit - 5} {
			for d := -1; d <= 1; d++ {
				// The payload itself, and the remaining length, on the edge.
				for _, n := range []int{edge + d, edge + d - overhead} {
					if n >= 0 && 5+overhead+n <= limit {
						sizes = append(sizes, n)
					}
				}
			}
		}
		payload := func(i int) []byte {
			b := bytes.Repeat([]byte{byte(i), 0, 0xff, '\n', byte(i >> 8)}, sizes[i]/5+1)
			return b[:sizes[i]]
		}
		pub := b.open(transient(v311, "pub"))
		for i := range sizes {
			pub.publish(message{topic: "size/t", qos: byte(1 + i%2), payload: payload(i)})
			if p := live.settle(live.take()); !bytes.Equal(p.payload, payload(i)) {
				t.Errorf("live: %d bytes differ from the %d sent", len(p.payload), sizes[i])
			}
		}
		for _, version := range []byte{v311, v5} {
			c := b.open(transient(version, "too-large"))
			m := message{topic: "bad/t", qos: 1}
			m.payload = bytes.Repeat([]byte("x"), limit+1-len(m.packet(version, 1, false))-3) // three more length bytes
			packet := m.packet(version, 1, false)
			if len(packet) != limit+1 {
				t.Fatalf("the packet has %d bytes", len(packet))
			}
			_ = c.write(packet) // may be cut off
			for _, p := range c.closed() {
				if version == v311 || p.kind != kindDisconnect || p.code != 0x95 {
					t.Errorf("v%d: got %v, want DISCONNECT 0x95", version, p)
				}
			}
		}
		b.crash()
		away = b.open(persistent(v5, "away")).expectPresent(true)
		for i := range sizes {
			if p := away.settle(away.take()); !bytes.Equal(p.payload, payload(i)) {
				t.Errorf("replayed: %d bytes differ from the %d sent", len(p.payload), sizes[i])
			}
		}
		// v5 clients are told the limit.
		if p, ok := away.connack.prop(propMaximumPacket); !ok || p.num != limit {
			t.Errorf("CONNACK says Maximum Packet Size %d, want %d", p.num, limit)
		}
		w.check()
		b.expectLog("bad/t")
		if testing.Verbose() {
			t.Logf("sizes: %s", strings.Trim(fmt.Sprint(sizes), "[]"))
		}
	})
}
