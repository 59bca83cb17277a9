package lane

import (
	"rewindmq/schema"
)

// Opening gets a lane: the greatest number plus one, with a fresh key. It is used
// only after a majority has acknowledged it, so lanes become visible in order (L6).
//
// Look asks for the greatest number (Top), Insert to insert Action.Lane (Inserted),
// Check to read the lane of that number (Checked).
type Opening struct {
	off  rule
	node schema.ID
	key  func() uint32
	lane ID
	next Do
}

// NewOpening begins one for a node. key makes a lane's key: 32 random bits.
func NewOpening(node schema.ID, key func() uint32) *Opening {
	return &Opening{node: node, key: key, next: Look}
}

// Next tells what to do. Done: Action.Lane is open; Failed: it is in doubt, and
// another Opening looks again.
func (o *Opening) Next() Action {
	if o.next == Rest {
		o.next = Look
		return Action{Do: Rest, Rest: firstRest}
	}
	return Action{Do: o.next, Lane: o.lane}
}

// Top gives the greatest number that a majority read shows; 0: there is none.
func (o *Opening) Top(number schema.Lane) {
	o.lane, o.next = NewID(number+1, o.key()), Insert
}

// Inserted tells what came of the attempt.
func (o *Opening) Inserted(out Outcome) {
	switch {
	case out == Acknowledged || out == InDoubt && o.off&ruleLaneMajority != 0:
		o.next = Done
	case out == Duplicate:
		// Mine, from an attempt whose answer was lost, or another's: the key tells.
		o.next = Check
	default:
		o.next = Failed
	}
}

// Checked tells whose lane has the number, as a majority read shows it.
func (o *Opening) Checked(there bool, id ID, node schema.ID) {
	if there && (id == o.lane && node == o.node || o.off&ruleLaneKey != 0) {
		o.lane, o.next = id, Done
		return
	}
	o.next = Rest
}
