package lane

import (
	"time"

	"rewindmq/schema"
)

// Do is what a machine wants to be done next.
type Do uint8

// What there is to do. After each, the machine is told what came of it, and asked
// again.
const (
	// Wait: nothing, until there is news.
	Wait Do = iota
	// Rest: wait for Action.Rest.
	Rest
	// Done: the machine has reached its end.
	Done
	// Failed: it has not, and will not.
	Failed
	// Refresh: a majority write of this node that begins now (Refreshed).
	Refresh
	// Open: open a lane (Opened).
	Open
	// Verify: look, not before now, whether the sessions of the publishers Asked
	// for are still this node's (Verified).
	Verify
	// Insert: make one attempt to insert, in order.
	Insert
	// Put: make one attempt to insert the stopper Action.ID of Action.Kind at
	// Action.Lane, Action.N.
	Put
	// PutBehind: make one attempt to insert the stopper Action.ID of Action.Kind behind
	// the last document of Action.Lane, in one command.
	PutBehind
	// Look: read, by majority, what stands there.
	Look
	// Check: read, by majority, the lane of the number that was tried.
	Check
	// Retire: end the lane Action.Lane, or mark it as retired.
	Retire
	// Find: look for foreign inserts.
	Find
	// EndOthers: end the other adoption lanes that are older than Action.Lane.
	EndOthers
	// Update: make one attempt to give places to what was found.
	Update
	// Pass: open a snapshot, and read what lies behind H.
	Pass
	// Read: yield what the pass has.
	Read
	// Stream: open a change stream at the time of the pass.
	Stream
	// Listen: wait for what the stream has.
	Listen
)

// Action is one thing to do, with what it needs.
type Action struct {
	Do   Do
	Lane ID
	N    uint64
	ID   schema.ID
	Kind string
	Rest time.Duration
}

// Outcome is what is known of one write.
type Outcome uint8

// Outcomes of a write.
const (
	// InDoubt: nobody knows.
	InDoubt Outcome = iota
	// Acknowledged by a majority.
	Acknowledged
	// Duplicate: it met another document, which a majority may not have yet.
	Duplicate
)

// Verdict is what the reply to an ordered batch says.
type Verdict struct {
	// Stored documents from the start of the batch are committed by a majority.
	Stored int
	// Refused: the document behind them will never go in, for the reason Err; the
	// ones behind it were not tried.
	Refused bool
	// Doubt: what became of the rest is not known.
	Doubt bool
	Err   error
}
