package group

import (
	"slices"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// stepAgain gives the first message that came back.
func (g *Group) stepAgain() bool {
	e := g.again[0]
	if e.doubt != certain && g.on(ruleDoubtAsks) {
		return false // its answer wakes us
	}
	if e.m == nil {
		g.lookUp()
		return false
	}
	by, v := g.give(e.m, false)
	if v == wait {
		return false
	}
	g.again[0] = nil
	g.again = g.again[1:]
	e.m = nil
	if v == taken {
		e.by = by
		g.under[e.ID] = e
		return true
	}
	g.passAgain(e)
	return true
}

// passAgain ends an entry that nobody is to have any more.
func (g *Group) passAgain(e *entry) {
	if g.on(rulePassedSaved) {
		g.passed = append(g.passed, e.ID)
	}
	g.settle(e)
}

// reconcile brings again up to the store's: what is not there any more was claimed
// elsewhere, or went with a former group of that name.
func (g *Group) reconcile(d *store.Group) {
	there, claimed := make(map[schema.ID]bool, len(d.Again)), make(map[schema.ID]bool, len(d.Claimed))
	for _, r := range d.Again {
		there[r.ID] = true
	}
	for _, r := range d.Claimed {
		claimed[r.ID] = !there[r.ID]
		if g.taken.After(r.Mark) && g.on(ruleClaimedKnown) {
			g.claimed[r.ID] = r.Mark
		}
	}
	has := g.unpark(d, there, claimed) // whose claim was there
	g.again = slices.DeleteFunc(g.again, func(e *entry) bool {
		known := there[e.ID]
		delete(there, e.ID)
		switch {
		case e.doubt == inDoubt && g.on(ruleDoubtAsks):
			return false
		case !known && (e.st == nil || claimed[e.ID] || !d.After.After(e.Mark)):
			has = append(has, e)
			return true
		}
		e.doubt = certain
		return false
	})
	for _, e := range has {
		g.settle(e)
	}
	for _, r := range d.Again {
		if there[r.ID] && g.under[r.ID] == nil && !g.hasPassed(r.ID) {
			g.putAgain(&entry{Ref: r})
		}
	}
}

// hasPassed tells whether a message of the store's Again was claimed or passed since
// the store was asked.
func (g *Group) hasPassed(id schema.ID) bool {
	return slices.Contains(g.passed, id) || slices.Contains(g.savingPassed, id) || slices.Contains(g.overtaken, id)
}

// lookUp asks for the messages of the next entries, a few at a time.
func (g *Group) lookUp() {
	if g.looking {
		return
	}
	g.looking = true
	var refs []store.Ref
	for _, e := range g.again[:min(len(g.again), defaultLookup)] {
		if e.m == nil {
			refs = append(refs, e.Ref)
		}
	}
	g.do(Action{Do: DoLookup, Refs: refs})
}

// OnLookup brings the messages asked for by DoLookup, nil where there is none any
// more. After an error Tick asks again.
func (g *Group) OnLookup(refs []store.Ref, msgs []*schema.Message, err error) {
	g.looking = false
	if err != nil {
		return
	}
	for i, r := range refs {
		k := slices.IndexFunc(g.again, func(e *entry) bool { return e.ID == r.ID })
		switch {
		case k < 0:
		case msgs[i] != nil:
			g.again[k].m = msgs[i]
		default: // retention has removed it
			e := g.again[k]
			g.again = slices.Delete(g.again, k, k+1)
			g.do(Action{Do: Count, Dropped: session.DropTrimmed, QoS: 1})
			g.passAgain(e)
		}
	}
	g.Pump()
}
