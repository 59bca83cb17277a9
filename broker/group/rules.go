package group

// rule names one rule of the design. The simulation turns them off one by one and
// demands that its checkers notice: a rule that nothing misses is removed. In the
// broker all are on.
type rule uint16

const (
	ruleAfterWaits   rule = 1 << iota // after stops at the first claim that is not answered
	ruleDoubtAgain                    // what is in doubt is offered again
	ruleDoubtAsks                     // but the store is asked before
	ruleJoinAsks                      // a member is given nothing before the store was asked
	ruleClaimedKnown                  // what was claimed before the group was opened is passed
	ruleTakenOnce                     // what is offered is dropped unless it is after taken
	ruleMergeEmpty                    // a merge with H needs an empty queue
	ruleAgainFirst                    // what came back goes before the log
	rulePassedSaved                   // what is passed of Again is taken out of the store
)

// on tells whether a rule holds.
func (g *Group) on(r rule) bool { return g.off&r == 0 }
