package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rewindmq/schema"
	"rewindmq/store"
)

const (
	orphansEvery = time.Second
	orphansBatch = 64               // that are finished at the same time
	finishTime   = 10 * time.Second // for one attempt
)

// orphans are sessions that a connection of this node has let go of without a release:
// the store failed one of their writes, or left it in doubt. In the store they are this
// node's still, and no keeper finishes them while it lives; so their wills and their
// expiry would wait until the client returns. The node claims each again, as a keeper
// does for a dead node: that ends what may be on its way. Then it releases it, as the
// connection would have.
//
// Bounded by the sessions that are stored. An entry goes when the session is released, is
// another node's, or has ended.
type orphans struct {
	b  *Broker
	mu sync.Mutex
	by map[string]orphan
}

// orphan is what a release would have told.
type orphan struct {
	how      store.Release
	expiry   uint32
	protocol uint8
	// will has a delay that begins at the end of the connection; nil: there is none.
	// One without a delay is due by the claim.
	will *schema.Will
}

// orphan is what is to be done in place of cl.
func (cl *client) orphan(how store.Release) orphan {
	o := orphan{how: how, expiry: min(cl.c.clientExpiry, cl.b.o.SessionExpiryMax), protocol: uint8(cl.c.version)}
	if !how.Normal {
		o.will = cl.c.delayed
	}
	return o
}

// add notes a session. What is known of it from before stays: an attempt to claim it
// says less than the connection that had it.
func (o *orphans) add(id string, what orphan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.by[id]; !known || what.how.Epoch > 0 {
		o.by[id] = what
	}
}

func (o *orphans) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.by)
}

func (o *orphans) run(ctx context.Context) {
	tick := time.NewTicker(orphansEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if o.len() > 0 {
			o.round(ctx)
		}
	}
}

// round tries to finish each once.
func (o *orphans) round(ctx context.Context) {
	o.mu.Lock()
	all := maps.Clone(o.by)
	o.mu.Unlock()
	var work errgroup.Group
	work.SetLimit(orphansBatch)
	for id, what := range all {
		work.Go(func() error {
			over, err := o.b.finish(ctx, id, what)
			switch {
			case over:
				o.mu.Lock()
				defer o.mu.Unlock()
				if o.by[id] == what {
					delete(o.by, id)
				}
			case err != nil && ctx.Err() == nil:
				o.b.storeTrouble("finish", id, err)
			}
			return nil
		})
	}
	_ = work.Wait()
}

// finish ends the ownership of a session that nobody here has a connection of. over:
// there is nothing more to do; else the client is here again, or the store fails still.
func (b *Broker) finish(ctx context.Context, id string, what orphan) (over bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, finishTime)
	defer cancel()
	cl := b.newClient(id, nil)
	if !b.roster.enterFree(cl) {
		return false, nil // who is here releases it, or leaves it here again
	}
	late := false
	defer func() {
		if !late {
			cl.leave()
		}
	}()
	// Nobody of this node claims it meanwhile: what is read is so until the claim.
	switch info, err := b.store.LookSession(ctx, id); {
	case errors.Is(err, store.ErrNoSession), err == nil && !info.Here:
		return true, nil
	case err != nil:
		return false, err
	}
	var claimed store.Claimed
	claimed, late = b.claim(ctx, cl, store.Claim{
		ClientID: id, Expiry: what.expiry, Protocol: what.protocol, Will: what.will, At: b.hub.H().Clone(),
	}, func(store.Claimed) {}) // the entry stays, and is tried again
	if claimed.Err != nil {
		return errors.Is(claimed.Err, store.ErrSuperseded), claimed.Err
	}
	due := claimed.Wills
	var gone []store.Write
	if what.how.Normal { // [MQTT-3.14.4-3] The claim did not know of the DISCONNECT.
		mine := func(w schema.Will) bool { return w.Epoch == what.how.Epoch }
		for _, w := range slices.DeleteFunc(slices.Clone(due), func(w schema.Will) bool { return !mine(w) }) {
			gone = append(gone, store.TakeOutWill{Owner: claimed.Owner, Key: w.Key})
		}
		due = slices.DeleteFunc(slices.Clone(due), mine)
	}
	if err := b.keeper.publish(ctx, id, due); err != nil {
		return false, err
	}
	how := store.Release{Owner: claimed.Owner, Normal: what.will == nil, Expiry: what.how.Expiry, SetExpiry: what.how.SetExpiry}
	if !claimed.Present { // it was to end with the connection, or its time was over
		how.Normal, how.Expiry, how.SetExpiry = true, 0, true
	} else {
		// The claim has found what lies above the saved cursor.
		gone = append(gone, store.SaveCursor{Owner: claimed.Owner, Cursor: claimed.Cursor})
	}
	if err := b.writeAll(ctx, cl, append(gone, how)...); err != nil {
		return false, err
	}
	b.keeper.poke()
	return true, nil
}

// claim claims a session that cl has entered for. late: ctx has ended before the answer.
// The claim may be carried out all the same, so the client id stays cl's until then: no
// other claim of this node meets it on its way, nor does a look into the store come
// before it. Then after is called with the answer, and cl leaves.
func (b *Broker) claim(ctx context.Context, cl *client, c store.Claim, after func(store.Claimed)) (claimed store.Claimed, late bool) {
	answer := b.claims.ask(c)
	select {
	case claimed = <-answer:
		return claimed, false
	case <-ctx.Done():
	}
	b.tasks.Go(func() {
		after(<-answer) // it comes: the calls of the store end with the broker
		cl.leave()
	})
	return store.Claimed{Err: ctx.Err()}, true
}

// writeAll carries out writes of a session that cl has entered for.
func (b *Broker) writeAll(ctx context.Context, cl *client, docs ...store.Write) error {
	answers := make(chan error, len(docs))
	for _, doc := range docs {
		b.writes.put(write{cl: cl, doc: doc, done: func(err error) { answers <- err }})
	}
	for range docs {
		select {
		case err := <-answers:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
