package embedded

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// Append implements store.Appender. What is queued before Run has begun is
// committed when it has. After the end of Run, done is called by a short
// goroutine that only does that.
func (l *Log) Append(ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		answers := make([]store.Appended, len(msgs))
		for i := range answers {
			answers[i] = store.Appended{Outcome: store.Refused, Err: store.ErrClosed}
		}
		go done(answers)
		return
	}
	q := l.queue
	q.items = append(q.items, item{ctx: ctx, p: p, done: done, first: len(q.msgs), n: len(msgs)})
	q.msgs = append(q.msgs, msgs...)
	l.mu.Unlock()
	l.poke()
}

// heldAppend is an Append of a strict publisher that waits for room.
type heldAppend struct {
	item
	msgs []*schema.Message
}

// stageAppend stages the messages of one Append, or refuses them.
func (c *committer) stageAppend(it *item) error {
	msgs, answers := c.round.msgs[it.first:it.first+it.n], c.answers[it.first:it.first+it.n]
	if it.p.Strict && (c.space.low() || len(c.heldAppends) > 0) {
		// Nothing of this publisher may overtake what it has waiting. All of them
		// wait in one line until it is empty: so it is in order.
		c.heldAppends = append(c.heldAppends, heldAppend{*it, append([]*schema.Message(nil), msgs...)})
		it.done = nil
		return nil
	}
	return c.stageMessages(it, msgs, answers)
}

func (c *committer) stageMessages(it *item, msgs []*schema.Message, answers []store.Appended) error {
	if err := it.ctx.Err(); err != nil {
		c.refuse(it.p, answers, fmt.Errorf("store: append: %w", err))
		return nil
	}
	for i, m := range msgs {
		a := &answers[i]
		// First: what is stored is never said to be refused, though there is no
		// room for anything new.
		if n, ok, err := c.repeated(it.p, m); err != nil {
			return err
		} else if ok && !it.p.Failed() {
			*a = store.Appended{Outcome: store.Stored, Mark: schema.Mark{Lane: 1, N: n}}
			continue
		}
		if err := c.admit(it.p, m); err != nil {
			c.refuse(it.p, answers[i:i+1], err)
			continue
		}
		if err := c.stageMessage(it.p, m); err != nil {
			return err
		}
		*a = store.Appended{Outcome: store.Stored, Mark: m.Mark}
		if c.full() && i < len(msgs)-1 {
			if err := c.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// admit tells why a message is not taken.
func (c *committer) admit(p *store.Publisher, m *schema.Message) error {
	switch {
	case p.Failed():
		return store.ErrPublisherFailed
	case len(m.Payload) > maxPayload || len(m.Topic) > 65535 || m.Size()-len(m.Payload) > maxAround:
		return fmt.Errorf("%w: message %s: payload of %d bytes, at most %d, and %d around it, at most %d",
			store.ErrTooLarge, m.ID, len(m.Payload), maxPayload, m.Size()-len(m.Payload), maxAround)
	case c.space.low():
		return fmt.Errorf("%w: %s", store.ErrNoSpace, c.l.o.Dir)
	}
	return nil
}

// refuse answers that messages are certainly not stored. What a strict publisher
// has behind them is refused too (L5).
func (c *committer) refuse(p *store.Publisher, answers []store.Appended, err error) {
	for i := range answers {
		answers[i] = store.Appended{Outcome: store.Refused, Err: err}
	}
	if p.Strict && len(answers) > 0 {
		p.Fail()
	}
	c.l.count("append", err)
}

// stageMessage gives the next position and stages message and topic index.
func (c *committer) stageMessage(p *store.Publisher, m *schema.Message) error {
	c.rollEpoch()
	t, err := c.topicFor(m.Topic)
	if err != nil {
		return err
	}
	c.n++
	c.ts = max(c.ts+1, uint64(c.now.UnixNano()))
	m.Mark, m.TS = schema.Mark{Lane: 1, N: c.n}, c.ts
	m.Topic = t.name // one string for all messages of a topic
	c.key = messageKey(c.key[:0], c.n, t.id)
	c.value = putMessage(c.value[:0], m)
	c.set(c.key, c.value)
	c.index = append(c.index, indexEntry{c.epoch.id, t.id, c.n})
	c.items++
	c.noteSeen(p, m)
	c.staged = append(c.staged, m)
	return nil
}

// indexEntry is one entry of the topic index.
type indexEntry struct {
	epoch, topic uint32
	n            uint64
}

// stageIndex stages the topic index of the batch in the order of its keys,
// behind the messages, which are in the order of theirs: the engine's memtable
// then finds each place next to the last, which costs a third of finding it
// anew.
func (c *committer) stageIndex() {
	slices.SortFunc(c.index, func(a, b indexEntry) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.topic, b.topic), cmp.Compare(a.n, b.n))
	})
	for _, e := range c.index {
		c.key = topicKey(c.key[:0], e.epoch, e.topic, e.n)
		c.set(c.key, nil)
	}
	c.index = c.index[:0]
}

// answerAppends calls done for every Append of the round that is settled.
func (c *committer) answerAppends() {
	if c.round == nil {
		return
	}
	for i := range c.round.items[:c.settled] {
		it := &c.round.items[i]
		if it.done != nil {
			it.done(c.answers[it.first : it.first+it.n : it.first+it.n])
			it.done = nil
		}
	}
}

// retryHeld tries what waits for room again.
func (c *committer) retryHeld() error {
	if err := c.probeSpace(); err != nil {
		return err
	}
	c.begin()
	if !c.space.critical() {
		calls := c.heldCalls
		c.heldCalls = nil
		for _, k := range calls {
			if k.take() {
				if err := c.runCall(k); err != nil {
					return err
				}
			}
		}
	}
	held, stuck := c.heldAppends, false
	c.heldAppends = nil
	for i := range held {
		h := &held[i]
		// What has no future is answered at once; behind the first that has to
		// wait longer, all that has one waits.
		stuck = stuck || c.space.low()
		if stuck && !h.p.Failed() && h.ctx.Err() == nil {
			c.heldAppends = append(c.heldAppends, *h)
			continue
		}
		answers := make([]store.Appended, len(h.msgs))
		err := c.stageMessages(&h.item, h.msgs, answers)
		if err == nil {
			err = c.commit()
		}
		if err != nil {
			for k := range answers {
				answers[k] = store.Appended{Outcome: store.InDoubt, Err: err}
			}
			c.heldAppends = append(c.heldAppends, held[i+1:]...)
		}
		h.done(answers)
		if err != nil {
			return err
		}
	}
	return c.commit()
}

// refuseAll answers what will not be done any more.
func (c *committer) refuseAll(err error) {
	for i := range c.heldAppends {
		h := &c.heldAppends[i]
		answers := make([]store.Appended, len(h.msgs))
		for k := range answers {
			answers[k] = store.Appended{Outcome: store.Refused, Err: err}
		}
		h.done(answers)
	}
	for _, k := range c.heldCalls {
		if k.take() {
			k.err = err
			close(k.done)
		}
	}
	for _, w := range c.waiting {
		w.err = err
		close(w.call.done)
	}
	c.heldAppends, c.heldCalls, c.waiting = nil, nil, nil
}
