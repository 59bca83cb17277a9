// Package schema says what is recorded: messages, marks and cursors, topic
// filters, sessions, deliveries. It is plain data and pure functions on it: no
// I/O, no clock, no goroutine. Everything above may import it; it imports the
// standard library only.
//
// # Nouns
//
// A Message is what was published. It stands at a Mark (lane, n): a lane is one
// stream of appends with a single writer, which numbers its messages 1, 2, 3, …
// without holes, so n is the order in which they commit. A Cursor is a vector of
// marks: how far a reader has got. No clock, no time stamp and no order between
// lanes is ever trusted for a position.
//
// A session is one client's durable identity. Its subscriptions (Subscription),
// its place and what is under way to it (SessionCursor, Flight) and what is
// under way from it (Inbound) outlive every connection. A Delivery is the record
// that something was sent; it is written before the bytes leave.
//
// # Invariants
//
// Invariant: everything that is not after a saved SessionCursor.After is
// settled, or stands in its Flight.
//
// Invariant: a cursor only advances or merges; an entry never falls.
package schema
