// Package mongo keeps the contract of package store on a MongoDB replica set.
//
// # Nouns
//
// A Store is one node's view of the log. A *lane writer* appends what is waiting
// to one lane, one batch in flight. A *tail* yields the log: it makes passes over
// the lanes, each in one snapshot, and between them listens to a change stream,
// which is a hint only. A *session writer* carries out the guarded writes of the
// sessions that hash to it, a *record lane* inserts delivery records. A *stopper*
// is a document in a lane that takes the place of whatever else was on its way
// there. The *keeper* is the one node that finishes dead ones. What happens to lanes
// is decided in package lane, without I/O, and carried out here.
//
// # Invariants
//
// Invariant: every write that must not land late has a driver session of its own
// with one write in flight: an attempt that was given up has an older transaction
// number than the next, and the server refuses it.
//
// Invariant: nothing is answered as stored that a majority has not acknowledged,
// or shown to a majority read.
//
// Invariant: a lane's numbering outlives its messages, whatever retention takes (tops).
//
// Invariant: no position is taken from a clock. ts sorts, and bounds what a read
// has to look at.
//
// # Goroutines
//
// Run owns all of them and waits for them: the heartbeat, the pause watch, one
// for each lane writer, session writer and record lane, the keeper, the look for
// claims, the rounds of fresh writes, and those that keep the ends of lanes. A Tail,
// a Read and a Claim run on their caller's.
package mongo
