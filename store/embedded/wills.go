package embedded

import (
	"context"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// disconnectWills times the will of the connection that ends now: removed after
// a normal DISCONNECT [MQTT-3.14.4-3], else due when its delay is over or the
// session ends, whichever is first [MQTT-3.1.2-8].
func (c *committer) disconnectWills(d *document, normal bool) {
	kept := d.wills[:0]
	for _, w := range d.wills {
		if w.Epoch == d.epoch && !w.Due {
			if normal {
				continue
			}
			delay := w.Delay
			if d.expiry != schema.NoExpiry {
				delay = min(delay, d.expiry)
			}
			w.At = c.now.Add(time.Duration(delay) * time.Second)
			w.Due = delay == 0
		}
		kept = append(kept, w)
	}
	d.wills = kept
}

// decideWills decides the wills of former connections for a claim. Those of a
// session that ends are due. While it goes on, one whose delay is over, or that
// has none, is due; for the others the client came back in time.
func (c *committer) decideWills(old *document, present bool) []schema.Will {
	var kept []schema.Will
	for _, w := range old.wills {
		if w.Due {
			kept = append(kept, w)
			continue
		}
		at := w.At
		if at.IsZero() { // its connection ends by this claim
			at = c.now.Add(time.Duration(w.Delay) * time.Second)
		}
		switch {
		case !at.After(c.now):
		case !present:
			at = c.now
			if end, ends := old.endsAt(); ends && end.Before(at) {
				at = end
			}
		default:
			continue
		}
		w.At, w.Due = at, true
		kept = append(kept, w)
	}
	return kept
}

// takeOutWill removes a will that has been appended. With the last of them goes
// the document of a session that has ended.
func (c *committer) takeOutWill(w store.TakeOutWill) error {
	old, err := c.document(w.ClientID)
	if err != nil || old == nil {
		return err
	}
	next := old.clone()
	kept := next.wills[:0]
	for _, will := range next.wills {
		if will.Key != w.Key {
			kept = append(kept, will)
		}
	}
	if len(kept) == len(old.wills) {
		return nil
	}
	next.wills = kept
	if s := c.owned[w.ClientID]; s != nil {
		s.doc = next
	}
	if !next.exists() {
		c.putEnded(w.ClientID, old, next)
		return nil
	}
	c.putDocument(w.ClientID, old, next)
	return nil
}

// DueWills implements store.Keeper.
func (l *Log) DueWills(ctx context.Context, limit int) ([]store.DueWill, error) {
	var due []store.DueWill
	err := l.do(ctx, "due_wills", &call{stage: func(c *committer) error {
		due = nil
		return c.onAgenda(keyWill, func(clientID string) (bool, error) {
			if err := c.decideDue(clientID, &due); err != nil {
				return false, err
			}
			return len(due) < limit, nil
		})
	}})
	if err != nil {
		return nil, err
	}
	return due[:min(len(due), max(limit, 0))], nil
}

// decideDue marks the wills of a session whose delay is over, and collects all
// that are due.
func (c *committer) decideDue(clientID string, due *[]store.DueWill) error {
	old, err := c.document(clientID)
	if err != nil || old == nil || old.owned {
		return err
	}
	next := old.clone()
	changed := false
	for i := range next.wills {
		w := &next.wills[i]
		if !w.Due && !w.At.After(c.now) {
			w.Due, changed = true, true
		}
		if w.Due {
			*due = append(*due, store.DueWill{ClientID: clientID, Will: *w})
		}
	}
	if changed {
		c.putDocument(clientID, old, next)
	}
	return nil
}

// onAgenda calls fn for the clients whose time on an agenda has come, in order
// of time, until it says false.
func (c *committer) onAgenda(prefix byte, fn func(clientID string) (more bool, err error)) error {
	// The engine does not show what is only staged.
	if err := c.commit(); err != nil {
		return err
	}
	var due []string
	upTo := agendaKey(nil, prefix, c.now.UnixNano()+1, "")
	more := true
	var last []byte
	for more {
		due = due[:0]
		err := c.l.scanRange(append([]byte{prefix}, last...), upTo, 256, func(key, _ []byte) error {
			if len(key) < 9 {
				return corrupt(key, errShort)
			}
			due = append(due, string(key[9:]))
			last = append(append(last[:0], key[1:]...), 0)
			return nil
		})
		if err != nil || len(due) == 0 {
			return err
		}
		for _, clientID := range due {
			if more, err = fn(clientID); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// EndExpired implements store.Keeper.
func (l *Log) EndExpired(ctx context.Context, limit int) ([]schema.Owner, error) {
	var ended []schema.Owner
	err := l.do(ctx, "end_expired", &call{stage: func(c *committer) error {
		ended = nil
		if limit <= 0 {
			return nil
		}
		return c.onAgenda(keyEnd, func(clientID string) (bool, error) {
			d, err := c.document(clientID)
			if err != nil {
				return false, err
			}
			// A document with a will is not deleted.
			if end, ends := d.endsAt(); !ends || c.now.Before(end) || len(d.wills) > 0 {
				return true, nil
			}
			if err := c.endSession(d.session); err != nil {
				return false, err
			}
			c.putDocument(clientID, d, nil)
			ended = append(ended, schema.Owner{ClientID: clientID, SID: d.sid, Epoch: d.epoch})
			return len(ended) < limit, nil
		})
	}})
	return ended, err
}

// Counts implements store.Keeper.
func (l *Log) Counts(ctx context.Context) (store.Counts, error) {
	var n store.Counts
	err := l.do(ctx, "counts", &call{always: true, stage: func(c *committer) error {
		n = store.Counts{Sessions: int(c.state.sessions), Subscriptions: int(c.state.subscriptions), Shared: int(c.shared)}
		return nil
	}})
	return n, err
}
