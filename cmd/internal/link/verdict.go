package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"rewindmq/cmd/internal/exit"
)

// Verdict judges how a connection failed. final says that another attempt would end the same way or do harm; code is
// then the exit code of the command.
func Verdict(err error) (code exit.Code, final bool) {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refused(refusal.Code)
	}
	var farewell *Farewell
	if errors.As(err, &farewell) {
		return dismissed(farewell.Code)
	}
	if errors.Is(err, ErrProtocol) {
		return exit.Failed, true
	}
	return exit.Connect, false
}

func refused(reason byte) (exit.Code, bool) {
	switch reason {
	case 0x86, 0x87, 0x8A, 0x8C: // bad user or password, not authorized, banned, bad method
		return exit.Auth, true
	case 0x80, 0x88, 0x89, 0x97, 0x9F: // unspecified, unavailable, busy, quota, rate: may pass
		return exit.Connect, false
	default:
		return exit.Failed, true
	}
}

func dismissed(reason byte) (exit.Code, bool) {
	switch reason {
	case 0x87: // not authorized
		return exit.Auth, true
	case 0x00, 0x80, 0x83, 0x88, 0x89, 0x8B, 0x8D, 0x96, 0x97, 0x9F, 0xA0:
		// Normal, unspecified, implementation, unavailable, busy, shutting down, keep alive, rates, connect time.
		return exit.Connect, false
	default:
		// A protocol matter, an administrator's word, or session taken over (0x8E): coming back would only throw the
		// other one out again.
		return exit.Failed, true
	}
}

// Backoff is how long to wait before the attempts of one reconnect: 50 ms, doubling to 2 s, each with up to a quarter
// more by chance, so that many clients do not come back at once.
type Backoff struct{ next time.Duration }

// Wait waits before the next attempt. The error is the context's.
func (b *Backoff) Wait(ctx context.Context) error {
	b.next = min(max(2*b.next, 50*time.Millisecond), 2*time.Second)
	t := time.NewTimer(b.next + rand.N(b.next/4))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reset starts again from the shortest time.
func (b *Backoff) Reset() { b.next = 0 }

// Persist dials until it succeeds. It gives up when ctx ends, with its error, when another attempt would do no good (see
// Verdict), or when enough says so after a failure; the error of the last attempt then carries its exit code.
func Persist(ctx context.Context, o Options, s Session, enough func() bool) (*Conn, error) {
	var wait Backoff
	for {
		conn, err := Dial(ctx, o, s)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if code, final := Verdict(err); final || enough() {
			return nil, exit.With(code, err)
		}
		if err := wait.Wait(ctx); err != nil {
			return nil, err
		}
	}
}
