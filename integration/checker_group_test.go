package integration

import (
	"math"
	"slices"
	"testing"
)

// group is what the members of one shared subscription have in common.
type group struct {
	l       *ledger
	name    string
	members []string
	asked   int64 // when the first SUBSCRIBE was sent
	granted int64 // when the first SUBACK was read; 0: never
	least   byte  // the lowest QoS of a member
	got     []arrival
}

// arrival is a PUBLISH that came to a member as new: no repeat of what it had.
type arrival struct {
	member string
	link   int
	event
}

// groups are the groups that subscribers are members of. REQUIRES: mu is held.
func (l *ledger) groups() map[string]*group {
	all := map[string]*group{}
	for id, b := range l.subs {
		if b.group == "" {
			continue
		}
		g := all[b.group]
		if g == nil {
			g = &group{l: l, name: b.group, asked: math.MaxInt64, least: 2}
			all[b.group] = g
		}
		g.members = append(g.members, id)
		for _, w := range b.wants {
			if w.filter != b.group {
				continue
			}
			g.asked, g.least = min(g.asked, w.asked), min(g.least, w.qos)
			if w.granted > 0 && (g.granted == 0 || w.granted < g.granted) {
				g.granted = w.granted
			}
		}
	}
	for _, g := range all {
		slices.Sort(g.members)
	}
	return all
}

// due tells whether the group must get a message that was sent first at that time.
func (g *group) due(k key, sent int64) bool {
	return g.granted > 0 && sent > g.granted && g.wants(k) && min(k.qos, g.least) > 0
}

func (g *group) wants(k key) bool { return matches(plain(g.name), k.topic) }

// missing gives what was acknowledged and came to no member.
func (g *group) missing() []key {
	seen := map[key]bool{}
	for _, id := range g.members {
		for _, link := range g.l.subs[id].links {
			for _, e := range link.events {
				if e.kind == kindPublish {
					seen[e.key] = true
				}
			}
		}
	}
	var out []key
	for _, id := range sortedKeys(g.l.pubs) {
		pub := g.l.pubs[id]
		var sent map[key]int64
		for k := range pub.acked {
			if seen[k] || !g.wants(k) {
				continue
			}
			if sent == nil {
				sent = pub.firstSent()
			}
			if g.due(k, sent[k]) {
				out = append(out, k)
			}
		}
	}
	return out
}

// checkGroup: none is lost; what came to a member at QoS 2 comes to no other, at QoS 1
// only where the link that had it has ended, and then not more than a window; each link
// has the messages of a publisher in order, but for those that a lost member has left.
func (c *checker) checkGroup(g *group) {
	for _, k := range g.missing() {
		c.add(faultLost, g.name, "%v was acknowledged and came to no member", k)
	}
	by := map[key][]arrival{}
	for _, a := range g.got {
		by[a.key] = append(by[a.key], a)
	}
	left := map[[2]any]int{} // by member and link: what it had and another was given
	for k, all := range by {
		slices.SortFunc(all, func(a, b arrival) int { return int(a.at - b.at) })
		if pub := c.l.pubs[k.pub]; pub == nil || pub.sends[k] != 1 && k.qos == 1 {
			continue // a phantom, or the log may have it twice
		}
		for i, a := range all {
			if i+1 < len(all) {
				left[[2]any{a.member, a.link}]++
			}
			for _, b := range all[i+1:] {
				lostA, lostB := c.l.lost(a) <= b.at, c.l.lost(b) <= a.at
				if a.qos == 2 && b.qos == 2 || !lostA && !lostB {
					c.add(faultDuplicated, g.name, "%v came to %s (link %d, id %d, QoS %d) and to %s (link %d, id %d, QoS %d)",
						k, a.member, a.link, a.id, a.qos, b.member, b.link, b.id, b.qos)
				}
			}
		}
	}
	for at, n := range left {
		member := at[0].(string)
		if window := min(c.l.subs[member].window, 1000); n > window {
			c.add(faultDuplicated, g.name, "%d messages that %s had on link %v came again, its window is %d", n, member, at[1], window)
		}
	}
	c.checkGroupOrder(g)
}

