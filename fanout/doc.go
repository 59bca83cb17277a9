// Package fanout gives each session of a node what the log brings: one tail of
// the log, a trie of topic filters, and the memory of the last messages.
//
// # Nouns
//
// The Hub is the one tail of the log in a node; H is its cursor. A Subscriber is
// what it feeds: a session. A Membership is a subscriber's place in the hub: its
// filters, and whether it is attached. A Trie maps topic filters to values. A
// Source reads the log back: the memory of the last messages first, then the
// store.
//
// # Invariants
//
// Invariant: everything that is not after H has been offered to each subscriber
// that was attached then and whose filters match it.
//
// Invariant: an attached subscriber has been offered everything that matches,
// after the H of its Attach and not after the present H, each message once. A
// message that it refused detaches it: nothing is ever dropped in between.
//
// # Locks and goroutines
//
// Lock order: the hub's lock, then the subscriber's own. So a subscriber calls
// Attach, Detach, Subscribe, Unsubscribe and Leave without holding the lock that
// its Offer takes; H, Start, Attached and Recent take no lock of that order and
// may be called from anywhere.
//
// The package starts no goroutine: Hub.Run is the only one that offers, and its
// caller owns it.
package fanout
