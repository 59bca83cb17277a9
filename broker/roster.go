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
	latest map[string]*client
}

func newRoster() *roster {
	return &roster{clients: make(map[string]*client), latest: make(map[string]*client)}
}

// enter makes cl the owner of its client id. Whoever owned it is asked to end and
// waited for: it flushes its records, saves its cursor and releases, so that the
// claim that follows finds everything [MQTT-3.1.4-3]. taken: somebody was. Who waits
// and is overtaken by a later one gives up: it would throw out a newer connection.
func (r *roster) enter(ctx context.Context, cl *client) (taken bool, err error) {
	r.mu.Lock()
	r.latest[cl.id] = cl
	r.mu.Unlock()
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
			old.takeOver(cl.ousts)
			select {
			case <-old.ended:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return taken, ctx.Err()
		}
	}
}

// turn makes cl the owner if nobody is, else gives who is.
func (r *roster) turn(cl *client) (owner *client, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch old := r.clients[cl.id]; {
	case r.latest[cl.id] != cl:
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
	if r.clients[cl.id] != nil || r.latest[cl.id] != nil {
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
	if r.latest[cl.id] == cl {
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
