package broker

import (
	"context"
	"sync"
	"time"

	"rewindmq/broker/session"
)

// shortestStay is how long a connection may stay before another one of the same
// client id ends it. Two devices with one client id, each of which comes back at once,
// would throw each other out before either is served.
const shortestStay = 100 * time.Millisecond

// roster knows which client ids this node owns, each by one client at a time.
type roster struct {
	mu      sync.Mutex
	clients map[string]*client
	// latest is who has come last of those that wait for a client id.
	latest map[string]waiter
}

// waiter is a client that waits for its client id, and how its wait is ended.
type waiter struct {
	cl  *client
	end context.CancelCauseFunc
}

func newRoster() *roster {
	return &roster{clients: make(map[string]*client), latest: make(map[string]waiter)}
}

// enter makes cl the owner of its client id. Whoever owned it is asked to end and
// waited for: it flushes its records, saves its cursor and releases, so that the
// claim that follows finds everything [MQTT-3.1.4-3]. taken: somebody was. Who waits
// and is overtaken by a later one gives up: it would throw out a newer connection. So
// two connections of a client id wait at most, and those that came within shortestStay.
func (r *roster) enter(ctx context.Context, cl *client) (taken bool, err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	r.arrive(cl, end)
	defer r.giveUp(cl)
	for {
		old, err := r.turn(cl)
		switch {
		case err != nil:
			return taken, err
		case old == nil:
			return taken, nil
		case !old.stayed(ctx):
		default:
			if _, err := r.turn(cl); err != nil {
				return taken, err // somebody came meanwhile
			}
			taken = true
			old.oust(cl.ousts)
			select {
			case <-old.ended:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return taken, context.Cause(ctx)
		}
	}
}

// arrive makes cl the last who has come. Who waited before gives up, but not at once: two
// devices with one client id, each of which comes back at once, would have no pause.
func (r *roster) arrive(cl *client, end context.CancelCauseFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before, waits := r.latest[cl.id]; waits {
		time.AfterFunc(shortestStay, func() { before.end(errTakenOver) })
	}
	r.latest[cl.id] = waiter{cl, end}
}

// turn makes cl the owner if nobody is, else gives who is.
func (r *roster) turn(cl *client) (owner *client, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch old := r.clients[cl.id]; {
	case r.latest[cl.id].cl != cl:
		return nil, errTakenOver
	case old != nil && old != cl:
		return old, nil
	}
	r.clients[cl.id] = cl
	return nil, nil
}

// enterFree makes cl the owner of its client id if nobody is, or wants to be.
func (r *roster) enterFree(cl *client) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, wanted := r.latest[cl.id]; wanted || r.clients[cl.id] != nil {
		return false
	}
	r.clients[cl.id] = cl
	return true
}

// stayed waits until cl has been connected for shortestStay; false: it has ended, or
// ctx has.
func (cl *client) stayed(ctx context.Context) bool {
	select {
	case <-cl.welcome:
	case <-cl.ended:
		return false
	case <-ctx.Done():
		return false
	}
	left := shortestStay - time.Since(cl.welcomed)
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-cl.ended:
	case <-ctx.Done():
	}
	return false
}

// oust asks cl to end, as takeOver does, and lets its publisher fail: also that of a
// session which is closing already, since its link broke, and may wait for the store to
// have room for what it has read. The client is here again and would wait for that, too.
//
// Why it loses and reorders nothing: what waits belongs to a closing session, which
// acknowledges nothing any more, whatever the store answers. So the client holds each of
// these messages for not acknowledged, and sends it again, stored or refused. A failed
// publisher stays so, and the store judges its messages in order: what it has stored is
// a beginning of what was published, and all behind that is refused (L5). And a session
// lets go, and the next one claims, only when the last of them is answered: none lands
// behind what the client sends again. A QoS 2 message is sent again under the ID that its
// entry keeps. At QoS 0 what waited is not stored, as with a takeover of an open session.
func (cl *client) oust(why session.Reason) {
	cl.takeOver(why)
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.s != nil && cl.s.Closing() {
		cl.publisher.Fail()
	}
}

// lose ends cl because its session was claimed at another node, unless it came by a
// newer claim. It has its shortest stay, too, and CONNACK before: who waits for it at
// the other node waits longer than that.
func (cl *client) lose(epoch uint64) {
	if !cl.stayed(cl.b.life) {
		return
	}
	cl.input(func(s *session.Session) {
		if s.Owner().Epoch < epoch {
			s.Close(session.ReasonTakenOver)
		}
	})
}

// giveUp ends the wait of cl.
func (r *roster) giveUp(cl *client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest[cl.id].cl == cl {
		delete(r.latest, cl.id)
	}
}

// leave makes the client id free.
func (r *roster) leave(cl *client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.clients[cl.id] == cl {
		delete(r.clients, cl.id)
	}
}

func (r *roster) get(id string) *client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clients[id]
}

// all lists the clients of this moment.
func (r *roster) all(buf []*client) []*client {
	r.mu.Lock()
	defer r.mu.Unlock()
	buf = buf[:0]
	for _, cl := range r.clients {
		buf = append(buf, cl)
	}
	return buf
}

func (r *roster) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.clients)
}
