package storetest

import (
	"errors"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

func historyChecks() []item {
	return []item{
		{"History/Message", 0, historyMessage},
		{"History/Client", 0, historyClient},
		{"History/Pages", 0, historyPages},
		{"History/State", 0, historyState},
		{"History/Reopen", needsReopen, historyReopen},
	}
}

// delivered walks over all pages of a limit.
func (c *check) delivered(of history.Query, limit int) []history.Delivery {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	var all []history.Delivery
	after := ""
	for range 10_000 {
		list, next, err := c.s.ListDeliveries(ctx, of, after, limit)
		c.must(err, "ListDeliveries(%+v, %q, %d)", of, after, limit)
		if limit > 0 && len(list) > limit || len(list) > history.MaxPage {
			c.Fatalf("a page of %d deliveries, asked for %d", len(list), limit)
		}
		all = append(all, list...)
		if next == "" {
			return all
		}
		after = next
	}
	c.Fatalf("ListDeliveries(%+v) has no end", of)
	return nil
}

// wantDelivered compares what is told with records, in whatever order of sessions.
func (c *check) wantDelivered(what string, got []history.Delivery, want ...schema.Delivery) {
	c.Helper()
	last := map[schema.Owner]uint64{}
	for _, g := range got {
		o := schema.Owner{ClientID: g.ClientID, SID: g.SID}
		if g.Seq <= last[o] {
			c.Errorf("%s: seq %d of %+v comes behind %d", what, g.Seq, o, last[o])
		}
		last[o] = g.Seq
		i := slices.IndexFunc(want, func(w schema.Delivery) bool { return w.ID == g.ID })
		if i < 0 {
			c.Errorf("%s: %+v is told, or twice", what, g)
			continue
		}
		w := want[i]
		w.Received, g.Received = false, false // State tells it
		if g.Created = g.Created.UTC(); g.Delivery != w {
			c.Errorf("%s: %+v, want %+v", what, g.Delivery, w)
		}
		want = slices.Delete(slices.Clone(want), i, i+1)
	}
	for _, w := range want {
		c.Errorf("%s: the delivery of %v to %s is not told", what, w.MessageID, w.ClientID)
	}
}

// Who was sent a message: each client, each time.
func historyMessage(c *check) {
	a, b, other := c.claim("a").Owner, c.claim("b").Owner, c.claim("c").Owner
	m := c.newID()
	if got := c.delivered(history.Query{MessageID: m}, 0); len(got) > 0 {
		c.Errorf("of a message that is nobody's: %+v", got)
	}
	of := func(o schema.Owner, seq uint64, pid uint16) schema.Delivery {
		d := c.delivery(o, seq, pid, 1, 7)
		d.MessageID = m
		return d
	}
	again := of(b, 2, 2)
	again.Retained = c.newID()
	all := []schema.Delivery{of(a, 1, 1), of(b, 1, 1), again}
	c.record(append(slices.Clone(all), c.delivery(a, 2, 2, 1, 8), c.delivery(other, 1, 1, 1, 8))...)
	c.wantDelivered("the message", c.delivered(history.Query{MessageID: m}, 0), all...)
	c.wantDelivered("the message to b", c.delivered(history.Query{MessageID: m, ClientID: "b"}, 0), all[1:]...)
	c.wantDelivered("the message to c", c.delivered(history.Query{MessageID: m, ClientID: "c"}, 0))
}

// What a client was sent, over its sessions; a fence is no delivery.
func historyClient(c *check) {
	if got := c.delivered(history.Query{ClientID: "nobody"}, 0); len(got) > 0 {
		c.Errorf("to nobody: %+v", got)
	}
	first := c.claim("dev").Owner
	near, nearer := c.claim("de").Owner, c.claim("dev1").Owner
	all := []schema.Delivery{c.delivery(first, 1, 1, 1, 1), c.delivery(first, 2, 2, 0, 2)}
	all[1].Group, all[1].PacketID = "", 0
	all[1].QoS, all[1].Dropped = 1, true
	c.record(all...)
	c.record(c.delivery(near, 1, 1, 1, 1), c.delivery(nearer, 1, 1, 1, 1))
	back := c.claim("dev") // without a release: a fence
	d := c.delivery(back.Owner, back.Cursor.Seq+1, 3, 2, 3)
	c.record(d)
	all = append(all, d)
	c.release(back.Owner)
	fresh := c.ask(store.Claim{ClientID: "dev", CleanStart: true, Expiry: forever, At: c.head()})
	d = c.delivery(fresh.Owner, 1, 1, 1, 4)
	c.record(d)
	c.wantDelivered("the client", c.delivered(history.Query{ClientID: "dev"}, 0), append(all, d)...)
}

// Every delivery is met once, whatever the pages.
func historyPages(c *check) {
	m := c.newID()
	var of, to []schema.Delivery
	for i, id := range odd() {
		o := c.claim(id).Owner
		for seq := range uint64(3) {
			d := c.delivery(o, seq+1, uint16(seq+1), 1, seq+1)
			if seq < 2 {
				d.MessageID = m
				of = append(of, d)
			}
			if i == 0 {
				to = append(to, d)
			}
			c.record(d)
		}
	}
	for _, limit := range []int{1, 2, 5, len(of), 0, history.MaxPage + 1} {
		c.wantDelivered("by pages of the message", c.delivered(history.Query{MessageID: m}, limit), of...)
		c.wantDelivered("by pages of the client", c.delivered(history.Query{ClientID: odd()[0]}, limit), to...)
	}
	ctx, cancel := c.wait()
	defer cancel()
	if _, _, err := c.s.ListDeliveries(ctx, history.Query{MessageID: m}, "never given", 1); !errors.Is(err, history.ErrPage) {
		c.Errorf("a page that was not given: %v, want ErrPage", err)
	}
}

// wantStates compares the states of a client's deliveries, in order of seq.
func (c *check) wantStates(what, client string, want ...history.State) {
	c.Helper()
	var got []history.State
	for _, d := range c.delivered(history.Query{ClientID: client}, 0) {
		got = append(got, d.State)
	}
	if !slices.Equal(got, want) {
		c.Errorf("%s: %v, want %v", what, got, want)
	}
}

// historySeven leaves seven deliveries: two settled, two in flight, one of which was
// received; one dropped; two behind the saved cursor, one of which was received.
func (c *check) historySeven() schema.Owner {
	o := c.claim("dev").Owner
	var d []schema.Delivery
	for seq := range uint64(7) {
		d = append(d, c.delivery(o, seq+1, uint16(seq+1), 2, seq+1))
	}
	d[0].QoS = 1
	d[4].Dropped, d[4].PacketID = true, 0
	c.record(d...)
	flight := []schema.Flight{inFlight(d[2]), inFlight(d[3])}
	flight[1].Received = true
	c.write(store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: c.head(), Seq: 5, Flight: flight}},
		store.MarkReceived{Owner: o, Flight: inFlight(d[6])})
	return o
}

// What is known of a delivery.
func historyState(c *check) {
	o := c.historySeven()
	c.wantStates("saved", "dev", history.Acknowledged, history.Acknowledged, history.Sent, history.Received, history.Dropped, history.Sent, history.Received)
	c.write(store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: c.head(), Seq: 7}})
	c.wantStates("all settled", "dev", history.Acknowledged, history.Acknowledged, history.Acknowledged, history.Acknowledged, history.Dropped, history.Acknowledged, history.Acknowledged)
	c.release(o)
	c.ask(store.Claim{ClientID: "dev", CleanStart: true, Expiry: forever, At: c.head()})
	got := c.delivered(history.Query{ClientID: "dev"}, 0)
	if len(got) != 7 || got[0].State != history.Sent || got[4].State != history.Dropped {
		c.Errorf("of a session that has ended: %+v, want that nothing is known but what was dropped", got)
	}
}

func historyReopen(c *check) {
	c.historySeven()
	c.reopen()
	c.wantStates("after a SIGKILL", "dev", history.Acknowledged, history.Acknowledged, history.Sent, history.Received, history.Dropped, history.Sent, history.Received)
}
