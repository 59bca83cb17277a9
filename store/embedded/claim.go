package embedded

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// claimCall is one claim on its way through the committer.
type claimCall struct {
	claim store.Claim
	call  *call
	// force: the claim waits no longer for the former connection.
	force   atomic.Bool
	claimed store.Claimed
	session *session
	err     error
}

// Claim implements store.Sessions. All that can be claimed at once is claimed in
// one commit; a session that a connection of this node still holds is waited
// for, at most a second.
func (l *Log) Claim(ctx context.Context, claims []store.Claim) []store.Claimed {
	start := time.Now()
	out := make([]store.Claimed, len(claims))
	calls, err := l.enqueueClaims(ctx, claims)
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	expired := make(chan struct{})
	timer := time.AfterFunc(l.o.claimWait, func() { close(expired) })
	defer timer.Stop()
	for i, k := range calls {
		l.awaitClaim(ctx, k, expired)
		out[i] = l.finishClaim(k)
		l.observe("claim", start, out[i].Err)
	}
	return out
}

func (l *Log) enqueueClaims(ctx context.Context, claims []store.Claim) ([]*claimCall, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	calls := make([]*claimCall, len(claims))
	for i := range claims {
		k := &claimCall{claim: claims[i]}
		k.call = &call{done: make(chan struct{}), stage: func(c *committer) error { return c.claim(k) }}
		calls[i] = k
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, store.ErrClosed
	}
	for _, k := range calls {
		l.queue.items = append(l.queue.items, item{call: k.call})
	}
	l.poke()
	return calls, nil
}

// awaitClaim waits for one claim: until it is answered, or its time is over and
// it takes the session, or ctx ends.
func (l *Log) awaitClaim(ctx context.Context, k *claimCall, expired <-chan struct{}) {
	for {
		select {
		case <-k.call.done:
			return
		case <-expired:
			expired = nil
			// Either the committer has not looked at the claim yet, and will see
			// force; or it has, and the claim may stand among those that wait.
			k.force.Store(true)
			l.settleClaim(k, nil)
		case <-ctx.Done():
			if k.call.state.CompareAndSwap(callWaiting, callGivenUp) {
				k.err = ctx.Err()
				return
			}
			l.settleClaim(k, ctx.Err())
			<-k.call.done
			return
		}
	}
}

// settleClaim ends the waiting of a claim, if it waits: it takes the session, or
// with an error gives up.
func (l *Log) settleClaim(k *claimCall, giveUp error) {
	// When the log is closed, its end answers all that wait.
	_ = l.enqueue(item{call: &call{always: true, done: make(chan struct{}), stage: func(c *committer) error {
		if c.waiting[k.claim.ClientID] != k {
			return nil
		}
		delete(c.waiting, k.claim.ClientID)
		if giveUp == nil {
			c.claimNow(k)
			return nil
		}
		k.err = giveUp
		c.calls = append(c.calls, k.call)
		return nil
	}}})
}

// claim is the committer's part of a claim that has just come.
func (c *committer) claim(k *claimCall) error {
	id := k.claim.ClientID
	if former := c.waiting[id]; former != nil {
		delete(c.waiting, id)
		former.err = store.ErrSuperseded
		c.calls = append(c.calls, former.call)
	}
	if c.owned[id] != nil && !k.force.Load() {
		c.waiting[id] = k
		return errLater
	}
	c.claimNow(k)
	return errLater // answered by claimNow
}

// claimNow decides a claim and stages it; the answer follows the commit.
func (c *committer) claimNow(k *claimCall) {
	k.err = c.stageClaim(k)
	c.calls = append(c.calls, k.call)
}

// stageClaim stages a claim. Whatever the former connection still writes comes
// behind it and is refused (promise 6).
func (c *committer) stageClaim(k *claimCall) error {
	id := k.claim.ClientID
	old, err := c.document(id)
	if err != nil {
		return err
	}
	present := c.present(old, &k.claim)
	next := &document{
		epoch: max(c.state.floor+1, uint64(c.now.UnixMilli())), owned: true, owner: c.l.o.Node,
		expiry: k.claim.Expiry, protocol: k.claim.Protocol, connected: c.now,
	}
	if old != nil {
		next.epoch = max(old.epoch+1, next.epoch)
		next.wills = c.decideWills(old, present)
	}
	k.claimed.Released = !old.exists() || !old.owned && old.clean
	k.claimed.Present = present
	for _, w := range next.wills {
		if w.Due {
			k.claimed.Wills = append(k.claimed.Wills, w)
		}
	}
	if present {
		next.session, next.sid, next.shared = old.session, old.sid, old.shared
	} else if err := c.newSession(id, old, next, k.claim.At); err != nil {
		return err
	}
	if w := k.claim.Will; w != nil {
		will := *w
		_, _ = rand.Read(will.Key[:]) // never fails: it ends the process instead
		will.Epoch, will.At, will.Due = next.epoch, time.Time{}, false
		next.wills = append(next.wills, will)
	}
	k.claimed.Owner = schema.Owner{ClientID: id, SID: next.sid, Epoch: next.epoch}
	k.session = &session{id: next.session, doc: next}
	c.putDocument(id, old, next)
	if former := c.owned[id]; former != nil {
		former.lost.Store(true)
	}
	c.owned[id] = k.session
	return nil
}

// present tells whether the session goes on: not on clean start, not when its
// expiry was 0 (S14), not when its time had run out by the store's clock.
func (c *committer) present(old *document, claim *store.Claim) bool {
	if !old.exists() || claim.CleanStart || old.expiry == 0 {
		return false
	}
	end, ends := old.endsAt()
	return !ends || c.now.Before(end)
}

// newSession gives next a sid, a number and a cursor, and ends the old one.
func (c *committer) newSession(clientID string, old, next *document, at schema.Cursor) error {
	if old.exists() {
		if former := c.owned[clientID]; former != nil {
			if err := c.handBack(clientID, former); err != nil {
				return err
			}
		}
		if err := c.endSession(old.session); err != nil {
			return err
		}
	}
	c.state.session++
	c.state.sessions++
	next.session, next.sid = c.state.session, next.epoch
	c.touch(next.session)
	c.set(sessionKey(nil, keyCursor, next.session), putPlace(nil, &place{
		SessionCursor: schema.SessionCursor{After: at}, from: c.epoch.id,
	}))
	return nil
}

// finishClaim reads the session of a claim that is durable. No one else writes
// it: the old epoch is over, the new one not yet known.
func (l *Log) finishClaim(k *claimCall) store.Claimed {
	if k.err != nil {
		return store.Claimed{Err: k.err}
	}
	if k.call.err != nil {
		return store.Claimed{Err: k.call.err}
	}
	defer k.session.read.Store(true)
	if !k.claimed.Present {
		k.claimed.Cursor = schema.SessionCursor{After: k.claim.At.Clone()}
		return k.claimed
	}
	if err := l.enter(); err != nil {
		return store.Claimed{Err: err}
	}
	defer l.leave()
	subs, cursor, err := l.readSession(k.claim.ClientID, k.session)
	if err != nil {
		if k.session.lost.Load() {
			err = store.ErrSuperseded // a newer claim has ended the session
		}
		return store.Claimed{Err: err}
	}
	k.claimed.Subscriptions, k.claimed.Cursor = subs, cursor
	return k.claimed
}
