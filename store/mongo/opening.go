package mongo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"
)

const (
	// openRest is the pause after a stream failed, at first; it doubles up to
	// maxOpenRest, so that a server which refuses it is not asked ten times a second
	// (F-26). Passes go on meanwhile.
	openRest    = 250 * time.Millisecond
	maxOpenRest = 5 * time.Second
	// openFresh is for how long a stream that was opened may wait for the passes to
	// find nothing. An older one would tell at length what they have read.
	openFresh = 2 * time.Second
	// streamTried is how long a stream has to live to count as one that works.
	streamTried = 10 * time.Second
)

// opening is a change stream that is being opened, by a goroutine of the tail's: on
// a connection that says nothing it takes streamHung, and the passes do not wait
// for it. What they read meanwhile the stream tells again, and it is dropped as a
// repeat: the stream begins at the time of an earlier pass.
type opening struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the rest is set
	st     *stream
	err    error
	// told: it was found out whether the oplog has gone on without the stream that
	// was lost before; forgotten: it has.
	told, forgotten bool
}

// begin starts to open the stream at the time of a pass, so that nothing lies
// between (T3).
func (t *tail) begin(ctx context.Context, at bson.Timestamp) *opening {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o := &opening{cancel: cancel, done: make(chan struct{})}
	lost := t.lost
	t.work.Go(func() {
		defer close(o.done)
		guard := time.AfterFunc(streamHung, cancel)
		defer guard.Stop()
		if !lost.IsZero() {
			if o.forgotten, o.err = t.s.forgotten(own, lost); o.err != nil {
				return
			}
			o.told = true
		}
		o.st, o.err = t.s.openStream(own, cancel, at)
	})
	return o
}

// open has the change stream opened, and takes it when it is there. It waits a
// little, and returns false if it has not.
func (t *tail) open(ctx context.Context, at bson.Timestamp) bool {
	if t.opening == nil {
		if time.Now().Before(t.again) {
			return false
		}
		t.opening = t.begin(ctx, at)
	}
	o := t.opening
	wait := time.NewTimer(maxPassRest)
	defer wait.Stop()
	select {
	case <-o.done:
	case <-wait.C:
		return true
	case <-ctx.Done():
		return true
	}
	t.opening = nil
	if o.told {
		t.lost = bson.Timestamp{}
		if o.forgotten {
			t.s.left(historyLost)
			t.s.log.Warn("the oplog has gone on beyond where the change stream was lost; what was missed is read from the lanes")
		} else {
			t.s.left("error")
		}
	}
	switch {
	case o.err != nil:
		o.cancel()
		t.delay()
		if t.s.o.Metrics != nil {
			t.s.o.Metrics.Error("tail", kindOf(o.err))
		}
		if since(t.warned) > 5*time.Second {
			t.warned = time.Now()
			t.s.log.Warn("no change stream; reading the lanes", zap.Error(o.err))
		}
	case time.Since(o.st.opened) > openFresh:
		t.work.Go(o.st.close)
	default:
		t.m.Opened(t.news())
		t.stream = o.st
		t.rest = passRest
	}
	return true
}

// lose notes that the stream failed. What the reason is, the next opening finds
// out, unless the server has said it.
func (t *tail) lose(err error) {
	if time.Since(t.stream.opened) > streamTried {
		t.backoff = 0
	}
	t.delay()
	if reason := lossOf(err); reason == historyLost {
		t.s.left(reason)
		return
	}
	t.lost = t.stream.place
}

// delay puts the next opening off.
func (t *tail) delay() {
	t.backoff = max(openRest, min(2*t.backoff, maxOpenRest))
	t.again = time.Now().Add(t.backoff)
}

// forget lets go of an opening that is not wanted any more.
func (t *tail) forget(o *opening) {
	o.cancel()
	t.work.Go(func() {
		<-o.done
		if o.st != nil {
			o.st.close()
		}
	})
}

// forgotten tells whether the oplog has lost what came at a time. The database is
// watched: the heartbeats are in it, so the first event is not far.
func (s *Store) forgotten(ctx context.Context, at bson.Timestamp) (bool, error) {
	cs, err := s.tails.Database(s.o.Database).Watch(ctx, mongo.Pipeline{}, options.ChangeStream().SetStartAtOperationTime(&at).SetBatchSize(1))
	if err == nil {
		_ = cs.Close(ctx)
		return false, nil
	}
	var se mongo.ServerError
	if !errors.As(err, &se) {
		return false, fmt.Errorf("mongo: look for the lost stream's place: %w", err)
	}
	return lossOf(err) == historyLost, nil
}
