// Package replay brings a session up to the present: it reads from the log what
// the session has missed, page by page at the client's speed, until the session
// is live.
//
// # Nouns
//
// A Target is a session that catches up. A Source reads the log. A Gate bounds
// how many read at once. A round is one Attach with the reading that follows.
//
// # Invariants
//
// Invariant: the place of a replay is a vector, never one number: it is advanced
// by the mark of each message that the session took. So a replay that is cut
// anywhere goes on exactly (T7).
//
// Invariant: a replay holds at most one page of messages, and no read of the
// store while its session has no room for longer than Options.Hold.
//
// The package starts no goroutine that outlives CatchUp; its caller owns that.
package replay
