package group

import "rewindmq/schema"

// Tick does what is due by time: about once a second. h is the hub's cursor, loaded
// for this call: everything up to it has been offered.
func (g *Group) Tick(h schema.Cursor) {
	if g.mode == live && (len(g.queue) == 0 || !g.on(ruleMergeEmpty)) {
		g.merge(h)
	}
	now := g.o.Now()
	if since := now.Sub(g.askedAt); g.stale || since < 0 || since >= refreshEvery || len(g.parked) > 0 && since >= shareEvery {
		g.open()
	}
	since := now.Sub(g.savedAt)
	if !g.saving && (since < 0 || (g.moved || len(g.passed) > 0) && since >= saveEvery || g.merged && since >= saveMergeEvery) {
		g.save()
	}
	g.Pump() // a look-up that failed
}

func (g *Group) save() {
	g.saving, g.moved, g.merged, g.savedAt = true, false, false, g.o.Now()
	g.savingPassed, g.passed = g.passed, nil
	g.do(Action{Do: DoSave, After: g.after.Clone(), Passed: g.savingPassed})
}

// OnSaved brings the answer to DoSave. What was not saved is saved later; a group
// without members lets it be: its claims and Again tell all.
func (g *Group) OnSaved(err error) {
	g.saving = false
	if err != nil {
		g.passed = append(g.passed, g.savingPassed...)
		g.moved = true
	} else if g.opening {
		g.overtaken = append(g.overtaken, g.savingPassed...)
	}
	g.savingPassed = nil
	if len(g.members) == 0 && err != nil {
		g.end()
		return
	}
	g.settleDown()
}
