package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// How much the keeper does in one go.
const (
	keepEvery = time.Second
	keepBatch = 500
)

// keeper does the housekeeping that needs the protocol: it publishes due wills
// and ends sessions whose time is over. All of it is idempotent.
type keeper struct {
	b    *Broker
	wake chan struct{}
}

// poke makes the keeper look now: a connection has ended.
func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *keeper) run(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		if err := k.round(ctx); err != nil && ctx.Err() == nil {
			k.b.storeTrouble("keeper", "", err)
		}
		select {
		case <-tick.C:
		case <-k.wake:
		case <-ctx.Done():
			return
		}
	}
}

func (k *keeper) round(ctx context.Context) error {
	due, err := k.b.store.DueWills(ctx, keepBatch)
	if err != nil {
		return fmt.Errorf("find due wills: %w", err)
	}
	for i := range due {
		if err := k.publish(ctx, due[i].ClientID, []schema.Will{due[i].Will}); err != nil {
			return err
		}
	}
	ended, err := k.b.store.EndExpired(ctx, keepBatch) // [MQTT-4.1.0-2]
	if err != nil {
		return fmt.Errorf("end expired sessions: %w", err)
	}
	for range ended {
		k.b.m.sessionEvent("expired")
	}
	counts, err := k.b.store.Counts(ctx)
	if err != nil {
		return fmt.Errorf("count sessions: %w", err)
	}
	k.b.stored.Store(int64(counts.Sessions))
	k.b.subscribed.Store(int64(counts.Subscriptions))
	k.b.m.counts(counts, k.b.roster.len())
	return nil
}

// publish appends wills, in order, and then takes them out. Whoever finds one
// does this: the message is the same, and the log takes it once (W1).
func (k *keeper) publish(ctx context.Context, clientID string, wills []schema.Will) error {
	if len(wills) == 0 {
		return nil
	}
	msgs := make([]*schema.Message, len(wills))
	for i := range wills { // RETAIN as the will says [MQTT-3.1.2-14, MQTT-3.1.2-15]
		msgs[i] = store.WillMessage(clientID, k.b.o.Node, &wills[i])
	}
	p := &store.Publisher{Owner: schema.Owner{ClientID: clientID}, Strict: true}
	answer := make(chan error, 1)
	k.b.store.Append(ctx, p, msgs, func(answers []store.Appended) {
		for _, a := range answers {
			if a.Outcome != store.Stored && !errors.Is(a.Err, store.ErrTooLarge) {
				answer <- fmt.Errorf("append the will of %q: %w", clientID, a.Err)
				return
			}
		}
		answer <- nil
	})
	select {
	case err := <-answer:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	for i := range wills {
		k.b.writes.put(write{
			doc: store.TakeOutWill{Owner: schema.Owner{ClientID: clientID}, Key: wills[i].Key},
			done: func(err error) {
				if err != nil {
					k.b.storeTrouble("take out will", clientID, err)
				}
			},
		})
	}
	return nil
}
