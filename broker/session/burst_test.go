package session

import (
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// What is given at once, or waits for its record, is bounded by Burst: the window
// alone would let 1,000 large messages pile up before the connection says stop.
func TestBurst(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{true, false} {
		ids, now := schema.NewIDSource(), time.Unix(1, 0)
		s, err := New(Options{
			Owner: schema.Owner{ClientID: "c", SID: 1, Epoch: 1}, Clean: clean, Window: 1000, Quota: 1000, ReceiveMaximum: 1,
			Burst: 10_000, Now: func() time.Time { return now }, NewID: ids.Next, H: func() schema.Cursor { return schema.At(1, 0) },
		}, &store.Claimed{Present: true, Released: true, Subscriptions: []schema.Subscription{{Filter: "#", QoS: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		if _, _, ok := s.OnAttach(); !ok || !s.OnCaughtUp(schema.At(1, 0)) {
			t.Fatal("not live")
		}
		s.Block(true)
		const messages = 100
		for n := range uint64(messages) {
			s.Offer(&schema.Message{Mark: schema.Mark{Lane: 1, N: n + 1}, Topic: "t", Payload: make([]byte, 4000), QoS: 1})
		}
		s.Actions()
		s.Block(false)
		sent, records, rounds := 0, 0, 0
		for ; sent < messages && rounds < 1000; rounds++ {
			given := 0
			for _, a := range s.Actions() {
				switch a.Do {
				case SendPublish:
					given += a.Message.Size()
					sent++
				case DoRecord:
					records++
				}
			}
			// Burst, and the message that reached it.
			if given > 10_000+5_000 {
				t.Fatalf("clean %v: %d bytes at once", clean, given)
			}
			if !clean && records > 0 {
				records--
				s.OnRecorded(nil, false)
			}
			if s.Paused() {
				s.Pump()
			}
		}
		if sent != messages {
			t.Errorf("clean %v: %d of %d messages in %d rounds", clean, sent, messages, rounds)
		}
	}
}
