package lane

import (
	"time"

	"rewindmq/schema"
)

// Stop puts a stopper behind the last document of a lane. What is on its way to
// that place or above fails from then on. An End retires the lane: when a majority
// has it, the lane is marked.
//
// Look asks for the last document of the lane and, when Action.ID is set, for the
// stopper of that id (Looked); Put to insert it (Put), Retire to mark the lane, with
// Action.N as its last n (Retired).
type Stop struct {
	off   rule
	id    schema.ID
	lane  ID
	kind  string
	n     uint64
	do    Do
	tried bool
	rest  bool
	pause time.Duration
}

// NewStop begins a stopper of a kind. id is its document's.
func NewStop(id schema.ID, l ID, kind string) *Stop {
	return &Stop{id: id, lane: l, kind: kind, do: Look, pause: firstRest}
}

// Next tells what to do. Done: the stopper stands at Action.N, or the lane needs
// none any more.
func (s *Stop) Next() Action {
	if s.rest {
		s.rest = false
		d := s.pause
		s.pause = backoff(d)
		return Action{Do: Rest, Rest: d}
	}
	a := Action{Do: s.do, Lane: s.lane, N: s.n, Kind: s.kind}
	if s.do == Look && s.kind == End && s.off&ruleEndFirst != 0 {
		s.do = Retire
		a.Do = Retire
	}
	if s.do != Look || s.tried {
		a.ID = s.id
	}
	return a
}

// Looked gives the last document of the lane and the stopper of Action.ID, as a
// majority read shows them; nil: there is none.
func (s *Stop) Looked(last, own *Doc) {
	s.n = 1
	switch {
	case own != nil && own.Lane == s.lane && s.off&ruleOwnStopper == 0:
		// It stands, and somebody may have gone on behind it.
		s.n = own.N
		s.stands()
	case last != nil && (last.Stop == End || last.ID == s.id):
		s.n = last.N
		s.stands()
	default:
		if last != nil {
			s.n = last.N + 1
		}
		s.do = Put
	}
}

// stands goes on when a majority has the stopper.
func (s *Stop) stands() {
	s.do = Done
	if s.kind == End {
		s.do = Retire
	}
}

// Wrote tells what came of the attempt to insert the stopper.
func (s *Stop) Wrote(out Outcome) {
	if out == Acknowledged || out == InDoubt && s.kind == End && s.off&ruleEndMajority != 0 {
		s.stands()
		return
	}
	// A duplicate: something is there that the majority may not show yet. A doubt:
	// the look tells.
	s.do, s.rest, s.tried = Look, true, true
}

// Retired: the lane is marked.
func (s *Stop) Retired() { s.do = Done }
