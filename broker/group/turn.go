package group

import (
	"hash/fnv"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	// turnWait is how long a message is left to the node whose turn it is. Longer than
	// saveEvery: what that one has passed is known by then.
	turnWait = 2 * time.Second
	// shareEvery is how often the store is asked what other nodes have given.
	shareEvery = time.Second
	// shareLoad is how often at most, when there is much of it.
	shareLoad = 50 * time.Millisecond
)

// turn tells whether a message is this node's to give first: of the nodes with
// members the one that stands highest by a hash of both (rendezvous), so that one
// that comes or goes moves no more than its own share.
//
// While nodes do not agree who has members, a message may be nobody's turn, or that of
// two. A record decides (G1), and what nobody has claimed anybody may give after
// turnWait; but at QoS 0 there is none: it may come twice then, or not at all.
func (g *Group) turn(id schema.ID) bool {
	if len(g.nodes) == 0 {
		return true
	}
	mine := score(g.self, id)
	for _, n := range g.nodes {
		if n != g.self && score(n, id) > mine {
			return false
		}
	}
	return true
}

func score(node, message schema.ID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(node[:])
	_, _ = h.Write(message[:])
	// IDs differ in their last bytes, which the hash alone does not carry up.
	x := h.Sum64()
	x = (x ^ x>>32) * 0x9e3779b97f4a7c15
	return x ^ x>>29
}

// park leaves a message to another node. after stops before it, until the store tells
// what became of it.
func (g *Group) park(m *schema.Message) {
	if m.QoS == 0 {
		g.pass(m)
		return
	}
	st := &step{mark: m.Mark}
	g.taken.Advance(m.Mark)
	now := g.o.Now()
	g.parked = append(g.parked, &entry{Ref: store.Ref{ID: m.ID, Mark: m.Mark}, st: st, at: now})
	g.follow(st)
	if len(g.line) >= g.o.Line/2 && now.Sub(g.askedAt) >= shareLoad {
		g.open()
	}
}

// askForParked notes which parked messages may be given here, if the store, which is
// asked now, knows of no claim.
func (g *Group) askForParked() {
	for _, e := range g.parked {
		if g.askedAt.Sub(e.at) < turnWait {
			return
		}
		e.doubt = askedFor
	}
}

// unpark takes out what the store knows to be claimed or passed, and returns it; what
// nobody has claimed for turnWait is to be given here.
func (g *Group) unpark(d *store.Group, again, claimed map[schema.ID]bool) (settled []*entry) {
	var free []*entry
	g.parked = slices.DeleteFunc(g.parked, func(e *entry) bool {
		switch {
		case again[e.ID], claimed[e.ID], !d.After.After(e.Mark):
			settled = append(settled, e)
		case e.doubt == askedFor:
			e.doubt = certain
			free = append(free, e)
		default:
			return false
		}
		return true
	})
	for _, e := range free {
		g.putAgain(e)
	}
	return settled
}
