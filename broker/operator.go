package broker

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

var (
	// ErrBusy answers EndSession while the client is connecting.
	ErrBusy = errors.New("broker: the client is connecting")
	// ErrNotRetained answers ClearRetained where the topic has no retained message.
	ErrNotRetained = errors.New("broker: nothing is retained on the topic")
)

// EndSession ends a session for the operator, now. A connection that it has on this node
// is closed, MQTT 5 with DISCONNECT 0x98; one on another node as by a takeover. Its will
// is published: the session has ended [MQTT-3.1.2-8, MQTT-3.1.3-9]. Errors:
// store.ErrNoSession; ErrBusy, when its client is connecting at that moment.
func (b *Broker) EndSession(ctx context.Context, clientID string) error {
	if _, err := b.store.LookSession(ctx, clientID); err != nil {
		return err
	}
	cl := b.newClient(clientID, nil)
	cl.ousts = session.ReasonAdmin
	if _, err := b.roster.enter(ctx, cl); errors.Is(err, errTakenOver) {
		return fmt.Errorf("%w: client %q", ErrBusy, clientID)
	} else if err != nil {
		return err
	}
	defer cl.leave()
	// A clean start ends the session that was, with what belongs to it.
	claimed := b.claims.claim(ctx, store.Claim{ClientID: clientID, CleanStart: true, Protocol: 5, At: b.hub.H().Clone()})
	if claimed.Err == nil {
		claimed.Err = b.keeper.publish(ctx, clientID, claimed.Wills)
	}
	if claimed.Err == nil {
		claimed.Err = b.writeAll(ctx, cl, store.Release{Owner: claimed.Owner, Normal: true, SetExpiry: true})
	}
	if claimed.Err != nil {
		b.orphans.add(clientID, orphan{how: store.Release{Normal: true, SetExpiry: true}, protocol: 5})
		return fmt.Errorf("end session %q: %w", clientID, claimed.Err)
	}
	b.m.sessionEvent("terminated")
	b.o.Log.Info("session ended by the operator", zap.String("client", clientID))
	return nil
}

// Retained gives up to limit retained messages whose topics match filter, in the order
// of their bytes, behind the topic `after` ("": all). They are shared and read only.
// next is what to go on behind; "": there are no more.
func (b *Broker) Retained(ctx context.Context, filter, after string, limit int) (list []*schema.Message, next string, err error) {
	for at, end := after, false; !end; {
		var m *schema.Message
		if m, at, end = b.projection.Next(filter, at); m != nil {
			list = append(list, m)
		}
		switch {
		case ctx.Err() != nil:
			return nil, "", ctx.Err()
		case len(list) == limit && !end:
			return list, at, nil
		}
	}
	return list, "", nil
}

// ClearRetained removes the retained message of a topic, as a client's empty one would:
// it is a publish [MQTT-3.3.1-6].
func (b *Broker) ClearRetained(ctx context.Context, topic string) error {
	if !b.projection.has(topic) {
		return fmt.Errorf("%w: %q", ErrNotRetained, topic)
	}
	now := b.now()
	m := &schema.Message{ID: b.ids.Next(now), Topic: topic, QoS: 1, Retain: true, Created: now, Host: b.o.Node}
	answer := make(chan store.Appended, 1)
	b.store.Append(ctx, &store.Publisher{}, []*schema.Message{m}, func(answers []store.Appended) { answer <- answers[0] })
	var a store.Appended
	select {
	case a = <-answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.Outcome != store.Stored {
		return fmt.Errorf("clear %q: %w", topic, a.Err)
	}
	b.o.Log.Info("retained message removed by the operator", zap.String("topic", topic))
	head, err := b.store.Head(ctx)
	if err != nil {
		return fmt.Errorf("clear %q: %w", topic, err)
	}
	return b.hub.WaitFor(ctx, head) // whoever asks next does not see it any more
}
