package mongo

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.uber.org/zap"

	"rewindmq/store"
)

// sessionWriter carries out the writes of the sessions that hash to it, one after
// the other, in a driver session of its own. What became of an attempt that was
// in doubt is found out before anything else is sent: the same write is sent
// again. All writes are guarded and can be done twice.
//
// Invariant: an attempt that was given up has an older transaction number than
// the next, and the server refuses it (S18).
type sessionWriter struct {
	s    *Store
	poke chan struct{}
	gone chan struct{}

	mu      sync.Mutex
	queue   []*job
	closing bool
}

// job is one write on its way.
type job struct {
	ctx  context.Context
	do   func(context.Context) error // carries the driver session
	save *placeWrite                 // it can go together with others of its kind
	mark *store.MarkReceived         // so can it
	done chan struct{}
	err  error
}

func newSessionWriter(s *Store) *sessionWriter {
	return &sessionWriter{s: s, poke: make(chan struct{}, 1), gone: make(chan struct{})}
}

func (s *Store) writerOf(clientID string) *sessionWriter {
	return s.session[hash(clientID)%uint32(len(s.session))]
}

// write lets the client's writer do something and waits for it. When ctx ends
// first the write is taken back, if it was not sent; else its outcome is not
// known to the caller, but the writer goes on with it before the next.
//
// Invariant: what do sets is read only when write has returned nil: after an error it
// may still be running.
func (s *Store) write(ctx context.Context, clientID string, do func(context.Context) error) error {
	j := &job{ctx: ctx, do: do}
	s.writerOf(clientID).put(j)
	return j.wait()
}

func (w *sessionWriter) put(j *job) {
	j.done = make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		j.err = store.ErrClosed
		close(j.done)
		return
	}
	w.queue = append(w.queue, j)
	w.wake()
}

func (j *job) wait() error {
	select {
	case <-j.done:
		return j.err
	case <-j.ctx.Done():
		return j.ctx.Err()
	}
}

func (w *sessionWriter) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *sessionWriter) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	w.wake()
}

// maxSaves bounds the cursor writes that go in one command.
const maxSaves = 200

// take gives the next job, or several cursor writes; false: the end.
func (w *sessionWriter) take() ([]*job, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && w.queue[0].ctx.Err() != nil {
		j := w.queue[0]
		w.queue = w.queue[1:]
		j.err = j.ctx.Err()
		close(j.done)
	}
	if len(w.queue) == 0 {
		return nil, !w.closing
	}
	n := 1
	for n < len(w.queue) && n < maxSaves && w.queue[n].together(w.queue[0]) {
		n++
	}
	jobs := w.queue[:n:n]
	w.queue = w.queue[n:]
	return jobs, true
}

// together tells whether j can go in one command with first.
func (j *job) together(first *job) bool {
	return j.save != nil && first.save != nil || j.mark != nil && first.mark != nil
}

// run is the writer's goroutine. Store.Run waits for it.
func (w *sessionWriter) run() {
	defer close(w.gone)
	sess, err := w.s.client.StartSession()
	if err != nil {
		w.s.log.Error("session writer", zap.Error(err))
		w.end(err)
		return
	}
	defer sess.EndSession(context.Background())
	for w.s.life.Err() == nil {
		jobs, more := w.take()
		switch {
		case len(jobs) > 0:
			w.carryOut(sess, jobs)
		case !more:
			return
		default:
			select {
			case <-w.poke:
			case <-w.s.life.Done():
			}
		}
	}
	w.end(store.ErrClosed)
}

// end answers what is left.
func (w *sessionWriter) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing = true
	for _, j := range w.queue {
		j.err = err
		close(j.done)
	}
	w.queue = nil
}

func (w *sessionWriter) carryOut(sess *mongo.Session, jobs []*job) {
	if jobs[0].do == nil {
		errs := make([]error, len(jobs))
		do := w.s.placeWrites
		if jobs[0].mark != nil {
			do = w.s.markWrites
		}
		// Only the end of the store ends it without an answer: see below.
		_ = w.again(sess, "session_write", func(ctx context.Context) error { return do(ctx, jobs, errs) })
		for i, j := range jobs {
			j.err = errs[i]
			if w.s.life.Err() != nil && errs[i] == nil {
				j.err = store.ErrClosed
			}
			close(j.done)
		}
		return
	}
	j := jobs[0]
	j.err = w.again(sess, "session_write", j.do)
	close(j.done)
}

// again sends a write until its outcome is known, or the store is at its end.
func (w *sessionWriter) again(sess *mongo.Session, op string, do func(context.Context) error) error {
	pause := retryRest
	for {
		began := time.Now()
		ctx, cancel := context.WithTimeout(w.s.life, w.s.o.Attempt)
		err := do(mongo.NewSessionContext(ctx, sess))
		cancel()
		if w.s.o.Metrics != nil {
			w.s.o.Metrics.Operation(op, time.Since(began))
		}
		if w.s.life.Err() != nil {
			return store.ErrClosed
		}
		if err == nil || isAnswer(err) {
			return err
		}
		if w.s.o.Metrics != nil {
			w.s.o.Metrics.Error(op, kindOf(err))
		}
		w.s.log.Warn("write of a session in doubt; it is sent again", zap.Error(err))
		if rest(w.s.life, pause) != nil {
			return store.ErrClosed
		}
		pause = backoff(pause)
	}
}

// answered is an error that is the server's last word: the same write again would
// meet the same.
type answered struct{ error }

func (a answered) Unwrap() error { return a.error }

func isAnswer(err error) bool {
	var a answered
	if errors.As(err, &a) || errors.Is(err, store.ErrSessionLost) || errors.Is(err, store.ErrSuperseded) {
		return true
	}
	var se mongo.ServerError
	if !errors.As(err, &se) || hasWriteConcernError(err) {
		return false
	}
	for _, code := range []int{codeBadValue, 9, 14, 121, 10334, 17280, 40, 40353, 16020, 13, 18} {
		if se.HasErrorCode(code) {
			return true
		}
	}
	return false
}
