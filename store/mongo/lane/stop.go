package lane

import (
	"time"

	"rewindmq/schema"
)

// Stop puts a stopper behind the last document of a lane. What is on its way to
// that place or above fails from then on. An End retires the lane: when a majority
// has it, the lane is marked.
//
// PutBehind asks for one command that inserts the stopper Action.ID behind the last
// document of the lane as the primary has it at that moment, and does nothing where
// that is an `end`, or the lane is retired (Wrote). Look asks for the last document of
// the lane, the stopper of Action.ID, and whether the lane is retired, as a majority
// has it (Looked); Retire to mark the lane, with Action.N as its last n (Retired).
//
// The last document is the primary's own, not a majority's: a writer that is busy has
// its next batch on the primary before anybody can know that a majority has the one
// before, so that the place behind what a majority has is always taken. The stopper
// lies in the oplog behind what it was put behind. A majority that has it has all of
// that, and a rollback that takes any of that takes the stopper with it.
//
// It is one command, since a place that was looked up may be used only by the server
// that was looked at. A primary that is being deposed shows what no majority will
// ever have; a stopper that was sent from there to its successor, at the place that
// was seen, would leave a hole in the lane, be acknowledged, and have the tails pass
// by what still comes in below it. Who finds the place and inserts in one goes down
// with its primary, or stands with it.
type Stop struct {
	off   rule
	id    schema.ID
	lane  ID
	kind  string
	n     uint64
	do    Do
	acked bool // the last attempt was
	rest  bool
	pause time.Duration
}

// NewStop begins a stopper of a kind. id is its document's.
func NewStop(id schema.ID, l ID, kind string) *Stop {
	return &Stop{id: id, lane: l, kind: kind, do: PutBehind, pause: firstRest}
}

// Next tells what to do. Done: the stopper stands, or the lane needs none any more.
func (s *Stop) Next() Action {
	if s.rest {
		s.rest = false
		d := s.pause
		s.pause = backoff(d)
		return Action{Do: Rest, Rest: d}
	}
	if s.do == PutBehind && s.kind == End && s.off&ruleEndFirst != 0 {
		s.do = Retire
	}
	return Action{Do: s.do, Lane: s.lane, N: s.n, ID: s.id, Kind: s.kind}
}

// Wrote tells what came of the attempt to insert the stopper. Acknowledged says only
// that the command was: where the stopper stands, if it does, the look tells.
func (s *Stop) Wrote(out Outcome) {
	if out == InDoubt && s.kind == End && s.off&ruleEndMajority != 0 {
		s.stands()
		return
	}
	// A duplicate: somebody was quicker at that place, or an attempt before has gone in
	// and no majority has it yet.
	s.acked = out == Acknowledged
	s.do, s.rest = Look, !s.acked
}

// Looked gives the last document of the lane and the stopper of Action.ID, as a
// majority read shows them (nil: there is none), and whether the lane is retired.
func (s *Stop) Looked(last, own *Doc, retired bool) {
	switch {
	case own != nil && own.Lane == s.lane && s.off&ruleOwnStopper == 0:
		// It stands, and somebody may have gone on behind it.
		s.n = own.N
		s.stands()
	case last != nil && (last.Stop == End || last.ID == s.id):
		s.n = last.N
		s.stands()
	case retired:
		s.do = Done
	default:
		// Behind an `end` that no majority has yet nothing was inserted: it is waited for.
		s.do, s.rest = PutBehind, s.acked
	}
}

// stands goes on when a majority has the stopper.
func (s *Stop) stands() {
	s.do = Done
	if s.kind == End {
		s.do = Retire
	}
}

// Retired: the lane is marked.
func (s *Stop) Retired() { s.do = Done }
