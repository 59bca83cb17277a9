package lane

import (
	"fmt"

	"rewindmq/schema"
	"rewindmq/store"
)

// send goes on with the batch until each of its messages is settled, or the lane
// was ended and what is left goes to the next.
func (w *Writer) send() (Action, bool) {
	if len(w.batch) == 0 || w.lane == 0 {
		if len(w.batch) == 0 {
			w.giving = schema.ID{}
			clear(w.base[:cap(w.base)])
			w.batch = w.base[:0]
		}
		w.goesOn()
		w.stage = atTurn
		return Action{}, false
	}
	if w.began.IsZero() {
		w.began = w.now
	}
	if w.giving.IsZero() && since(w.now, w.began) > w.o.Hold {
		if !w.on(ruleGiveUp) {
			w.refuseRest()
			return Action{}, false
		}
		w.giving = w.o.NewID()
	}
	if !w.giving.IsZero() {
		return Action{Do: Put, Lane: w.lane, N: w.next, ID: w.giving, Kind: Stopper}, true
	}
	w.sent = w.now
	return Action{Do: Insert, Lane: w.lane, N: w.next}, true
}

// Wrote tells what came of an attempt with the whole batch. ts rises with each
// document that was stored, and is below the stamp of the first by one.
func (w *Writer) Wrote(v Verdict, ts uint64) {
	if !v.Doubt && v.Stored == len(w.batch) {
		w.fresh = w.sent
	}
	for i := range v.Stored {
		ts++
		w.stored(&w.batch[i], schema.Mark{Lane: w.lane.Number(), N: w.next}, ts)
		w.next++
	}
	n := v.Stored
	if v.Refused {
		it := &w.batch[n]
		w.refuse(it, fmt.Errorf("mongo: message %v: %w", it.msg().ID, v.Err), it.Pub.Strict)
		n++
	}
	w.batch = w.batch[n:]
	if v.Refused {
		w.dropFailed()
	}
	w.wrote(v.Doubt)
}

// wrote goes on after an attempt.
func (w *Writer) wrote(doubt bool) {
	if !doubt {
		w.stage, w.pause = atSend, firstRest
		return
	}
	if w.on(ruleDoubtLooks) {
		w.doubts++
	}
	w.doubtful = true
	w.stage = atLook
	if !w.on(ruleLookUp) {
		w.stage, w.rest = atSend, true
	}
}

// Stopped tells what came of an attempt to give the rest of the batch up: a stopper
// at the first n in doubt. If it went in, nothing of the rest is or ever will be
// stored.
func (w *Writer) Stopped(v Verdict) {
	if v.Stored == 1 {
		w.next++
		w.refuseRest()
		w.wrote(false)
		return
	}
	if !w.on(ruleStopperDup) {
		w.refuseRest()
		w.wrote(false)
		return
	}
	// The hold is over, and no answer can be had: that is the answer.
	for i := range w.batch {
		if it := &w.batch[i]; !it.told {
			it.Pub.Fail()
			w.answer(it, store.Appended{Outcome: store.InDoubt, Err: errHold})
			it.told = true
		}
	}
	w.wrote(true)
}

// Looked follows a doubt: docs are those of the batch's ids, and what stands in the
// lane at N and above, by a majority read. What it shows is stored; the rest is
// numbered again from behind it.
func (w *Writer) Looked(docs []Doc) {
	mine := map[schema.ID]*Doc{}
	standing := map[uint64]*Doc{}
	for i := range docs {
		d := &docs[i]
		// A foreign insert under the same id is not stored before it is adopted.
		if d.Counts {
			mine[d.ID] = d
		}
		if d.Lane == w.lane {
			standing[d.N] = d
		}
	}
	moved := false
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		d, ok := mine[it.msg().ID]
		if !ok {
			kept = append(kept, it)
			continue
		}
		moved = true
		w.stored(&it, d.Mark(), d.TS)
	}
	w.batch = kept
	w.stage = atSend
	for w.lane != 0 && standing[w.next] != nil {
		d := standing[w.next]
		w.next++
		moved = true
		if d.Stop != "" {
			w.meet(d.Stop)
		}
	}
	if moved {
		w.pause = firstRest
		return
	}
	w.rest = true
}

// meet follows a stopper at an n that was in doubt. While giving up, anybody's does
// as well as one's own. Otherwise the rest is certainly not stored: take out what
// was claimed elsewhere, and number what is left from behind it. No writer goes on
// behind an `end`: it opens another lane (L7).
func (w *Writer) meet(kind string) {
	if !w.giving.IsZero() {
		w.refuseRest()
	}
	if kind == End && w.on(ruleEndStops) {
		w.lane = 0
		return
	}
	if w.stale() {
		w.lane, w.left = 0, w.lane // nobody knows how old the stopper is
		return
	}
	if !w.on(ruleMeetLooks) {
		return
	}
	w.doubts++
	if len(w.batch) > 0 {
		w.enter(atMeet)
	}
}

// LookFailed: the look did not succeed. The attempt is made again after a rest:
// what is there already makes it fail at the same n.
func (w *Writer) LookFailed() {
	w.stage, w.rest = atSend, true
}
