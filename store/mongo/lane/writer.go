package lane

import (
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Options are what a Writer has to know.
type Options struct {
	// Hold is append.hold: for how long a batch may be in doubt.
	Hold time.Duration
	// Batch and BatchBytes bound a batch: what waits beyond goes into the next.
	Batch, BatchBytes int
	// MaxPayload is the longest payload that is stored, in bytes.
	MaxPayload int
	// MaxSize is the largest message that is stored, by schema.Message.Size, in bytes.
	MaxSize int
	// NewID makes the id of a stopper.
	NewID func() schema.ID
	// Fresh is a quarter of the retention; 0: nothing is ever taken. A document is there
	// for twice as long after it was sent.
	Fresh time.Duration
}

// Env is what a Writer cannot know by itself, at the moment of Next.
type Env struct {
	Now time.Time
	// Node is this node's id. It changes when the node was declared dead.
	Node schema.ID
	// Paused: the process has just woken from a pause.
	Paused bool
	// Silent: the lease is over, no heartbeat was acknowledged for that long.
	Silent bool
	// Suspect counts the reasons to look again: pauses, and times when this node
	// was declared dead.
	Suspect uint64
	// Closing: nothing more is offered; what waits is written, then the lane ends.
	Closing bool
}

// stage is where a Writer stands.
type stage uint8

const (
	atTurn   stage = iota // between two batches
	atFresh               // the lease was over: is this node still itself?
	atLane                // has it a lane of its own?
	atOpen                // no
	atTake                // the next batch
	atVerify              // is what it holds still this node's?
	atSend                // until all of the batch is settled
	atLook                // in doubt
	atMeet                // behind a stopper of somebody else's: is the rest still this node's?
)

// Writer appends what is waiting to one lane after another. A publisher belongs to
// one writer, and a writer has one batch in flight: so what a publisher appends
// commits in the order of its Appends.
//
// Next tells what to do; each method named after a thing done tells what came of
// it. For one goroutine.
type Writer struct {
	o   Options
	off rule
	now time.Time

	stage stage
	lane  ID // 0: none is open
	node  schema.ID
	next  uint64
	// batch is in flight, or carried into the next lane.
	batch []item
	base  []item // where batch begins, for the next one
	// began is when the batch was first sent in this lane; zero: it was not.
	began  time.Time
	giving schema.ID // giving up: the id of the stopper

	sent  time.Time // when the last batch was
	fresh time.Time // when that was sent which has stored the newest document, or the lane
	left  ID        // a lane that is not used any more, to be retired; 0: none

	// doubts counts what makes a publisher's place here doubtful; verified holds
	// those that were looked up since.
	doubts   uint64
	seen     uint64
	verified map[*store.Publisher]struct{}
	ask      map[*store.Publisher]struct{}

	queue   []*Pending // not wholly taken
	waiting []*Pending // not answered, in the order of their Appends
	settled bool       // something was, since Answered
	out     []*Pending
	held    map[*store.Publisher]bool

	doubt    time.Time // since when it cannot go on; zero: it can
	doubtful bool      // from now on
	pause    time.Duration
	tried    time.Time // when the present stage was first tried
	rest     bool      // before going on
	retrying bool      // the present stage has failed
}

// NewWriter gives a Writer without a lane.
func NewWriter(o Options) *Writer {
	return &Writer{o: o, held: map[*store.Publisher]bool{}}
}

func (w *Writer) on(r rule) bool { return w.off&r == 0 }

// Lane gives the lane that is open; 0: none.
func (w *Writer) Lane() ID { return w.lane }

// Last gives the lane that is open, and up to where all in it is settled.
func (w *Writer) Last() (ID, uint64) { return w.lane, w.next - min(1, w.next) }

// Node gives the name under which the lane was opened.
func (w *Writer) Node() schema.ID { return w.node }

// Doubt tells since when the writer cannot go on; zero: it can.
func (w *Writer) Doubt() time.Time { return w.doubt }

// Len is the number of messages of the batch.
func (w *Writer) Len() int { return len(w.batch) }

// Message gives the i-th message of the batch. It is the writer's.
func (w *Writer) Message(i int) *schema.Message { return w.batch[i].msg() }

// Asked gives the publishers to be verified. The map is the writer's.
func (w *Writer) Asked() map[*store.Publisher]struct{} { return w.ask }

func (w *Writer) idle() bool { return len(w.queue) == 0 && len(w.batch) == 0 }

// goesOn: nothing is in doubt any more.
func (w *Writer) goesOn() { w.doubt, w.doubtful = time.Time{}, false }

// enter begins a stage that is tried until it succeeds.
func (w *Writer) enter(s stage) {
	w.stage, w.pause, w.tried = s, firstRest, w.now
}

// Next tells what to do.
func (w *Writer) Next(e Env) Action {
	w.now = e.Now
	if w.doubtful && w.doubt.IsZero() {
		w.doubt = w.now
	}
	w.doubtful = false
	if !w.doubt.IsZero() {
		w.expire()
	}
	if w.rest {
		w.rest = false
		d := w.pause
		w.pause = backoff(d)
		return Action{Do: Rest, Rest: d}
	}
	if w.retrying {
		w.retrying = false
		w.retry()
	}
	for {
		if a, ok := w.decide(&e); ok {
			return a
		}
	}
}

// retry comes before a stage is tried again.
func (w *Writer) retry() {
	back := atTurn
	if w.stage == atMeet {
		back = atSend
	}
	switch {
	case w.idle():
		w.stage = back
	case since(w.now, w.tried) > w.o.Hold:
		w.refuseRest() // it was not sent, or has certainly failed
		w.stage = back
	}
}

// decide goes one stage on; false: it is not decided yet.
func (w *Writer) decide(e *Env) (Action, bool) {
	switch w.stage {
	case atTurn:
		return w.turn(e)
	case atFresh:
		return Action{Do: Refresh}, true
	case atLane:
		w.own(e)
		if l := w.left; l != 0 {
			w.left = 0
			return Action{Do: Retire, Lane: l}, true
		}
	case atOpen:
		return Action{Do: Open}, true
	case atTake:
		w.take()
		w.began = time.Time{}
		w.enter(atVerify)
	case atVerify, atMeet:
		if w.ask == nil {
			w.asks(e)
		}
		if len(w.ask) > 0 {
			return Action{Do: Verify}, true
		}
		w.verifiedAll()
	case atSend:
		return w.send()
	case atLook:
		return Action{Do: Look, Lane: w.lane, N: w.next}, true
	}
	return Action{}, false
}

// turn begins a batch, if there is something to write.
func (w *Writer) turn(e *Env) (Action, bool) {
	w.expire()
	if w.idle() {
		w.goesOn()
		switch {
		case !e.Closing:
			return Action{Do: Wait}, true
		case w.lane == 0:
			return Action{Do: Done}, true
		}
		a := Action{Do: Retire, Lane: w.lane}
		w.lane = 0
		return a, true
	}
	if e.Paused && w.on(ruleWakeLooks) {
		w.doubts++
	}
	w.stage = atLane
	if e.Silent {
		w.enter(atFresh)
	}
	return Action{}, false
}

// own sees to a lane of this node's.
func (w *Writer) own(e *Env) {
	if w.lane != 0 && w.node != e.Node && w.on(ruleReborn) {
		// This node was declared dead: the keeper has ended the lane, or will.
		w.lane = 0
		w.doubts++
	}
	if w.lane != 0 && w.stale() {
		w.lane, w.left = 0, w.lane
	}
	if w.lane != 0 {
		w.stage = atTake
		return
	}
	// In the place of one that was ended. What the writer holds is looked up again
	// after the opening was acknowledged: so either a claimer sees the lane, or the
	// writer sees the claim (L12).
	if w.on(ruleReopenLooks) {
		w.doubts++
	}
	w.enter(atOpen)
}

// stale tells whether retention may take what stands in the lane before what is sent now
// goes in: the newest document, so that others do not find the place behind it, and an
// `end` or a stopper of theirs stops nothing (L7, L11); or a stopper of somebody else's
// that stands at next, so that a message would go in below H. The writer opens another
// lane instead.
func (w *Writer) stale() bool {
	return w.o.Fresh > 0 && since(w.now, w.fresh) > w.o.Fresh && w.on(ruleFresh)
}

// asks finds the publishers in the batch that were not verified since the last
// doubt. What their sessions have sent was sent again elsewhere, if they were
// claimed there (L8). Nothing of the batch has been sent at this n or above, or all
// of that has certainly failed.
func (w *Writer) asks(e *Env) {
	gen := w.doubts
	if w.on(ruleWakeLooks) {
		gen += e.Suspect
	}
	if gen != w.seen {
		w.seen, w.verified = gen, map[*store.Publisher]struct{}{}
	}
	if w.seen == 0 {
		return
	}
	for i := range w.batch {
		p := w.batch[i].Pub
		if _, ok := w.verified[p]; !ok && p.SID != 0 {
			if w.ask == nil {
				w.ask = map[*store.Publisher]struct{}{}
			}
			w.ask[p] = struct{}{}
		}
	}
}

// Verified tells which of the publishers that were asked for have lost their
// sessions: claimed since, ended, or not owned under the name of the lane (Node),
// into whose lanes a claimer would put its stoppers. What waits of them is taken out.
func (w *Writer) Verified(lost map[*store.Publisher]bool) {
	if len(w.verified) > 1<<16 {
		w.verified = map[*store.Publisher]struct{}{}
	}
	for p := range w.ask {
		w.verified[p] = struct{}{}
	}
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		if lost[it.Pub] {
			w.refuse(&it, store.ErrSessionLost, true)
			continue
		}
		kept = append(kept, it)
	}
	w.batch = kept
	w.verifiedAll()
}

func (w *Writer) verifiedAll() {
	w.ask = nil
	w.stage, w.pause = atSend, firstRest
}

// Refreshed: the write was acknowledged.
func (w *Writer) Refreshed() { w.stage = atLane }

// Opened: the writer has a lane, opened under the name of node since began. If this node
// has another name by now, it opens another lane: claimers put their stoppers into the
// lanes of the name that owns the session.
func (w *Writer) Opened(lane ID, node schema.ID, began time.Time) {
	w.lane, w.node, w.next, w.fresh = lane, node, 1, began
	if w.stage == atOpen {
		w.stage = atLane
	}
}

// Failed: Refresh, Open or Verify did not succeed. It is tried again after a rest,
// for as long as append.hold lets it.
func (w *Writer) Failed() {
	w.ask = nil
	w.doubtful, w.rest, w.retrying = true, true, true
}
