// Package lane decides what happens to the lanes of a log on MongoDB, as plain
// state machines: the writer of a lane, the opening of one, a stopper on its way
// into one, the tail over all of them, and the adoption of what others have
// inserted. It has no I/O, no goroutine, no lock and no clock of its own. Next
// says what is to be done (insert this batch, look what stands there, put a
// stopper), the caller does it and tells what came of it. So one seeded simulation
// drives several nodes, a model of the log and a crash between any two actions
// (sim_test.go), and package mongo only carries actions out against the driver.
//
// # Nouns
//
// A Writer appends what is waiting to one lane after another. Its batch is in
// flight, or carried into the next lane; in doubt is a batch of which nobody knows
// what became. A stopper is a document that takes a place in a lane: what was on
// its way there fails. An `end` is a stopper behind which nobody writes. A Stop
// puts one into a lane that somebody else may be writing. An Opening gets a lane
// for a writer. A Tail yields the log in one of two states: passing (it reads what
// is behind H in every lane, in one snapshot) and streaming (a change stream says
// what comes next). An Adopter gives foreign inserts a place in a lane of its own.
//
// # Invariants
//
// Invariant: no document is sent at an n below a writer's next, and what stands
// below next in its lane is settled. So n is dense, and the order of commits.
//
// Invariant: a message is answered as refused only where it is certain that it is
// not stored and never will be: it was not sent, the document itself was refused,
// or a stopper stands at the first n in doubt.
//
// Invariant: of two messages of one publisher the later one is not sent at a new n
// before the earlier one is settled.
//
// Invariant: every message that is not after a tail's H has been yielded.
//
// Invariant: nothing is sent behind a document that retention may take before that goes
// in; a writer leaves its lane first. So who puts a stopper finds the place.
//
// Invariant: of an adoption lane only its opener sets marks, and it stops at an
// `end`.
//
// Each rule has a switch (rules.go) that turns it off in the simulation, and a test
// that the checkers then fail.
package lane
