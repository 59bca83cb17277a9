package group

import (
	"fmt"
	"slices"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// pub is a message, with what became of it.
type pub struct {
	n           int
	from        string
	qos         uint8
	big         bool
	expires     bool
	matches     bool
	mark        schema.Mark
	incarnation int // of the group, when it was stored; 0: there was none
	claims      []schema.Delivery
	new2        int // received at QoS 2, as new
	n1, n0      int
	sent        bool // at QoS 0: it may be lost
}

// look follows the life of the group in the store.
func (w *world) look() {
	g, err := w.m.OpenGroup(simName)
	switch {
	case err == nil && w.since == nil:
		w.incarnation++
		w.since = &g.After
		w.trace("group %d begins at %v", w.incarnation, g.After)
	case err != nil && w.since != nil:
		w.since = nil
		w.trace("group %d has ended", w.incarnation)
	}
}

// toGive wants a message to be the present group's: nothing from before its beginning
// (G3).
func (w *world) toGive(p *pub, how string) {
	must(w.since != nil && w.since.After(p.mark), "G3: message %d, from before the group's beginning, is %s", p.n, how)
	must(p.matches, "message %d does not match and is %s", p.n, how)
}

// claims notes a record.
func (w *world) claims(d *schema.Delivery) {
	p := w.pubs[d.MessageID]
	w.toGive(p, "claimed")
	for _, c := range p.claims {
		must(c.QoS == 1, "[MQTT-4.8.2-4] message %d is at QoS 2 with %s, and claimed by %s", p.n, c.ClientID, d.ClientID)
	}
	p.claims = append(p.claims, *d)
}

// sends wants each PUBLISH to have its record (P3).
func (w *world) sends(c *conn, a *session.Action) {
	p := w.pubs[a.Message.ID]
	must(slices.ContainsFunc(p.claims, func(d schema.Delivery) bool {
		return d.SID == c.owner.SID && d.ClientID == c.d.id && d.PacketID == a.PacketID && d.QoS == a.QoS
	}), "message %d leaves for %s without its record", p.n, c.d.id)
}

// sent notes what goes at QoS 0: no record, so nobody may have it yet, unless it came
// back.
func (w *world) sent(c *conn, m *schema.Message) {
	p := w.pubs[m.ID]
	w.toGive(p, "sent at QoS 0 to "+c.d.id)
	w.trace("message %d is sent at QoS 0 to %s", p.n, c.d.id)
	p.sent = true
	g, _ := w.m.OpenGroup(simName)
	back := slices.ContainsFunc(g.Again, func(r store.Ref) bool { return r.ID == m.ID })
	must(len(p.claims) == 0 || back, "message %d, claimed before, is sent at QoS 0 to %s", p.n, c.d.id)
}

// received is what the clients see.
func (w *world) received(c *conn, pk packet) {
	p := w.pubs[pk.m.ID]
	w.trace("%s has message %d at QoS %d", c.d.id, p.n, pk.qos)
	switch pk.qos {
	case 0:
		p.n0++
		must(p.qos > 0 || p.n0 == 1, "message %d, published at QoS 0, is received twice", p.n)
	case 1:
		p.n1++
	default:
		if old, again := c.d.got[pk.id]; again {
			must(old == pk.m.ID, "packet id %d of %s is used again before PUBCOMP", pk.id, c.d.id)
			return
		}
		p.new2++
		must(p.new2 == 1, "[MQTT-4.8.2-4] message %d is received %d times at QoS 2", p.n, p.new2)
	}
	// In order per publisher, as far as one member lives.
	if len(w.clients) > 1 || p.new2+p.n1+p.n0 > 1 || p.from != "p" {
		return
	}
	key := fmt.Sprint(p.from, p.qos, pk.qos)
	must(c.d.last[key] < p.n, "P4: message %d of %s comes after %d", p.n, p.from, c.d.last[key])
	c.d.last[key] = p.n
}

// checkEnd wants all that was due to be delivered, and the group's place to have
// passed it.
func (w *world) checkEnd() {
	g, err := w.m.OpenGroup(simName)
	if err != nil {
		return
	}
	must(len(g.Again) == 0, "at the end %d messages stand in Again", len(g.Again))
	large := slices.Contains(w.drops, session.DropTooLarge)
	for _, p := range w.order {
		if !p.matches || p.incarnation != w.incarnation {
			continue
		}
		must(!g.After.After(p.mark), "at the end the group's place %v has not passed message %d at %v", g.After, p.n, p.mark)
		if p.qos == 0 || p.expires || p.big && large || p.sent {
			continue
		}
		must(len(p.claims) > 0, "message %d was given to nobody", p.n)
		last := p.claims[len(p.claims)-1]
		o, _, ok := w.m.Owner(last.ClientID)
		ended := !ok || o.SID != last.SID
		if last.QoS == 2 {
			must(p.new2 == 1 || ended, "message %d, at QoS 2 with %s, was not received", p.n, last.ClientID)
		} else {
			must(p.n1 > 0, "message %d, at QoS 1 with %s, was not received", p.n, last.ClientID)
		}
	}
}
