package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
	"rewindmq/wire"
)

var errBroken = fmt.Errorf("%w: one block", store.ErrCorrupt)

// brittle is a store whose tail or watch fails while all else goes on.
type brittle struct {
	*storetest.Memory
	head, tail error // of the call
	next       atomic.Bool
	watch      chan struct{} // closed: Watch.Next fails
}

func newBrittle() *brittle {
	return &brittle{Memory: storetest.NewMemory(storetest.Options{Lanes: 1}), watch: make(chan struct{})}
}

func (s *brittle) Head(ctx context.Context) (schema.Cursor, error) {
	if s.head != nil {
		return schema.Cursor{}, s.head
	}
	return s.Memory.Head(ctx)
}

func (s *brittle) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	if s.tail != nil {
		return nil, s.tail
	}
	t, err := s.Memory.Tail(ctx, after)
	return &brittleTail{t, s}, err
}

type brittleTail struct {
	store.Tail
	s *brittle
}

func (t *brittleTail) Next(ctx context.Context) ([]store.Event, error) {
	e, err := t.Tail.Next(ctx)
	if t.s.next.Load() {
		return nil, errBroken
	}
	return e, err
}

func (s *brittle) Watch(context.Context) (store.Watch, error) { return s, nil }

func (s *brittle) Next(ctx context.Context) ([]store.Lost, error) {
	select {
	case <-s.watch:
		return nil, errBroken
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestHubEnds: when the tail of the log or the watch over the sessions has failed, the
// broker tells it at once, lets its sessions go, and ends with the error.
func TestHubEnds(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(s *brittle, pub *peer){
		"tail": func(s *brittle, pub *peer) {
			s.next.Store(true)
			// The tail fails at this; whether it is acknowledged before is open.
			pub.send("a", "2", 1, 2)
		},
		"watch": func(s *brittle, _ *peer) { close(s.watch) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newBrittle()
				u := openBubble(t, s, Options{})
				pub, _, served := u.connect(wire.V5, wire.Connect{ClientID: "pub", SessionExpiry: 100, HasSessionExpiry: true})
				pub.publish("a", "1", 1, 1)
				if err := u.b.Ready(t.Context()); err != nil {
					t.Errorf("not ready: %v", err)
				}
				begin := time.Now()
				fail(s, pub)
				synctest.Wait()
				if err := u.b.Ready(t.Context()); !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("ready: %v", err)
				}
				last := pub.read()
				if _, acknowledged := last.(*wire.Ack); acknowledged {
					last = pub.read()
				}
				if d, ok := last.(*wire.Disconnect); !ok || d.Code != wire.ServerShuttingDown {
					t.Errorf("%#v, want DISCONNECT", last)
				}
				_ = pub.nc.Close()
				if err := <-u.ended; !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("Run: %v", err)
				}
				if took := time.Since(begin); took > u.b.o.DrainTimeout {
					t.Errorf("the end took %v", took)
				}
				<-served
				s.Inspect(func(m *storetest.Model) {
					if left := m.Orphans(); len(left) != 0 {
						t.Errorf("not released: %v", left)
					}
				})
			})
		})
	}
}

// TestHubFailsAtStart: the broker does not wait for a hub that could not begin.
func TestHubFailsAtStart(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]func(*brittle){
		"head": func(s *brittle) { s.head = errBroken },
		"tail": func(s *brittle) { s.tail = errBroken },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newBrittle()
				breaks(s)
				b, err := New(s, Options{Node: "n"})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				stored, done := make(chan error, 1), make(chan error, 1)
				go func() { stored <- s.Run(ctx) }()
				go func() { done <- b.Run(ctx) }()
				synctest.Wait()
				select {
				case err := <-done:
					if !errors.Is(err, store.ErrCorrupt) || errors.Is(err, context.Canceled) {
						t.Errorf("Run: %v", err)
					}
				default:
					t.Error("it waits for the hub")
				}
				stop()
				if err := <-stored; err != nil {
					t.Errorf("the store's end: %v", err)
				}
			})
		})
	}
}
