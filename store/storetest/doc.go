// Package storetest is the contract of package store as a test suite, with a
// small store in memory beside it.
//
// # Nouns
//
// Run is the suite: it attacks the six promises of package store and what the
// interfaces say beside them. A store joins by a Harness. A store that is wrong in
// one point must fail it; the package's own tests break one point at a time and
// see to that.
//
// A Model is a store as a plain state machine: lanes that open and retire,
// stoppers, sessions with their owners, cursors, records, subscriptions, wills.
// Its operations are those of DESIGN.md sections 5 to 7, each one atomic step that
// a simulation can delay, repeat, or take the answer from. A Claim is the walk of
// a reconnect over such operations, to be crashed or overtaken between any two.
// Break switches single rules off, so that a simulation's checkers can be seen to
// notice.
//
// A Memory is store.Store on a Model, with faults: lanes that stall, appends that
// stay in doubt or are refused, sessions claimed elsewhere, SIGKILL. The broker's
// tests run on it. Memory.Run owns its goroutines: one writer for each lane.
//
// # Invariants
//
// Invariant: a Model is a function of the calls made to it: it has no clock, no
// randomness, and walks no map in its own order.
//
// Invariant: what a Memory has answered survives Reopen; what it has not answered
// may or may not.
package storetest
