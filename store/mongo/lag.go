package mongo

import (
	"errors"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// progress is up to when, by this node's clock, the tail has seen everything: an
// empty answer of the stream, or a pass that found nothing, says so for the moment
// in which it was asked for. So the lag is right when nothing comes, and grows when
// the source hangs. Safe for concurrent use.
type progress struct{ at atomic.Pointer[time.Time] }

func (p *progress) reach(t time.Time) {
	for {
		old := p.at.Load()
		if old != nil && !t.After(*old) || p.at.CompareAndSwap(old, &t) {
			return
		}
	}
}

// tailed notes that the tail has seen all up to t, and tells the lag.
func (s *Store) tailed(t time.Time) {
	s.progress.reach(t)
	s.tellLag()
}

// tellLag is also called with each heartbeat: a tail that hangs says nothing.
func (s *Store) tellLag() {
	if s.o.Metrics == nil {
		return
	}
	// An empty wait of the stream, or the rest between two passes, is no lag.
	if at := s.progress.at.Load(); at != nil {
		s.o.Metrics.StreamLag.Set(max(0, time.Since(*at)-2*streamAwait).Seconds())
	}
}

// behind tells for how long the tail has not seen all there is; 0: it has, or none
// is open.
func (s *Store) behind() time.Duration {
	at := s.progress.at.Load()
	if at == nil || s.tailing.Load() == 0 {
		return 0
	}
	return time.Since(*at)
}

// wallTime is when the server carried out what an event tells of; zero: not told
// (before 6.0).
func wallTime(event bson.Raw) time.Time { return timeOf(event.Lookup("wallTime").DateTimeOK()) }

// left counts why the tail left its stream.
func (s *Store) left(reason string) {
	if s.o.Metrics != nil {
		s.o.Metrics.StreamResume(reason)
	}
}

// historyLost is the reason for a stream whose place in the oplog has gone.
const historyLost = "history_lost"

// lossOf gives the reason for an error of the stream.
func lossOf(err error) string {
	var se mongo.ServerError
	if errors.As(err, &se) && (se.HasErrorCode(286) || se.HasErrorCode(136)) {
		return historyLost
	}
	return "error"
}
