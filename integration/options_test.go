package integration

import (
	"fmt"
	"slices"
	"testing"
)

// No-local: a client does not get its own messages on such a subscription, live
// and replayed [MQTT-3.8.3-3].
func TestNoLocal(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		dev := persistent(v5, "dev")
		c := b.open(dev)
		c.subscribe(want{"nl/#", 4 | 1}, want{"own/#", 1})
		c.lastID = 100
		c.publish(message{topic: "nl/t", qos: 1, payload: []byte("own")})
		c.publish(message{topic: "own/t", qos: 1, payload: []byte("own")})
		b.publishTexts("nl/t", 1, "other")
		c.settle(c.takePayload("own"))
		c.settle(c.takePayload("other"))
		c.publish(message{topic: "nl/t", qos: 1, payload: []byte("own again")})
		c.cut()
		b.crash()
		b.publishTexts("nl/t", 1, "other again")
		c = b.open(dev).expectPresent(true)
		p := c.settle(c.take())
		for p.dup { // in doubt
			p = c.settle(c.take())
		}
		if string(p.payload) != "other again" {
			t.Errorf("got %v, want the other's message", p)
		}
	})
}

// Subscription identifiers: those of all matching subscriptions, in one copy,
// live and replayed after a SIGKILL [MQTT-3.3.4-3, 3.3.4-4].
func TestSubscriptionIdentifiers(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		dev := persistent(v5, "dev")
		c := b.open(dev)
		c.subscribeWith([]property{{id: propSubscriptionID, num: 7}}, want{"si/a", 1})
		c.subscribeWith([]property{{id: propSubscriptionID, num: 268435455}}, want{"si/+", 2})
		c.subscribe(want{"si/#", 0})
		check := func(p packet, want ...uint32) {
			t.Helper()
			var got []uint32
			for _, q := range p.props {
				if q.id == propSubscriptionID {
					got = append(got, q.num)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%v has identifiers %v, want %v", p, got, want)
			}
		}
		b.publishTexts("si/a", 2, "a")
		p := c.settle(c.takePayload("a"))
		check(p, 7, 268435455)
		if p.qos != 2 {
			t.Errorf("%v, want QoS 2", p)
		}
		b.publishTexts("si/a/b", 1, "deep")
		check(c.takePayload("deep"))
		c.disconnect()
		b.publishTexts("si/b", 1, "b")
		b.crash()
		c = b.open(dev).expectPresent(true)
		check(c.settle(c.takePayload("b")), 268435455)
		c.ping()
		if len(c.inbox) > 0 {
			t.Errorf("%v after the end", c.inbox)
		}
	})
}

// What a publisher says beside the payload is passed on unchanged and in order,
// live, retained and replayed after a SIGKILL [MQTT-3.3.2-17, 3.3.2-18].
func TestPropertiesPass(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		sent := []property{
			{id: propPayloadFormat, num: 1},
			{id: propContentType, str: "text/csv"},
			{id: propResponseTopic, str: "answer/here"},
			{id: propCorrelation, str: "\x00\x01\xff"},
			{id: propUser, str: "unit", val: "°C"},
			{id: propUser, str: "unit", val: "again"},
			{id: propUser, str: "", val: ""},
		}
		check := func(name string, p packet) {
			t.Helper()
			byID := func(list []property) []property {
				list = slices.DeleteFunc(slices.Clone(list), func(q property) bool { return q.id == propSubscriptionID })
				slices.SortStableFunc(list, func(a, b property) int { return int(a.id) - int(b.id) })
				return list
			}
			if got, want := byID(p.props), byID(sent); !slices.Equal(got, want) {
				t.Errorf("%s: properties %+v, want %+v", name, got, want)
			}
		}
		live, away := b.open(persistent(v5, "live")), b.open(persistent(v5, "away"))
		old := b.open(persistent(v311, "old"))
		for _, c := range []*client{live, away, old} {
			c.subscribe(want{"up/t", 1})
		}
		away.disconnect()
		pub := b.open(transient(v5, "pub"))
		pub.publish(message{topic: "up/t", qos: 1, retain: true, payload: []byte("21,5"), props: sent})
		check("live", live.settle(live.takePayload("21,5")))
		old.settle(old.takePayload("21,5"))
		b.crash()
		away = b.open(persistent(v5, "away")).expectPresent(true)
		check("replayed", away.settle(away.takePayload("21,5")))
		fresh := b.open(transient(v5, "fresh"))
		fresh.subscribe(want{"up/+", 1})
		check("retained", fresh.settle(fresh.takePayload("21,5")))
	})
}

// Retain as published, and the three retain handlings [MQTT-3.3.1-9 to -13].
func TestRetainOptions(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		pub := b.open(transient(v5, "pub"))
		pub.publish(message{topic: "ro/t", qos: 1, retain: true, payload: []byte("kept")})
		for _, c := range []struct {
			name    string
			options byte
			again   byte
			want    []string // payload and RETAIN of what comes
		}{
			{"0", 1, 1, []string{"kept/true", "kept/true"}},
			{"1, new only", 0x10 | 1, 0x10 | 1, []string{"kept/true"}},
			{"2, never", 0x20 | 1, 0x20 | 1, nil},
		} {
			sub := b.open(transient(v5, "sub"+c.name))
			var got []string
			for _, options := range []byte{c.options, c.again} {
				sub.subscribe(want{"ro/t", options})
			}
			// The retained run may follow SUBACK: a marker ends it.
			pub.publish(message{topic: "ro/t", qos: 1, payload: []byte("end")})
			for {
				p := sub.settle(sub.take())
				if string(p.payload) == "end" {
					break
				}
				got = append(got, fmt.Sprintf("%s/%t", p.payload, p.retain))
			}
			// A retained run may end behind the marker, but not by much.
			sub.ping()
			for _, p := range sub.inbox {
				got = append(got, fmt.Sprintf("%s/%t", p.payload, p.retain))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			}
		}
		keep := b.open(transient(v5, "keep"))
		keep.subscribe(want{"rap/t", 8 | 1})
		pub.publish(message{topic: "rap/t", qos: 1, retain: true, payload: []byte("a")})
		pub.publish(message{topic: "rap/t", qos: 1, payload: []byte("b")})
		if p := keep.settle(keep.takePayload("a")); !p.retain {
			t.Errorf("%v, want RETAIN=1 as published", p)
		}
		if p := keep.settle(keep.takePayload("b")); p.retain {
			t.Errorf("%v, want RETAIN=0 as published", p)
		}
	})
}
