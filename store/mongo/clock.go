package mongo

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// serverClock is what this node knows of the server's clock: where it stood at a
// moment of the machine's monotonic clock. So a step of the machine's clock moves
// nothing, and retention, which the server carries out by its own clock, judges by
// the same time as what it judges was stamped with (F-27). Safe for concurrent use.
type serverClock struct {
	at  atomic.Pointer[anchor]
	off atomic.Bool // beyond the bound, when it was looked at last
}

// anchor is a moment by both clocks.
type anchor struct {
	local  time.Time // with a monotonic reading
	server time.Time
}

// when gives the server's time at a moment of this process.
func (a *anchor) when(local time.Time) time.Time { return a.server.Add(local.Sub(a.local)) }

// local gives the moment of this process at which the server's clock stood at
// server. What the server tells is compared with this node's own times only so.
func (c *serverClock) local(server time.Time) time.Time {
	a := c.at.Load()
	if a == nil {
		return server
	}
	return a.local.Add(server.Sub(a.server))
}

// clockTick is how finely the server tells its time.
const clockTick = time.Millisecond

// note takes in an answer: the server's clock stood at server at some moment
// between sent and received. What is believed stays as long as it can be true: so
// the time goes evenly, and no slow answer moves it.
func (c *serverClock) note(sent, received, server time.Time) {
	trip := received.Sub(sent)
	if a := c.at.Load(); a != nil {
		believed := a.when(sent)
		if !believed.Before(server.Add(-trip)) && !believed.After(server.Add(clockTick)) {
			return
		}
	}
	c.at.Store(&anchor{local: sent, server: server.Add(-trip / 2)})
}

// Now is this node's clock, corrected by its measured offset to the server's: the
// time for `created`, and by which `expiry` is judged. It is measured when the store
// is opened and with each heartbeat; in between the machine's monotonic clock
// counts, so that a step of its wall clock does no harm. Before Open it is
// Options.Now. Hand it to what stamps messages and records. Safe for concurrent
// use.
func (s *Store) Now() time.Time {
	if a := s.clock.at.Load(); a != nil {
		return a.when(time.Now())
	}
	return s.o.Now()
}

// helloTime asks the server for its clock.
func (s *Store) helloTime(ctx context.Context) (time.Time, error) {
	var hello struct {
		Local time.Time `bson:"localTime"`
	}
	if err := s.db.RunCommand(ctx, fields("hello", 1)).Decode(&hello); err != nil {
		return time.Time{}, fmt.Errorf("mongo: the server's time: %w", err)
	}
	return hello.Local, nil
}

// measureClock compares the clocks.
func (s *Store) measureClock(ctx context.Context) error {
	sent := time.Now()
	server, err := s.helloTime(ctx)
	if err != nil {
		return err
	}
	s.clock.note(sent, time.Now(), server)
	return nil
}

// offset tells how far this machine's clock is ahead of the server's.
func (s *Store) offset() time.Duration {
	return s.o.Now().Round(0).Sub(s.Now())
}

// wrongClock tells people that the machine's clock is off by more than
// Options.ClockBound; nil: it is not. No promise depends on it: what is stored is
// stamped by the server's time. But one of the two machines needs help.
func (s *Store) wrongClock() error {
	by := s.offset()
	if by.Abs() <= s.o.ClockBound {
		return nil
	}
	side := "ahead of"
	if by < 0 {
		side = "behind"
	}
	return fmt.Errorf("mongo: the clock of node %s is %s %s the clock of the MongoDB server (%s here, %s there; allowed: %s): set the wrong one; "+
		"messages are stamped by the server's until then, and none is lost", s.o.Node, spell(by.Abs()), side,
		s.o.Now().UTC().Format(time.DateTime), s.Now().UTC().Format(time.DateTime), spell(s.o.ClockBound))
}

// tellClock logs when the machine's clock begins or ceases to be off.
func (s *Store) tellClock() {
	err := s.wrongClock()
	if was := s.clock.off.Swap(err != nil); was == (err != nil) {
		return
	}
	if err != nil {
		s.log.Warn("clock", zap.Error(err))
	} else {
		s.log.Info("this node's clock and the server's agree again", zap.Duration("offset", s.offset()))
	}
}

// spell writes a duration for people.
func spell(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	case d < 2*day:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", (d+day/2)/day)
}
