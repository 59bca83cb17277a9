package broker

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// record is a delivery record under way, and whose it is.
type record struct {
	cl  *client
	doc *schema.Delivery
}

// recordLanes spreads records over lanes by client id: those of one session stay
// in order.
type recordLanes struct {
	seed  maphash.Seed
	lanes [lanes]*lane[record]
}

func newRecordLanes(seed maphash.Seed) recordLanes {
	r := recordLanes{seed: seed}
	for i := range r.lanes {
		r.lanes[i] = newLane[record]()
	}
	return r
}

func (r *recordLanes) put(cl *client, d *schema.Delivery) {
	r.lanes[maphash.String(r.seed, cl.id)%lanes].put(record{cl, d})
}

// write is a session write under way, and who waits for it.
type write struct {
	cl   *client // nil: nobody's in particular
	doc  store.Write
	done func(error)
}

// writeLanes spreads session writes over lanes by client id: those of one session
// stay in order, and the store gets them from one goroutine.
type writeLanes struct {
	seed  maphash.Seed
	lanes [lanes]*lane[write]
}

func newWriteLanes(seed maphash.Seed) writeLanes {
	w := writeLanes{seed: seed}
	for i := range w.lanes {
		w.lanes[i] = newLane[write]()
	}
	return w
}

func (w *writeLanes) put(item write) {
	w.lanes[maphash.String(w.seed, store.OwnerOf(item.doc).ClientID)%lanes].put(item)
}

// runLanes starts the workers that hand what waits to the store.
func (b *Broker) runLanes(ctx context.Context, work *errgroup.Group) {
	for i := range lanes {
		work.Go(func() error { b.records.lanes[i].run(ctx, b.record); return nil })
		work.Go(func() error { b.writes.lanes[i].run(ctx, b.write); return nil })
	}
	work.Go(func() error { b.claims.run(ctx, b.claimAll); return nil })
}

// record hands records to the store. Once one of a client has failed, none of its
// later ones may be stored: what lies behind it was never sent, and a record above
// a hole would say that it was. Their answer is that of the first.
func (b *Broker) record(batch []record) {
	docs := make([]schema.Delivery, 0, len(batch))
	for i := range batch {
		if batch[i].cl.unrecorded == nil {
			docs = append(docs, *batch[i].doc)
		}
	}
	answers := b.store.Record(b.life, docs)
	for i, k := 0, 0; i < len(batch); i++ {
		cl := batch[i].cl
		err := cl.unrecorded
		if k < len(docs) && docs[k].ID == batch[i].doc.ID {
			err = answers[k]
			k++
			if err != nil && !errors.Is(err, store.ErrClaimed) && cl.unrecorded == nil {
				cl.unrecorded = err
			}
		}
		cl.input(func(s *session.Session) { s.OnRecorded(err, errors.Is(err, store.ErrSessionLost)) })
	}
}

// write hands session writes to the store. Once one of a client has failed, none
// of its later ones may land: a cursor beyond a place that was not stored would
// hide what lies between.
func (b *Broker) write(batch []write) {
	docs := make([]store.Write, 0, len(batch))
	sent := make([]bool, len(batch))
	for i := range batch {
		if cl := batch[i].cl; cl == nil || cl.unwritten == nil {
			docs, sent[i] = append(docs, batch[i].doc), true
		}
	}
	answers := b.store.Write(b.life, docs)
	for i, k := 0, 0; i < len(batch); i++ {
		cl := batch[i].cl
		var err error
		if sent[i] {
			err = answers[k]
			k++
			if cl != nil && err != nil && cl.unwritten == nil {
				cl.unwritten = err
			}
		} else {
			err = cl.unwritten
		}
		batch[i].done(err)
	}
}

// claimPatience is for how long a batch of claims keeps others waiting.
const claimPatience = 20 * time.Millisecond

// claimAll claims for a batch. A claim that waits for another node's owner does not
// hold up those that come behind it: they are of other clients. What is under way is
// bounded by the connections, each of which waits for its answer.
func (b *Broker) claimAll(batch []claimCall) {
	calls := slices.Clone(batch)
	done := make(chan struct{})
	b.tasks.Go(func() {
		defer close(done)
		claims := make([]store.Claim, len(calls))
		for i := range calls {
			claims[i] = calls[i].claim
		}
		for i, answer := range b.store.Claim(b.life, claims) {
			calls[i].answer <- answer
		}
	})
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
	}
}

// scratchPool lends action buffers.
type scratchPool struct{ pool sync.Pool }

func (p *scratchPool) get() *[]session.Action {
	if b, ok := p.pool.Get().(*[]session.Action); ok {
		return b
	}
	b := make([]session.Action, 0, 16)
	return &b
}

func (p *scratchPool) put(b *[]session.Action) {
	if cap(*b) > 1024 {
		return
	}
	clear(*b)
	*b = (*b)[:0]
	p.pool.Put(b)
}
