package embedded

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// Record implements store.Deliveries. Records go through the committer and are
// synced: unsynced ones would not survive the process (S1).
func (l *Log) Record(ctx context.Context, batch []schema.Delivery) []error {
	errs := make([]error, len(batch))
	err := l.do(ctx, "record", &call{stage: func(c *committer) error {
		var lost map[string]error // sessions with a failed record
		for i := range batch {
			d := &batch[i]
			if errs[i] = lost[d.ClientID]; errs[i] != nil {
				continue
			}
			if errs[i] = c.record(d); errs[i] != nil && !errors.Is(errs[i], store.ErrClaimed) {
				if lost == nil {
					lost = make(map[string]error)
				}
				lost[d.ClientID] = errs[i]
			}
		}
		return nil
	}})
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

func (c *committer) record(d *schema.Delivery) error {
	s, err := c.holds(d.Owner)
	if err != nil {
		return err
	}
	if d.Seq <= s.last {
		if there, err := c.recorded(s, d); there || err != nil {
			return err
		}
	}
	if c.full() {
		if err := c.commit(); err != nil {
			return err
		}
	}
	if d.Group != "" {
		if err := c.claimMessage(d); err != nil {
			return err
		}
	}
	c.rollEpoch()
	s.record(d.Seq, c.epoch.id)
	c.touch(s.id)
	c.key = deliveryKey(c.key[:0], c.epoch.id, s.id, d.Seq)
	c.value = putDelivery(c.value[:0], d)
	c.set(c.key, c.value)
	return nil
}

// recorded tells whether a record is there already. One of another ID at its
// seq means that the caller does not know where its session stands.
func (c *committer) recorded(s *session, d *schema.Delivery) (bool, error) {
	// The engine does not show what is only staged.
	if _, ok := c.touched[s.id]; ok {
		if err := c.commit(); err != nil {
			return false, err
		}
	}
	for _, e := range slices.Backward(c.l.epochs.list()) {
		key := deliveryKey(nil, e.id, s.id, d.Seq)
		value, err := c.l.get(key)
		if err != nil {
			return false, err
		}
		if value == nil {
			continue
		}
		var old schema.Delivery
		if err := readDelivery(&old, value); err != nil {
			return false, corrupt(key, err)
		}
		if old.ID != d.ID {
			return false, fmt.Errorf("%w: client %q: seq %d is taken by record %s", store.ErrSessionLost, d.ClientID, d.Seq, old.ID)
		}
		return true, nil
	}
	return false, nil
}
