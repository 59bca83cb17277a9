package broker

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"rewindmq/broker/session"
	"rewindmq/schema"
)

// sysEvery is how often the $SYS topics are published.
const sysEvery = 10 * time.Second

// sysTotals are the numbers behind the $SYS topics.
type sysTotals struct {
	received, sent, dropped, bytesReceived, bytesSent atomic.Int64
	maximum                                           int // clients connected at once; the ticker's own
}

// runSys publishes the broker's state under $SYS/broker, by the names that
// Mosquitto made common. These messages are not in the log: they are retained in
// the projection, and told to those who are subscribed to them, at QoS 0.
//
// The first time is before the broker is ready: so they are there for whoever
// subscribes.
func (b *Broker) runSys(ctx context.Context) {
	started := time.Now()
	tick := time.NewTicker(sysEvery)
	defer tick.Stop()
	for n := uint64(2); ; n++ {
		select {
		case <-tick.C:
			b.publishSys(n, time.Since(started))
		case <-ctx.Done():
			return
		}
	}
}

func (b *Broker) publishSys(n uint64, up time.Duration) {
	all := b.roster.all(nil)
	t := &b.m.totals
	t.maximum = max(t.maximum, len(all))
	stored := int(b.stored.Load())
	retained, _ := b.projection.totals()
	num := func(v int64) string { return strconv.FormatInt(v, 10) }
	values := [][2]string{
		{"version", "rewindmq " + b.o.Version},
		{"uptime", fmt.Sprintf("%d seconds", int(up.Seconds()))},
		{"clients/total", num(int64(max(stored, len(all))))},
		{"clients/connected", num(int64(len(all)))},
		{"clients/active", num(int64(len(all)))},
		{"clients/disconnected", num(int64(max(0, stored-len(all))))},
		{"clients/inactive", num(int64(max(0, stored-len(all))))},
		{"clients/maximum", num(int64(t.maximum))},
		{"messages/received", num(t.received.Load())},
		{"messages/sent", num(t.sent.Load())},
		{"publish/messages/received", num(t.received.Load())},
		{"publish/messages/sent", num(t.sent.Load())},
		{"publish/messages/dropped", num(t.dropped.Load())},
		{"publish/bytes/received", num(t.bytesReceived.Load())},
		{"publish/bytes/sent", num(t.bytesSent.Load())},
		{"retained messages/count", num(int64(retained))},
		{"subscriptions/count", num(b.subscribed.Load())},
	}
	now := b.now()
	msgs := make([]*schema.Message, len(values))
	for i, v := range values {
		msgs[i] = &schema.Message{
			ID: b.ids.Next(now), TS: n, Topic: "$SYS/broker/" + v[0], Payload: []byte(v[1]), Retain: true, Created: now, Host: b.o.Node,
		}
		b.projection.put(msgs[i], false)
	}
	for _, cl := range all {
		cl.input(func(s *session.Session) {
			if !cl.opened {
				return // CONNACK is the first packet [MQTT-3.2.0-1]
			}
			for _, m := range msgs {
				s.Tell(m)
			}
		})
	}
}
