// Package group decides which member of a group of shared subscriptions gets which
// message. It is a plain state machine, as broker/session is: no I/O, no goroutine,
// no lock, no clock of its own. Inputs leave actions, which the caller carries out;
// members are asked directly, as they answer at once.
//
// # Nouns
//
// A Group is the group on one node, while a member is online there. A Member is a
// session that a connection owns. An entry is a message that was given to a member
// and whose record, its claim, is not answered yet, or one that came back: left by a
// lost member, or in doubt. taken is how far messages of the log have been given or
// passed; after is the saved place: it follows taken in the same order, but stops at
// the first claim that is not answered.
//
// # The rule
//
// The record decides, and nothing else (package store, Groups): the group may be
// wrong about what is to be given, since its view of the store is older than the
// store, but a message that it gives twice, or that is not the group's, is refused
// there, and the delivery is withdrawn before anybody has seen it. So a group can be
// opened anew at any moment, by any node.
//
// # Invariants
//
// Invariant: everything not after `after` is claimed in the store, stands in the
// store's Again, or was passed.
//
// Invariant: an entry stands in one place: under way with one member, in again, or
// parked, as it is another node's turn to give it.
//
// Invariant: nothing here grows without bound: what is under way by the members'
// windows, the queue and the buffer by Options.Queue, the line and parked by Options.Line, again
// by what lost members had in flight, of which a few have their message in memory.
package group
