package mongo

import (
	"context"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// Append queues msgs in the lane of their publisher, see store.Appender. After kill
// done is never called.
func (s *Store) Append(ctx context.Context, pub *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	p := &lane.Pending{
		Context: ctx, Pub: pub, Done: done, Queued: time.Now(),
		Msgs: append([]*schema.Message(nil), msgs...), Answers: make([]store.Appended, len(msgs)),
	}
	w := s.writers[hash(pub.ClientID)%uint32(len(s.writers))]
	if ctx.Done() != nil {
		p.Stop = context.AfterFunc(ctx, w.wake)
	}
	if w.put(p) {
		return
	}
	if p.Stop != nil {
		p.Stop()
	}
	for i := range p.Answers {
		p.Answers[i] = store.Appended{Outcome: store.Refused, Err: store.ErrClosed}
	}
	// Not by this goroutine: it may hold what done waits for. And behind the answers
	// of what the publisher has appended before: the writer is ending, and then all
	// of them are given.
	go func() {
		<-w.gone
		if !s.killed.Load() {
			done(p.Answers)
		}
	}()
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
