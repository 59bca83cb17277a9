package lane

import (
	"errors"
	"fmt"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

var (
	errHold    = errors.New("mongo: append.hold is over")
	errStopped = fmt.Errorf("%w: not written before the end", store.ErrClosed)
)

// Pending is one Append on its way. From Offer to Answered it belongs to the
// Writer, except what the caller keeps there for itself.
type Pending struct {
	Pub  *store.Publisher
	Msgs []*schema.Message
	// Answers has one place for each message.
	Answers []store.Appended
	Queued  time.Time
	// Context ends what waits here and is not sent yet.
	Context interface{ Err() error }
	// Done and Stop are the caller's: they are not called here.
	Done func([]store.Appended)
	Stop func() bool

	taken   int // messages that are in a batch, or settled
	settled int
}

// item is one message of a batch.
type item struct {
	*Pending
	i int
	// told: it was answered as in doubt, and is only followed up.
	told bool
}

func (it *item) msg() *schema.Message { return it.Msgs[it.i] }

func (w *Writer) answer(it *item, a store.Appended) {
	it.Answers[it.i] = a
	it.settled++
	w.settled = true
}

// Offer queues p behind what was offered before.
func (w *Writer) Offer(p *Pending) {
	w.queue = append(w.queue, p)
	w.waiting = append(w.waiting, p)
	w.settled = w.settled || len(p.Msgs) == 0
}

// Waiting counts the Appends that are not answered.
func (w *Writer) Waiting() int { return len(w.waiting) }

// Answered gives the Appends that are settled now, each publisher's in their
// order. The slice is valid until the next call.
func (w *Writer) Answered() []*Pending {
	if !w.settled {
		return nil
	}
	w.settled = false
	clear(w.out)
	w.out = w.out[:0]
	clear(w.held)
	kept := w.waiting[:0]
	for _, p := range w.waiting {
		if p.settled == len(p.Msgs) && !w.held[p.Pub] {
			w.out = append(w.out, p)
			continue
		}
		w.held[p.Pub] = true
		kept = append(kept, p)
	}
	clear(w.waiting[len(kept):])
	w.waiting = kept
	return w.out
}

// take moves what waits into the batch, and settles what will not be written.
func (w *Writer) take() {
	size, done := 0, 0
	for _, p := range w.queue {
		for p.taken < len(p.Msgs) && len(w.batch) < w.o.Batch && size < w.o.BatchBytes {
			it := item{Pending: p, i: p.taken}
			p.taken++
			if err := w.unwanted(&it); err != nil {
				w.refuse(&it, err, p.Pub.Strict)
				continue
			}
			size += 192 + len(it.msg().Payload) + len(it.msg().Topic)
			w.batch = append(w.batch, it)
		}
		if p.taken < len(p.Msgs) {
			break
		}
		done++
	}
	kept := copy(w.queue, w.queue[done:])
	clear(w.queue[kept:])
	w.queue = w.queue[:kept]
	if cap(w.batch) > cap(w.base) {
		w.base = w.batch[:0]
	}
}

// unwanted tells why a message is not to be written at all.
func (w *Writer) unwanted(it *item) error {
	switch {
	case it.Pub.Failed() && w.on(ruleBehindFails):
		return store.ErrPublisherFailed
	case it.Context.Err() != nil:
		return it.Context.Err()
	case len(it.msg().Payload) > w.o.MaxPayload:
		return fmt.Errorf("mongo: payload of %d bytes, at most %d are stored: %w", len(it.msg().Payload), w.o.MaxPayload, store.ErrTooLarge)
	case it.msg().Size() > w.o.MaxSize:
		return fmt.Errorf("mongo: message of %d bytes, at most %d are stored: %w", it.msg().Size(), w.o.MaxSize, store.ErrTooLarge)
	}
	return nil
}

// refuse settles a message that is certainly not stored and never will be.
func (w *Writer) refuse(it *item, err error, fail bool) {
	if fail {
		it.Pub.Fail()
	}
	if !it.told {
		w.answer(it, store.Appended{Outcome: store.Refused, Err: err})
	}
}

// stored settles a message that is there. ts is the server's own stamp where a
// look has shown it. Else it is a bound from above, which rises with n as well.
// The stamp itself comes with the tail; a read for it would cost every publish a
// round trip.
func (w *Writer) stored(it *item, at schema.Mark, ts uint64) {
	if it.told {
		return
	}
	it.msg().Mark, it.msg().TS = at, ts
	w.answer(it, store.Appended{Outcome: store.Stored, Mark: at})
}

// expire refuses what waits behind a writer that cannot go on for longer than
// append.hold, and what is not wanted any more. None of it was sent.
func (w *Writer) expire() {
	kept := w.queue[:0]
	for _, p := range w.queue {
		var err error
		switch {
		case p.Pub.Failed() && w.on(ruleBehindFails):
			err = store.ErrPublisherFailed
		case p.Context.Err() != nil:
			err = p.Context.Err()
		case !w.doubt.IsZero() && since(w.now, p.Queued) > w.o.Hold:
			err = errHold
		default:
			kept = append(kept, p)
			continue
		}
		for ; p.taken < len(p.Msgs); p.taken++ {
			w.refuse(&item{Pending: p, i: p.taken}, err, p.Pub.Strict || errors.Is(err, errHold))
		}
	}
	clear(w.queue[len(kept):])
	w.queue = kept
}

// refuseRest settles the batch: it is certainly not stored. Its publishers have
// failed: nothing behind overtakes.
func (w *Writer) refuseRest() {
	for i := range w.batch {
		w.refuse(&w.batch[i], errHold, true)
	}
	w.batch, w.giving = nil, schema.ID{}
}

// dropFailed takes out what its publisher has behind a message that failed (L5).
// Nothing of the batch was tried behind that message.
func (w *Writer) dropFailed() {
	if !w.on(ruleBehindFails) {
		return
	}
	kept := w.batch[:0]
	for i := range w.batch {
		it := w.batch[i]
		if it.Pub.Failed() {
			w.refuse(&it, store.ErrPublisherFailed, false)
			continue
		}
		kept = append(kept, it)
	}
	w.batch = kept
}

// Abandon answers all that is left, at an end that cannot wait any longer: what
// may have been sent is in doubt.
func (w *Writer) Abandon() {
	for i := range w.batch {
		if it := &w.batch[i]; !it.told {
			w.answer(it, store.Appended{Outcome: store.InDoubt, Err: errStopped})
		}
	}
	for _, p := range w.queue {
		for ; p.taken < len(p.Msgs); p.taken++ {
			w.answer(&item{Pending: p, i: p.taken}, store.Appended{Outcome: store.Refused, Err: errStopped})
		}
	}
	w.batch, w.queue = nil, nil
}
