package integration

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// inbox collects what a paho client receives. Safe for concurrent use.
type inbox struct {
	mu   sync.Mutex
	list []string
}

func (i *inbox) add(text string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = append(i.list, text)
}

func (i *inbox) all() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string{}, i.list...)
}

// openPaho connects a client that reconnects by itself and keeps its session's
// state.
func (b *broker) openPaho(ctx context.Context, id string, got *inbox, filters ...string) *autopaho.ConnectionManager {
	b.t.Helper()
	server, err := url.Parse("mqtt://" + b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	var subscribe paho.Subscribe
	for _, f := range filters {
		subscribe.Subscriptions = append(subscribe.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 2})
	}
	ready := make(chan error, 64)
	cm, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{server},
		KeepAlive:                     30,
		CleanStartOnInitialConnection: false,
		SessionExpiryInterval:         300,
		ReconnectBackoff:              func(int) time.Duration { return 10 * time.Millisecond },
		ConnectTimeout:                patience,
		OnConnectionUp: func(cm *autopaho.ConnectionManager, _ *paho.Connack) {
			if len(filters) == 0 {
				ready <- nil
				return
			}
			_, err := cm.Subscribe(ctx, &subscribe)
			select {
			case ready <- err:
			default:
			}
		},
		ClientConfig: paho.ClientConfig{
			ClientID: id,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				got.add(fmt.Sprintf("%s %s", p.Packet.Topic, p.Packet.Payload))
				return true, nil
			}},
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		b.t.Fatalf("paho %s: %v", id, err)
	}
	return cm
}

// paho.golang's MQTT 5 client publishes and subscribes at QoS 2 over SIGKILLs:
// everything once, in order.
func TestPahoClient(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		ctx := t.Context()
		got := &inbox{}
		sub := b.openPaho(ctx, "paho-sub", got, "paho/#")
		pub := b.openPaho(ctx, "paho-pub", &inbox{})
		var want []string
		for i := range rounds(50) {
			for k := range 10 {
				text := fmt.Sprintf("m%d.%d", i, k)
				want = append(want, "paho/t "+text)
				// The call returns at once; the queue gives it to the session, which
				// sends it again after a reconnect, under its packet id.
				err := pub.PublishViaQueue(ctx, &autopaho.QueuePublish{Publish: &paho.Publish{
					Topic: "paho/t", QoS: 2, Payload: []byte(text),
					Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "from", Value: "paho"}}},
				}})
				if err != nil {
					t.Fatal(err)
				}
			}
			b.crash()
		}
		b.reaches("everything has come", len(want), func() int { return len(got.all()) })
		for _, cm := range []*autopaho.ConnectionManager{pub, sub} {
			if err := cm.Disconnect(ctx); err != nil {
				t.Errorf("disconnect: %v", err)
			}
			<-cm.Done()
		}
		b.expectLogOf("paho/t", want)
		if list := got.all(); fmt.Sprint(list) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", list, want)
		}
	})
}

// expectLogOf is expectLog for "topic payload" texts.
func (b *broker) expectLogOf(topic string, want []string) {
	b.t.Helper()
	list := make([]string, len(want))
	for i, text := range want {
		list[i] = text[len(topic)+1:]
	}
	b.expectLog(topic, list...)
}
