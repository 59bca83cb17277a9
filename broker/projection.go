package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

const (
	// saveRetainedEvery is how often the projection is stored. It is not on the
	// way of an acknowledgement: the log has everything.
	saveRetainedEvery = time.Second
	// checkpointEvery bounds what a start has to read of the log when nothing
	// is retained.
	checkpointEvery = 30 * time.Second
	// tombstoneAge is from when on a topic that a former run has cleared is not
	// remembered here beyond the start.
	tombstoneAge = tombstoneTurns * saveRetainedEvery
	// walkTopics bounds the topics looked at in one call of Next.
	walkTopics = 1000
)

// projection holds the retained message of each topic, by topic order. The hub
// shows it every message; it is stored with a checkpoint now and then, and brought
// up to date from the log at the start. Safe for concurrent use.
//
// Invariant: of two messages of a topic the one that Supersedes wins, in whatever
// order they are met; tombstones included.
type projection struct {
	store interface {
		store.Retained
		store.Reader
	}
	m     *Metrics
	limit int64
	now   func() time.Time

	mu     sync.RWMutex
	topics *btree.BTreeG[*schema.Message] // those that hold something
	bytes  int64
	count  int
	dirty  map[string]*schema.Message // to be stored: what there is, or the empty message
	graves tombstones

	// Of the saver alone.
	saved   time.Time
	savedAt schema.Cursor
}

var _ session.Retained = (*projection)(nil)

func newProjection(o *Options, s store.Store) *projection {
	return &projection{
		store: s, m: o.Metrics, limit: o.RetainedBytes, now: o.Now,
		topics: btree.NewG(32, func(a, b *schema.Message) bool { return a.Topic < b.Topic }),
		dirty:  make(map[string]*schema.Message),
		graves: newTombstones(o.RetainedBytes),
	}
}

// observe takes every message of the log [MQTT-3.3.1-5]. RETAIN=0 leaves what is
// retained alone [MQTT-3.3.1-8], and so does the end of a session ([MQTT-3.1.2-7]
// of 3.1.1).
func (p *projection) observe(m *schema.Message) {
	if m.Retain {
		p.put(m, true)
	}
}

func (p *projection) put(m *schema.Message, dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	empty := len(m.Payload) == 0 // [MQTT-3.3.1-6, MQTT-3.3.1-7]
	old, had := p.topics.Get(m)
	if had && !m.Supersedes(old) {
		return
	}
	if empty || p.graves.len() > 0 {
		k := keyOf(m.Topic)
		switch {
		case !had && !p.graves.allows(k, m):
			return
		case empty:
			aged := !dirty && p.now().Sub(m.Created) > tombstoneAge
			p.graves.add(k, m, had, aged)
		default:
			p.graves.remove(k)
		}
	}
	if had {
		p.account(old, -1)
	}
	if empty {
		p.topics.Delete(m)
	} else {
		p.topics.ReplaceOrInsert(m)
		p.account(m, 1)
	}
	if dirty {
		p.soil(m)
	}
}

// soil notes what is to be stored. Of an empty message only what the store needs is
// kept meanwhile. REQUIRES: mu.
func (p *projection) soil(m *schema.Message) {
	if m.Properties != nil && len(m.Payload) == 0 {
		c := *m
		c.Properties = nil
		m = &c
	}
	p.graves.unsaved += emptySize(m) - emptySize(p.dirty[m.Topic])
	p.dirty[m.Topic] = m
}

// emptySize gives the memory of an empty message; one that is not is counted with the
// topics.
func emptySize(m *schema.Message) int64 {
	if m == nil || len(m.Payload) > 0 {
		return 0
	}
	return int64(m.Size())
}

// account keeps the totals. REQUIRES: mu.
func (p *projection) account(m *schema.Message, sign int) {
	if m.Topic[0] == '$' {
		return // the broker's own
	}
	p.bytes += int64(sign * m.Size())
	p.count += sign
	p.m.retained(p.count, p.bytes)
}

// totals gives the number of retained messages and their memory.
func (p *projection) totals() (messages int, bytes int64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.count, p.bytes
}

// has tells whether a topic has a retained message that clients have published.
func (p *projection) has(topic string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return topic[0] != '$' && p.topics.Has(&schema.Message{Topic: topic})
}

