package broker

import (
	"fmt"
	"testing"

	"rewindmq/wire"
)

// TestDeadSharesAreForgotten: a connection that joins and leaves groups keeps nothing of
// those that have ended, and what it is a member of.
func TestDeadSharesAreForgotten(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	p := h.clean(wire.V5, "c")
	p.subscribe("$share/stays/a", 1)
	for i := range 50 {
		f := fmt.Sprintf("$share/g%d/a", i)
		p.subscribe(f, 1)
		p.write(wire.AppendUnsubscribe(nil, p.v, &wire.Unsubscribe{PacketID: 2, Filters: []string{f}}))
		expect[*wire.Unsuback](p)
	}
	cl := h.b.roster.get("c")
	known := func() int {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return len(cl.shares)
	}
	h.until("forget dead groups", func() bool { return known() == 1 })
	pub := h.clean(wire.V5, "pub")
	pub.publish("a", "1", 1, 1)
	p.receive("1")
}

// TestShareForgetsTheGone: a group that lives on keeps little of the members that have
// ended.
func TestShareForgetsTheGone(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{})
	stays := h.clean(wire.V5, "stays")
	stays.subscribe("$share/g/a", 1)
	for i := range 60 {
		p := h.clean(wire.V5, fmt.Sprint(i))
		p.subscribe("$share/g/a", 1)
		p.disconnect()
		h.until("end", func() bool { return h.b.roster.get(fmt.Sprint(i)) == nil })
	}
	h.b.shares.mu.Lock()
	sh := h.b.shares.by["$share/g/a"]
	h.b.shares.mu.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if n := len(sh.joined); n > 2*2+16 {
		t.Errorf("%d clients are kept, 1 is a member", n)
	}
}
