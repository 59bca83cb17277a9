package embedded

import (
	"time"

	"go.uber.org/zap"
)

// Recovery tells what Open found.
type Recovery struct {
	// TornFile is the engine's log file whose end was torn by a crash, and
	// TornBytes how much of it was cut; empty: none. What is cut was never
	// acknowledged.
	TornFile  string
	TornBytes int64
	// Sessions is how many sessions of connections that the last run left behind
	// were finished.
	Sessions int
}

// Recovery tells what Open found.
func (l *Log) Recovery() Recovery { return l.recovery }

// finishSessions finishes every session that a connection of the last run held:
// its cursor is brought up to the records and saved, its wills are timed from
// now, it is released, and its expiry counts from now. It comes before anything
// is served and before retention may drop a record (S8).
func (c *committer) finishSessions() error {
	for {
		var clients []string
		err := c.l.scanRange([]byte{keyOwned}, []byte{keyOwned + 1}, 256, func(key, _ []byte) error {
			clients = append(clients, string(key[1:]))
			return nil
		})
		if err != nil {
			return err
		}
		if len(clients) == 0 {
			break
		}
		for _, clientID := range clients {
			if err := c.finishSession(clientID); err != nil {
				return err
			}
		}
		if err := c.commit(); err != nil {
			return err
		}
		c.l.recovery.Sessions += len(clients)
	}
	if n := c.l.recovery.Sessions; n > 0 {
		c.l.log.Info("finished the sessions of the last run", zap.Int("sessions", n))
	}
	return nil
}

func (c *committer) finishSession(clientID string) error {
	old, err := c.document(clientID)
	if err != nil {
		return err
	}
	key := stringKey(nil, keyOwned, clientID)
	if !old.exists() || !old.owned {
		return corrupt(key, errMissing)
	}
	p, err := c.settleSession(clientID, old.session)
	if err != nil {
		return err
	}
	if err := c.handBackFlight(old.session, p); err != nil {
		return err
	}
	return c.letGo(clientID, old, old.clone(), false, false)
}

// settleSession brings a session's cursor up to its records and stages it.
func (c *committer) settleSession(clientID string, id uint64) (*place, error) {
	if _, ok := c.touched[id]; ok {
		// A read would not see what the batch holds of it.
		if err := c.commit(); err != nil {
			return nil, err
		}
	}
	s := &session{id: id}
	subs, cursor, err := c.l.readSession(clientID, s)
	if err != nil {
		return nil, err
	}
	// Retained runs have moved with the records; the place is stored with the
	// cursor that lies beyond (S24).
	for i := range subs {
		if subs[i].Run != nil {
			c.setRead(subscriptionKey(nil, s.id, subs[i].Filter), putSubscription(nil, &subs[i]))
		}
	}
	p := &place{SessionCursor: cursor, from: c.epoch.id}
	c.touch(s.id)
	c.set(sessionKey(nil, keyCursor, s.id), putPlace(nil, p))
	for seq := range s.received {
		c.delete(receivedKey(nil, s.id, seq))
	}
	return p, nil
}

// housekeep does what falls due by time: retention, tombstones, the clock. It is
// called each second.
func (c *committer) housekeep() error {
	if err := c.commit(); err != nil { // reads the clock
		return err
	}
	c.watchClock()
	if c.clock.convinced() {
		if err := c.believeClock(); err != nil {
			return err
		}
	}
	if absolute(c.now.UnixNano()-c.state.clock) > int64(time.Minute) {
		if err := c.saveState(); err != nil {
			return err
		}
	}
	if since := c.now.Sub(c.swept); since >= 0 && since < time.Minute {
		return nil
	}
	if err := c.sweepTombstones(); err != nil {
		return err
	}
	if err := c.observeOldest(); err != nil {
		return err
	}
	more, err := c.retain()
	if err != nil {
		return err
	}
	if !more {
		c.swept = c.now
	}
	return c.commit()
}

// watchClock reports when the machine's clock stops or begins to be believed.
func (c *committer) watchClock() {
	ahead := c.clock.ahead()
	before := time.Duration(c.l.clockAhead.Swap(int64(ahead)))
	switch {
	case ahead > 0 && before == 0:
		c.l.log.Error("the clock is implausibly far ahead: retention and the end of sessions wait",
			zap.Duration("ahead", ahead), zap.Time("last_known", c.clock.at), zap.Duration("believed_after", believeAfter))
	case ahead == 0 && before > 0:
		c.l.log.Info("the clock is plausible again", zap.Time("now", c.clock.at))
	}
}

// believeClock follows a clock that has been ahead for long.
func (c *committer) believeClock() error {
	from, by := c.clock.believe()
	c.begin()
	if err := c.moveSessions(from, by); err != nil {
		return err
	}
	c.l.log.Warn("the clock is believed now", zap.Duration("step", by))
	c.watchClock()
	return c.saveState()
}

// moveSessions moves what was timed from a moment on by a clock that was behind:
// no session and no will ends early by the step.
func (c *committer) moveSessions(from time.Time, by time.Duration) error {
	var clients []string
	err := c.l.scan([]byte{keyClient}, nil, func(key, value []byte) error {
		d, err := readDocument(value)
		if err != nil {
			return corrupt(key, err)
		}
		if !d.owned && !d.released.Before(from) {
			clients = append(clients, string(key[1:]))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, clientID := range clients {
		old, err := c.document(clientID)
		if err != nil {
			return err
		}
		next := old.clone()
		next.released = next.released.Add(by)
		for i := range next.wills {
			if w := &next.wills[i]; !w.Due && !w.At.IsZero() {
				w.At = w.At.Add(by)
			}
		}
		c.putDocument(clientID, old, next)
		if c.full() {
			if err := c.commit(); err != nil {
				return err
			}
		}
	}
	return c.commit()
}
