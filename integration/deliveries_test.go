package integration

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

const apiDeliveries = "/api/v1/deliveries"

type listedDelivery struct {
	Message  string
	Client   string
	Topic    string
	QoS      int
	State    string
	Created  time.Time
	Node     string
	Retained bool
}

// delivered gives what the API tells.
func (b *broker) delivered(parameter, what string) []listedDelivery {
	b.t.Helper()
	var page struct{ Deliveries []listedDelivery }
	code, body := b.apiCall(http.MethodGet, apiDeliveries, url.Values{parameter: {what}})
	if err := json.Unmarshal([]byte(body), &page); err != nil || code != http.StatusOK {
		b.t.Fatalf("the API says %d %.300s", code, body)
	}
	return page.Deliveries
}

// deliveries gives what the command and the API, which have to agree, tell.
func (b *broker) deliveries(flag, what string) []listedDelivery {
	b.t.Helper()
	list := operateJSON[[]listedDelivery](b, "deliveries", "--"+flag, what)
	if page := b.delivered(flag, what); !slices.Equal(list, page) {
		b.t.Errorf("the command tells %+v, the API %+v", list, page)
	}
	return list
}

func states(list []listedDelivery) string {
	var out []string
	for _, d := range list {
		out = append(out, d.State)
	}
	return strings.Join(out, " ")
}

// S-36: who was sent what, when, by which node, and what of it was acknowledged; also
// after the broker was killed.
func TestS36_Deliveries(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		pub := b.open(transient(v5, "pub"))
		pub.publish(message{topic: "s36/kept", qos: 1, retain: true, payload: []byte("kept")})
		dev, other := b.open(persistent(v5, "dev/ 1")), b.open(persistent(v311, "other"))
		dev.subscribe(want{"s36/#", 2})
		dev.settle(dev.takePayload("kept"))
		other.subscribe(want{"s36/x", 1})
		publish := func(topic string, qos byte) (dev1, other1 packet) {
			pub.publish(message{topic: topic, qos: qos, payload: []byte(topic)})
			dev1 = dev.takePayload(topic)
			if topic == "s36/x" {
				other1 = other.takePayload(topic)
			}
			return dev1, other1
		}
		before := time.Now().Add(-time.Minute)
		first, second := publish("s36/x", 1)
		dev.settle(first)
		other.settle(second)
		received, _ := publish("s36/y", 2)
		dev.ack(kindPubrec, received.id)
		dev.await(kindPubrel)
		publish("s36/z", 1) // not acknowledged

		b.eventually("the places are saved", func() bool {
			return states(b.delivered("client", "dev/ 1")) == "acknowledged acknowledged received sent" &&
				states(b.delivered("client", "other")) == "acknowledged"
		})
		told := func(b *broker) {
			t.Helper()
			list := b.deliveries("client", "dev/ 1")
			if got := states(list); got != "acknowledged acknowledged received sent" {
				t.Errorf("the states are %s", got)
			}
			for i, topic := range []string{"s36/kept", "s36/x", "s36/y", "s36/z"} {
				d := list[i]
				if d.Client != "dev/ 1" || d.Topic != topic || d.Retained != (i == 0) || d.Node == "" || d.Created.Before(before) || d.Created.After(time.Now().Add(time.Minute)) {
					t.Errorf("%+v, want %s", d, topic)
				}
			}
			of := b.deliveries("message", list[1].Message)
			names := []string{of[0].Client, of[len(of)-1].Client}
			if slices.Sort(names); len(of) != 2 || !slices.Equal(names, []string{"dev/ 1", "other"}) {
				t.Errorf("the message was delivered to %+v", of)
			}
		}
		told(b)
		if n := len(b.deliveries("client", "nobody")); n != 0 {
			t.Errorf("%d deliveries to nobody", n)
		}
		b.operate(2, "deliveries")
		b.operate(2, "deliveries", "--message", "x")
		if code, _ := b.apiCall(http.MethodGet, apiDeliveries, nil); code != http.StatusBadRequest {
			t.Errorf("of nothing in particular: %d", code)
		}
		if lines := strings.Count(b.operate(0, "deliveries", "--client", "dev/ 1"), "\n"); lines != 5 {
			t.Errorf("%d lines for four deliveries and a head", lines)
		}
		b.crash()
		told(b)
	})
}
