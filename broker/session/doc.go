// Package session is the protocol core: what one session of an MQTT client
// decides, as a plain state machine. It has no I/O, no goroutine, no lock and no
// clock of its own. An input (a message offered, an acknowledgement read, a write
// committed, a tick) changes the state and leaves actions (write this record,
// send this packet, save this cursor), which the caller carries out. So one
// seeded simulation can drive several sessions through every interleaving and a
// crash at every step (sim_test.go), and the broker only carries actions.
//
// # Nouns
//
// The flight is what was recorded for sending and is not settled. taken is how
// far messages have been taken from the queue or the reader; after is the saved
// place: it follows taken in the same order, but stops at the first record that
// is not committed yet. A session is live (the hub feeds it) or replaying (it
// reads the log).
//
// # Invariants
//
// Invariant: everything that is not after the saved cursor is settled or in the
// saved flight.
//
// Invariant: a PUBLISH of a persistent session leaves only after its record is
// committed; an acknowledgement to the client can be built only from a
// store.Appended that says Stored.
//
// Invariant: no packet id stands for two deliveries in flight; ids lie in
// 1..window, but for a clean session's without shared subscriptions, which go round.
//
// Invariant: while its connection is open the session forgets nothing of its
// state [MQTT-4.1.0-1].
//
// Invariant: nothing here grows without bound: the flight by the window, the
// queue and the buffer by Options.Queue, appends by Options.ReceiveMaximum,
// the line by the flight plus the queue and the runs that end.
//
// Invariant: what one input costs follows the messages that it moves, and not what there
// is to look at: retained runs look at a bounded number of topics and then ask for a
// Walk; those that wait are not looked at; and many wildcard filters are matched by the
// levels of the topic.
package session
