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

// key is what has to stay in order: the messages of one publisher on one topic
// [MQTT-4.6.0-6]. They go to one node, and what of them waits holds the rest.
type key uint64

func keyOf(m *schema.Message) key {
	h := fnv.New64a()
	_, _ = h.Write([]byte(m.ClientID))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(m.Topic))
	return key(h.Sum64())
}

// turn tells whether a message is this node's to give first: of the nodes with
// members the one that stands highest by a hash of both (rendezvous), so that one
// that comes or goes moves no more than its own share.
//
// While nodes do not agree who has members, a message may be nobody's turn, or that of
// two. A record decides (G1), and what nobody has claimed anybody may give after
// turnWait; but at QoS 0 there is none: it may come twice then, or not at all.
func (g *Group) turn(k key) bool {
	if len(g.nodes) == 0 {
		return true
	}
	mine := score(g.self, k)
	for _, n := range g.nodes {
		if n != g.self && score(n, k) > mine {
			return false
		}
	}
	return true
}

func score(node schema.ID, k key) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(node[:])
	// IDs differ in their last bytes, which the hash alone does not carry up.
	x := h.Sum64() ^ uint64(k)
	x = (x ^ x>>32) * 0x9e3779b97f4a7c15
	x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
	return x ^ x>>32
}

// behind tells whether an older message of the same key is parked: what follows it
// waits as well, whosesoever turn it is now, or it would overtake.
func (g *Group) behind(k key) bool { return g.parkedOf[k] > 0 }

// park leaves a message to another node. after stops before it, until the store tells
// what became of it.
func (g *Group) park(m *schema.Message, k key) {
	st := &step{mark: m.Mark}
	g.taken.Advance(m.Mark)
	now := g.o.Now()
	g.parked = append(g.parked, &entry{Ref: store.Ref{ID: m.ID, Mark: m.Mark}, key: k, st: st, at: now})
	if g.parkedOf == nil {
		g.parkedOf = map[key]int{}
	}
	g.parkedOf[k]++
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

// unpark takes out what the store knows to be claimed or passed, and returns it. To be
// given here is what nobody has claimed for turnWait, and what is this node's turn by
// what the store knows of the nodes now: the record decides about both.
//
// Invariant: of a key nothing is given while an older one is parked. Here, as either
// holds for an older one where it holds for a newer.
func (g *Group) unpark(d *store.Group, again, claimed map[schema.ID]bool) (settled []*entry) {
	var free []*entry
	g.parked = slices.DeleteFunc(g.parked, func(e *entry) bool {
		switch {
		case again[e.ID], claimed[e.ID], !d.After.After(e.Mark):
			settled = append(settled, e)
		case e.doubt == askedFor || g.turn(e.key):
			e.doubt = certain
			free = append(free, e)
		default:
			return false
		}
		if g.parkedOf[e.key]--; g.parkedOf[e.key] == 0 {
			delete(g.parkedOf, e.key)
		}
		return true
	})
	for _, e := range free {
		g.putAgain(e)
	}
	return settled
}