// admits tells whether a retained message of size bytes may be published. An empty one
// is refused only when so many topics were cleared within the last minute or two that
// no more of them can be remembered: to take it and to forget it, or another, might
// bring back what was cleared.
func (p *projection) admits(topic string, size int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	old, ok := p.topics.Get(&schema.Message{Topic: topic})
	if size == 0 {
		return p.graves.admits(ok)
	}
	return p.bytes+int64(size) <= p.limit || ok && len(old.Payload) >= size
}

// Next gives the first retained message after a topic that matches filter; see
// session.Retained.
func (p *projection) Next(filter, after string) (m *schema.Message, at string, end bool) {
	prefix := filter
	if i := strings.IndexAny(filter, "+#"); i >= 0 {
		prefix = strings.TrimSuffix(filter[:i], "/") // sport/# matches sport, too
	}
	from := prefix
	if after != "" && after >= prefix {
		from = after + "\x00" // the next string there is
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	n := 0
	at, end = after, true
	p.topics.AscendGreaterOrEqual(&schema.Message{Topic: from}, func(e *schema.Message) bool {
		if !strings.HasPrefix(e.Topic, prefix) {
			return false
		}
		at = e.Topic
		if schema.Match(filter, e.Topic) {
			m, end = e, false
			return false
		}
		if n++; n == walkTopics {
			end = false
			return false
		}
		return true
	})
	return m, at, end
}

// load brings the projection up to head: what is stored, then the log from the
// checkpoint on. The hub may show it newer messages meanwhile.
func (p *projection) load(ctx context.Context, head schema.Cursor) error {
	checkpoint, err := p.store.LoadRetained(ctx, func(m *schema.Message) error {
		p.put(m, false)
		return nil
	})
	if err != nil {
		return fmt.Errorf("load retained messages: %w", err)
	}
	msgs, err := p.store.Read(ctx, checkpoint, head, []string{"#"})
	if err != nil {
		return fmt.Errorf("read the log from the checkpoint of the retained messages: %w", err)
	}
	for {
		m, err := msgs.Next(ctx)
		if errors.Is(err, io.EOF) {
			p.mu.Lock()
			p.graves.loaded(checkpoint)
			p.mu.Unlock()
			return msgs.Close()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read the log from the checkpoint of the retained messages: %w", err), msgs.Close())
		}
		p.observe(m)
	}
}

// save stores what has changed since the last time. h is the hub's, taken before:
// everything not after it has been observed.
func (p *projection) save(ctx context.Context, h schema.Cursor) error {
	dirty, msgs := p.takeDirty(h)
	idle := p.now().Sub(p.saved)
	if len(msgs) == 0 && (h.Equal(p.savedAt) || idle >= 0 && idle < checkpointEvery) {
		p.clean(dirty, h)
		return nil
	}
	if err := p.store.StoreRetained(ctx, msgs, h); err != nil {
		p.giveBack(dirty)
		return fmt.Errorf("store %d retained messages: %w", len(msgs), err)
	}
	p.clean(dirty, h)
	p.saved, p.savedAt = p.now(), h
	return nil
}

// takeDirty takes all that is to be stored; msgs is what has to be. With one lane the
// store needs no tombstone of a topic of which it has nothing.
func (p *projection) takeDirty(h schema.Cursor) (dirty map[string]*schema.Message, msgs []*schema.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dirty = p.dirty
	p.dirty = make(map[string]*schema.Message)
	msgs = make([]*schema.Message, 0, len(dirty))
	for _, m := range dirty {
		if len(m.Payload) == 0 && oneLane(h) && !h.After(m.Mark) {
			if g, ok := p.graves.find(keyOf(m.Topic)); ok && g.bare {
				continue
			}
		}
		msgs = append(msgs, m)
	}
	return dirty, msgs
}

// giveBack puts back what was not stored, unless there is a newer one.
func (p *projection) giveBack(dirty map[string]*schema.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, m := range dirty {
		if p.dirty[t] == nil {
			p.dirty[t] = m
		} else {
			p.graves.unsaved -= emptySize(m)
		}
	}
}

// clean ends what was stored. What h has not passed was not taken out before.
func (p *projection) clean(dirty map[string]*schema.Message, h schema.Cursor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range dirty {
		p.graves.unsaved -= emptySize(m)
	}
	p.graves.saved(h)
}

// run saves until ctx ends, and once more then.
func (p *projection) run(ctx context.Context, life context.Context, h func() schema.Cursor, trouble func(error)) {
	tick := time.NewTicker(saveRetainedEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := p.save(life, h()); err != nil {
				trouble(err)
			}
			return
		}
		if err := p.save(ctx, h()); err != nil && ctx.Err() == nil {
			trouble(err)
		}
	}
}
