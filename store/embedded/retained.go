package embedded

import (
	"context"
	"time"

	"rewindmq/schema"
)

// tombstoneLife is how long a cleared topic is remembered.
const tombstoneLife = 24 * time.Hour

// LoadRetained implements store.Retained.
func (l *Log) LoadRetained(ctx context.Context, fn func(*schema.Message) error) (schema.Cursor, error) {
	var checkpoint schema.Cursor
	if err := l.wait(ctx); err != nil {
		return checkpoint, err
	}
	if err := l.enter(); err != nil {
		return checkpoint, err
	}
	defer l.leave()
	// The checkpoint is read first: it may then be older than the messages, and
	// what lies between is met twice, which does no harm.
	value, err := l.get([]byte{keyCheckpoint})
	if err != nil {
		return checkpoint, err
	}
	if value != nil {
		r := decode(value)
		checkpoint = r.cursor()
		if err := r.end(); err != nil {
			return schema.Cursor{}, corrupt([]byte{keyCheckpoint}, err)
		}
	}
	err = l.scan([]byte{keyRetained}, nil, func(key, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := readRetained(key, append([]byte(nil), value...))
		if err != nil {
			return err
		}
		return fn(m)
	})
	if err != nil {
		return schema.Cursor{}, err
	}
	return checkpoint, nil
}

func putRetained(b []byte, m *schema.Message) []byte {
	return putMessage(putMark(append(b, encoding), m.Mark), m)
}

// readRetained keeps parts of value.
func readRetained(key, value []byte) (*schema.Message, error) {
	r := decode(value)
	m := &schema.Message{Topic: string(key[1:]), Mark: r.mark()}
	if r.err != nil {
		return nil, corrupt(key, r.err)
	}
	if err := readMessage(m, r.b, nil); err != nil {
		return nil, corrupt(key, err)
	}
	return m, nil
}

// StoreRetained implements store.Retained.
func (l *Log) StoreRetained(ctx context.Context, msgs []*schema.Message, checkpoint schema.Cursor) error {
	return l.do(ctx, "store_retained", &call{stage: func(c *committer) error {
		for _, m := range msgs {
			if err := c.storeRetained(m); err != nil {
				return c.l.engine.fail(err)
			}
		}
		return c.moveCheckpoint(checkpoint)
	}})
}

func (c *committer) storeRetained(m *schema.Message) error {
	key := stringKey(nil, keyRetained, m.Topic)
	value, err := c.get(key)
	if err != nil {
		return err
	}
	var old *schema.Message
	if value != nil {
		if old, err = readRetained(key, value); err != nil {
			return err
		}
	}
	if !m.Supersedes(old) {
		return nil
	}
	c.setRead(key, putRetained(nil, m))
	if len(m.Payload) == 0 {
		c.set(agendaKey(nil, keyTombstone, c.now.Add(tombstoneLife).UnixNano(), m.Topic), m.ID[:])
	}
	return nil
}

// moveCheckpoint never moves it back.
func (c *committer) moveCheckpoint(checkpoint schema.Cursor) error {
	key := []byte{keyCheckpoint}
	value, err := c.get(key)
	if err != nil {
		return c.l.engine.fail(err)
	}
	if value != nil {
		r := decode(value)
		old := r.cursor()
		if err := r.end(); err != nil {
			return c.l.engine.fail(corrupt(key, err))
		}
		checkpoint = checkpoint.Clone()
		checkpoint.Merge(old)
	}
	c.setRead(key, putCursor([]byte{encoding}, checkpoint))
	return nil
}

// sweepTombstones forgets topics that were cleared a day ago.
func (c *committer) sweepTombstones() error {
	if err := c.commit(); err != nil {
		return err
	}
	upTo := agendaKey(nil, keyTombstone, c.now.UnixNano()+1, "")
	return c.l.scanRange([]byte{keyTombstone}, upTo, 1000, func(key, value []byte) error {
		if len(key) < 9 {
			return corrupt(key, errShort)
		}
		c.delete(key)
		retained := stringKey(nil, keyRetained, string(key[9:]))
		there, err := c.get(retained)
		if err != nil || there == nil {
			return err
		}
		m, err := readRetained(retained, there)
		if err != nil {
			return err
		}
		if len(m.Payload) == 0 && string(m.ID[:]) == string(value) {
			c.deleteRead(retained)
		}
		return nil
	})
}
