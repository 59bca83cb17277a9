package broker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"rewindmq/wire"
)

// TestPublisherResumes: a QoS 1 and 2 publisher that is cut again and again, and
// sends again what is not settled, gets the acknowledgements that are due, in
// order, and nothing else; each message is in the log once.
func TestPublisherResumes(t *testing.T) {
	t.Parallel()
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			h := memoryHouse(t, Options{})
			sub := h.clean(v, "sub")
			sub.subscribe("p/#", 2)
			rng := rand.New(rand.NewPCG(1, 2))
			type out struct {
				n        int
				id       uint16
				qos      byte
				released bool
			}
			var flight []*out
			n, id := 0, uint16(0)
			send := func(p *peer, o *out, dup bool) {
				if o.released {
					p.write(wire.AppendAck(nil, v, wire.PUBREL, o.id, wire.Success))
					return
				}
				p.write(wire.AppendPublish(nil, v, &wire.Publish{
					Topic: fmt.Sprintf("p/%d", o.qos), Payload: []byte(fmt.Sprint(o.n)), QoS: o.qos, PacketID: o.id, Dup: dup,
				}))
			}
			for round := range 40 {
				p, present := h.persistent(v, "pub")
				if present != (round > 0) {
					t.Fatalf("round %d: session present %v", round, present)
				}
				for _, o := range flight {
					send(p, o, true)
				}
				for range rng.IntN(15) {
					for id++; id == 0; id++ {
					}
					n++
					o := &out{n: n, id: id, qos: byte(1 + rng.IntN(2))}
					flight = append(flight, o)
					send(p, o, false)
				}
				last := round == 39
				for k := rng.IntN(20); len(flight) > 0 && (last || k > 0); k-- {
					a := expect[*wire.Ack](p)
					i := 0
					for i < len(flight) && flight[i].id != a.ID {
						i++
					}
					if i == len(flight) || a.Code != wire.Success { // also to a PUBREL that comes again
						t.Fatalf("round %d: got %v %d code %v, in flight %v", round, a.Type, a.ID, a.Code, len(flight))
					}
					switch o := flight[i]; {
					case a.Type == wire.PUBACK && o.qos == 1, a.Type == wire.PUBCOMP && o.released:
						flight = append(flight[:i], flight[i+1:]...)
					case a.Type == wire.PUBREC && o.qos == 2:
						o.released = true
						send(p, o, false)
					default:
						t.Fatalf("round %d: got %v for %+v", round, a.Type, *o)
					}
				}
				if !last {
					p.cut()
				}
			}
			seen := map[string]bool{}
			deadline := time.Now().Add(patience)
			for len(seen) < n && time.Now().Before(deadline) {
				m := sub.delivery()
				if m.QoS == 1 {
					sub.write(wire.AppendAck(nil, v, wire.PUBACK, m.PacketID, wire.Success))
				} else {
					sub.write(wire.AppendAck(nil, v, wire.PUBREC, m.PacketID, wire.Success))
					sub.ack(wire.PUBREL, m.PacketID)
					sub.write(wire.AppendAck(nil, v, wire.PUBCOMP, m.PacketID, wire.Success))
				}
				key := fmt.Sprint(m.Topic, string(m.Payload))
				if m.QoS == 2 && seen[key] {
					t.Errorf("QoS 2 %s came twice", key)
				}
				seen[key] = true
			}
			if len(seen) != n {
				t.Errorf("%d messages of %d", len(seen), n)
			}
		})
	}
}