// lost gives the earliest time at which the broker may have lost the link of a.
func (l *ledger) lost(a arrival) int64 {
	return l.ended(l.subs[a.member].links[a.link])
}

func (l *ledger) ended(link linkBook) int64 {
	end := link.ended
	if end == 0 {
		end = math.MaxInt64
	}
	for _, at := range l.kills {
		if at > link.began {
			return min(end, at)
		}
	}
	return end
}

// checkGroupOrder: see checkGroup.
func (c *checker) checkGroupOrder(g *group) {
	type place struct {
		member string
		link   int
		stream
	}
	reached := map[place]int{}
	sent := map[string]map[key]int64{}
	slices.SortStableFunc(g.got, func(a, b arrival) int { return int(a.at - b.at) })
	for _, a := range g.got {
		if a.dup {
			continue // an attempt of a former link
		}
		at := place{a.member, a.link, a.key.stream}
		if a.key.seq > reached[at] {
			reached[at] = a.key.seq
			continue
		}
		pub := c.l.pubs[a.key.pub]
		if pub == nil || pub.sends[a.key] != 1 {
			continue // a phantom, or the log may have it twice
		}
		if sent[a.key.pub] == nil {
			sent[a.key.pub] = pub.firstSent()
		}
		if min(a.key.qos, g.least) == 1 && g.lostBetween(sent[a.key.pub][a.key], a.at) {
			continue
		}
		c.add(faultReordered, g.name, "%s, link %d: %v comes after %d", a.member, a.link, a.key, reached[at])
	}
}

// lostBetween tells whether a link may have been lost in that time: what it had goes to
// others, late.
func (g *group) lostBetween(from, to int64) bool {
	for _, id := range g.members {
		for _, link := range g.l.subs[id].links {
			gone := link.gone
			if gone == 0 {
				gone = math.MaxInt64
			}
			if g.l.ended(link) <= to && gone >= from {
				return true
			}
		}
	}
	return false
}

// checkGroupRecords: a stored message has a record of one member, at QoS 1 of one at
// least, and what came has one.
func (c *checker) checkGroupRecords(a audit, byID map[string]key, count func(member, message string) int) {
	groups := c.l.groups()
	for _, name := range sortedKeys(groups) {
		g := groups[name]
		sent := map[string]map[key]int64{}
		recorded := map[key]map[string]bool{}
		for _, m := range a.messages {
			k, ok := byID[m.id]
			if !ok || !g.wants(k) {
				continue
			}
			if sent[k.pub] == nil {
				sent[k.pub] = c.l.pubs[k.pub].firstSent()
			}
			if recorded[k] == nil {
				recorded[k] = map[string]bool{}
			}
			n := 0
			for _, id := range g.members {
				records := count(id, m.id)
				recorded[k][id] = recorded[k][id] || records > 0
				n += records
			}
			if n == 0 && g.due(k, sent[k.pub][k]) || n > 1 && min(k.qos, g.least) == 2 {
				c.add(faultRecord, name, "%v (message %s) has %d records", k, m.id, n)
			}
		}
		for _, id := range g.members {
			for _, link := range c.l.subs[id].links {
				for _, e := range link.events {
					if e.kind == kindPublish && e.qos > 0 && !recorded[e.key][id] {
						c.add(faultRecord, id, "%v came and has no record", e.key)
					}
				}
			}
		}
	}
}

// tally tells what the run was worth.
func (l *ledger) tally(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	lives, due, cancelled := 0, 0, 0
	for _, pub := range l.pubs {
		if !pub.mortal {
			continue
		}
		lives += len(pub.runs) / 2
		cancelled += len(pub.never)
		for k := range pub.acked {
			if k.seq%2 == 0 {
				due++
			}
		}
	}
	t.Logf("%d lives of devices: %d wills were due, %d cancelled", lives, due, cancelled)
	for name, g := range l.groups() {
		links, came, again := 0, 0, map[key]int{}
		for _, id := range g.members {
			links += len(l.subs[id].links)
			for _, link := range l.subs[id].links {
				for _, e := range link.events {
					if e.kind == kindPublish {
						came++
						again[e.key]++
					}
				}
			}
		}
		t.Logf("%s: %d links of %d members, %d messages, %d repeated", name, links, len(g.members), len(again), came-len(again))
	}
}
