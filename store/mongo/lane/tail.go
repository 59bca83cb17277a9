package lane

import (
	"time"

	"rewindmq/schema"
)

// TailOptions are what a Tail has to know.
type TailOptions struct {
	// Silent is after how long without an event the lanes are looked at.
	Silent time.Duration
	// Quiet is after how long without an event a poke makes a tail look.
	Quiet time.Duration
	// Full is how many full batches in a row mean that the stream does not keep up.
	Full int
}

// News is what may lead a tail back to the lanes, at a moment.
type News struct {
	Now   time.Time
	Lanes uint64 // counts what was news in the Book
	Pokes uint64 // counts clients that may be waiting (S-43)
}

// Reasons why a tail leaves its stream, as the metric names them.
const (
	byLane    = "lane"
	bySilence = "silence"
	byPoke    = "poke"
)

// Judged is what a tail makes of an event.
type Judged uint8

// What an event can be.
const (
	// Next: it is yielded.
	Next Judged = iota
	// Repeat: it was yielded before.
	Repeat
	// Foreign: somebody else's insert, which moves no vector (P1).
	Foreign
	// Unknown: it names a lane that nobody has read yet.
	Unknown
	// Gap: something lies before it.
	Gap
)

// Tail decides how the log is followed. It is in one of two states, with one exact
// result. Passing: what is behind H in every lane is read, in one snapshot.
// Streaming: a change stream says at once what comes next; it is a hint, and any
// doubt about it (an error, a gap in n, silence, a lane that is not known) leads
// back to passing.
//
// Invariant: every message that is not after H has been yielded.
type Tail struct {
	o         TailOptions
	off       rule
	h         schema.Cursor
	streaming bool
	last      time.Time // of the last event, or of the opening
	seen      News
	full      int
}

// NewTail gives a Tail that stands at after, and passes.
func NewTail(o TailOptions, after schema.Cursor) *Tail { return &Tail{o: o, h: after.Clone()} }

func (t *Tail) on(r rule) bool { return t.off&r == 0 }

// H gives the cursor of all that has been yielded. It is only read.
func (t *Tail) H() schema.Cursor { return t.h }

// Give yields the document at m: the next one of a pass, or of the stream. The
// cursor is the caller's.
func (t *Tail) Give(m schema.Mark) schema.Cursor {
	t.h = t.h.Clone() // the one before was handed out
	t.h.Advance(m)
	return t.h
}

// PassLane is a lane as the snapshot of a pass shows it.
type PassLane struct {
	Number  schema.Lane
	Retired bool
	// Top is up to where all in it was settled, whether it is still there or not.
	Top uint64
}

// EndPass: all that the snapshot has behind H was given; the tail stands exactly at
// its time. It tells whether H has moved by that.
func (t *Tail) EndPass(lanes []PassLane) bool {
	h := t.h.Clone()
	for _, l := range lanes {
		// What lies up to its top and was not found, retention has taken: nothing is to be
		// waited for, and cursors that have passed it are covered.
		if !t.on(rulePassTop) {
			l.Top = 0
		}
		h.Advance(schema.Mark{Lane: l.Number, N: l.Top})
	}
	for _, l := range lanes {
		// `retired` is set after a majority had the `end`: this snapshot had all of
		// the lane (T4).
		if l.Retired {
			h.Retire(l.Number)
		}
	}
	if h.Equal(t.h) {
		return false
	}
	t.h = h
	return true
}

// Opened: a stream was opened at the time of a pass, and the last pass has found
// nothing (T3). What was news before n, it has seen.
func (t *Tail) Opened(n News) { t.streaming, t.last, t.seen, t.full = true, n.Now, n, 0 }

// Turn tells why the lanes are to be looked at now; empty: the stream does.
func (t *Tail) Turn(n News) string {
	quiet := since(n.Now, t.last)
	switch {
	case n.Lanes != t.seen.Lanes:
		return byLane
	case quiet > t.o.Silent && t.on(ruleSilence):
		return bySilence
	case quiet > t.o.Quiet && t.Poked(n.Pokes):
		return byPoke
	}
	return ""
}

// Poked tells whether a client asks that has no answer yet.
func (t *Tail) Poked(pokes uint64) bool { return pokes != t.seen.Pokes }

// Heard: there is an event. Who asked before has this answer.
func (t *Tail) Heard(n News) { t.last, t.seen.Pokes = n.Now, n.Pokes }

// Fetched: a reply was read. Loaded tells whether as many as Full in a row were
// full: the stream does not keep up.
func (t *Tail) Fetched(full bool) {
	t.full++
	if !full {
		t.full = 0
	}
}

// Loaded tells whether the stream does not keep up.
func (t *Tail) Loaded() bool { return t.full >= t.o.Full }

// Left: the tail passes from now on.
func (t *Tail) Left() { t.streaming = false }

// Streaming tells whether the stream is listened to.
func (t *Tail) Streaming() bool { return t.streaming }

// Event judges an insert that the stream tells of, by what the Book says of its
// lane. It is next if its n is the one behind H in its lane; one that is not after H
// is a repeat; anything else leads back to passing.
func (t *Tail) Event(id ID, n uint64, mine, unknown bool) Judged {
	m := schema.Mark{Lane: id.Number(), N: n}
	switch {
	case id <= 0:
		return Foreign
	case unknown && t.on(ruleForeignMark):
		return Unknown
	case !mine && t.on(ruleForeignMark):
		return Foreign
	case !t.h.After(m):
		if t.on(ruleRepeat) {
			return Repeat
		}
	default:
		if at, ok := t.h.N(m.Lane); t.on(ruleGap) && (!ok || at+1 != m.N) {
			return Gap
		}
	}
	return Next
}

// Met tells whether a pass has met the message that an update has adopted. If not,
// the lanes have it: the update does not bring the document.
func (t *Tail) Met(id ID, n uint64, mine bool) bool {
	return id > 0 && mine && !t.h.After(schema.Mark{Lane: id.Number(), N: n})
}
