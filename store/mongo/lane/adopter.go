package lane

import (
	"time"

	"rewindmq/schema"
)

// Guest is a document of somebody else's that is to get a place in the log.
type Guest struct {
	ID schema.ID
	// Mark is what stands in its `lane`, in whatever form the caller gives it;
	// empty: nothing. What is at another mark by now is not touched.
	Mark string
	// N and Stop: it stands in the adoption lane, at N.
	N    uint64
	Stop string
}

// Adopter gives guests a place (P7): the keeper's node does it, in a lane of its
// own. An adoption is an append, with the same numbering, doubt and stoppers; only
// that the documents are there already, and get their place by a guarded update.
//
// Find asks for guests (Found), Open for a lane (Opened), EndOthers to end the other
// adoption lanes below it (Alone), Update for one attempt with the Guests at
// Action.Lane from Action.N on (Wrote), Look for what became of them and of what
// stands there (Looked). Failed: any of the first three did not succeed.
//
// Invariant: of an adoption lane only its opener sets marks, and it stops at an
// `end`; a new keeper puts one into the adoption lanes of those before, and adopts
// when all of them are retired (P2, P5). Two of them may open lanes at once. Lanes
// become visible in order: so who has the newer one sees the other's, and ends it.
type Adopter struct {
	// Fresh is a quarter of the retention; 0: nothing is ever taken. See Options.
	Fresh time.Duration

	off   rule
	now   time.Time
	sent  time.Time // when the last batch was
	fresh time.Time // as a Writer's
	doubt bool      // some of the list may be on its way
	lane  ID
	node  schema.ID
	next  uint64
	alone bool // the lanes below are ended
	list  []Guest
	look  bool
	rest  bool
	pause time.Duration
	found bool // the list is not older than the turn
}

// Lane gives the lane that is open; 0: none.
func (a *Adopter) Lane() ID { return a.lane }

// Guests gives those of the batch. The slice is the adopter's.
func (a *Adopter) Guests() []Guest { return a.list }

func (a *Adopter) on(r rule) bool { return a.off&r == 0 }

// Next tells what to do; Wait: nothing, until there may be guests. keeper: this
// node holds the keeper's lease. A batch that was begun goes on without it.
func (a *Adopter) Next(node schema.ID, keeper bool, now time.Time) Action {
	a.now = now
	if a.rest {
		a.rest = false
		d := a.pause
		a.pause = backoff(d)
		return Action{Do: Rest, Rest: d}
	}
	if a.Fresh > 0 && !a.doubt && !a.look && since(now, a.fresh) > a.Fresh && a.on(ruleFresh) {
		a.lane = 0 // as a Writer does; the lane is below the next, and ended with the others
	}
	act := Action{Lane: a.lane, N: a.next}
	switch {
	case a.look:
		act.Do = Look
	case len(a.list) > 0 && a.lane != 0 && a.alone && a.found:
		act.Do = Update
	case !keeper:
		a.list, act.Do = nil, Wait
	case len(a.list) == 0:
		act.Do = Find
	case a.lane == 0 || a.node != node:
		act.Do = Open
	case !a.alone:
		act.Do = EndOthers
	default:
		a.found, act.Do = true, Update
	}
	if act.Do == Update {
		a.sent, a.doubt = a.now, true
	}
	return act
}

// Found gives the guests that there are, in their order.
func (a *Adopter) Found(list []Guest) {
	a.list, a.found, a.doubt, a.pause = list, false, false, firstRest
}

// Opened: there is a lane, opened under the name of node since began.
func (a *Adopter) Opened(id ID, node schema.ID, began time.Time) {
	a.lane, a.node, a.next, a.fresh = id, node, 1, began
	a.alone = !a.on(ruleEndBefore)
}

// Alone: the adoption lanes below are ended.
func (a *Adopter) Alone() { a.alone = true }

// Failed: the turn is over.
func (a *Adopter) Failed() { a.list = nil }

// Wrote tells what came of the attempt.
func (a *Adopter) Wrote(v Verdict) {
	if !v.Doubt && v.Stored > 0 {
		a.fresh = a.sent
	}
	a.doubt = v.Doubt
	a.next += uint64(v.Stored)
	a.list = a.list[v.Stored:]
	switch {
	case v.Refused:
		a.list = a.list[1:] // gone since it was found: the upsert met the validator
	case v.Doubt && !a.on(ruleSameMarks):
		// Numbered anew, from behind what it has on its way.
		a.next += uint64(len(a.list))
		a.list = nil
	case v.Doubt && a.on(ruleAdoptLooks):
		a.look = true
	case v.Doubt:
		a.rest = true
	}
}

// Looked follows a doubt: docs are the guests of the batch and what stands in the
// lane at N and above, by a majority read. What stands there is adopted; what is
// where it was found is left, and sent again at the same marks until there is an
// answer (P2).
func (a *Adopter) Looked(docs []Guest) {
	a.look = false
	at := make(map[schema.ID]string, len(docs))
	standing := map[uint64]string{}
	there := map[uint64]bool{}
	for _, d := range docs {
		at[d.ID] = d.Mark
		if d.N > 0 {
			standing[d.N], there[d.N] = d.Stop, true
		}
	}
	for there[a.next] {
		stop := standing[a.next]
		a.next++
		if stop == End && a.on(ruleEndStops) {
			a.lane, a.list = 0, nil // another node is the keeper now
			return
		}
	}
	var left []Guest
	for _, g := range a.list {
		if now, ok := at[g.ID]; ok && now == g.Mark {
			left = append(left, g)
		}
	}
	if len(left) == len(a.list) {
		a.rest = true
	}
	a.list = left
}

// LookFailed: the look did not succeed. The attempt is made again.
func (a *Adopter) LookFailed() { a.look, a.rest = false, true }
