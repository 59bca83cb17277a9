package mongo

import (
	"context"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// pending is one Append on its way.
type pending struct {
	ctx     context.Context
	pub     *store.Publisher
	msgs    []*schema.Message
	done    func([]store.Appended)
	answers []store.Appended
	taken   int // messages that are in a batch, or settled
	settled int
	queued  time.Time
	stop    func() bool // of the watch on ctx
}

func (p *pending) answer(i int, a store.Appended) {
	p.answers[i] = a
	p.settled++
}

// item is one message of a batch.
type item struct {
	*pending
	i int
	// told: it was answered as in doubt, and is only followed up.
	told bool
}

func (it *item) msg() *schema.Message { return it.msgs[it.i] }

// Append queues msgs in the lane of their publisher, see store.Appender. After
// the store has stopped, done is called at once, by the caller; after kill, never.
func (s *Store) Append(ctx context.Context, pub *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	p := &pending{
		ctx: ctx, pub: pub, done: done, queued: time.Now(), stop: func() bool { return true },
		msgs: append([]*schema.Message(nil), msgs...), answers: make([]store.Appended, len(msgs)),
	}
	w := s.writers[hash(pub.ClientID)%uint32(len(s.writers))]
	if ctx.Done() != nil {
		p.stop = context.AfterFunc(ctx, w.wake)
	}
	if w.put(p) {
		return
	}
	p.stop()
	for i := range p.answers {
		p.answers[i] = store.Appended{Outcome: store.Refused, Err: store.ErrClosed}
	}
	done(p.answers)
}

// hash is FNV-1a: it decides which lane, record lane and session writer of a node
// a client belongs to.
func hash(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}
