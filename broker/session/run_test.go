package session

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// walked is a session whose retained runs walk through a projection that is told here.
type walked struct {
	*Session
	t     *testing.T
	next  func(filter, after string) (*schema.Message, string, bool)
	looks int // calls of Next

	walks, waits int // actions since the last call of since
	sent         []*schema.Message
	acks         []AckKind
	writes       []store.Write
	records      int
	stalled      bool // writes are not answered
	unanswered   int
}

func (w *walked) Next(filter, after string) (*schema.Message, string, bool) {
	w.looks++
	return w.next(filter, after)
}

// newWalked begins a live, persistent session with Receive Maximum 1 and runs that a
// former connection has left.
func newWalked(t *testing.T, subs []schema.Subscription, next func(filter, after string) (*schema.Message, string, bool)) *walked {
	t.Helper()
	w := &walked{t: t, next: next}
	ids, now := schema.NewIDSource(), time.Unix(1, 0)
	for i := range subs {
		subs[i].Run = &schema.Run{ID: ids.Next(now), Place: schema.At(1, 0)}
	}
	s, err := New(Options{
		Owner: schema.Owner{ClientID: "c", SID: 1, Epoch: 1}, Window: 1, Quota: 1, ReceiveMaximum: 10, CanRefuse: true,
		Now: func() time.Time { return now }, NewID: ids.Next, H: func() schema.Cursor { return schema.At(1, 0) }, Retained: w,
	}, &store.Claimed{Present: true, Released: true, Subscriptions: subs})
	if err != nil {
		t.Fatal(err)
	}
	w.Session = s
	s.Start()
	w.carry()
	if _, _, ok := s.OnAttach(); !ok || !s.OnCaughtUp(schema.At(1, 0)) {
		t.Fatal("not live")
	}
	w.carry()
	return w
}

// carry carries out what the session asks for, but for Walk.
func (w *walked) carry() {
	for {
		actions := w.Actions()
		for _, a := range actions {
			switch a.Do {
			case SendPublish:
				w.sent = append(w.sent, a.Message)
			case SendAck:
				w.acks = append(w.acks, a.Ack)
			case DoWalk:
				w.walks++
			case DoWaitFor:
				w.waits++
			case DoRecord:
				w.records++
				w.OnRecorded(nil, false)
			case DoWrite:
				w.writes = append(w.writes, a.Write)
				if w.unanswered++; !w.stalled {
					w.answer()
				}
			case DoHead:
				w.OnHead(schema.At(1, 0), nil)
			case DoAppend:
				w.OnAppended(store.Appended{Outcome: store.Stored, Mark: schema.Mark{Lane: 2, N: 1}})
			}
		}
		if len(actions) == 0 {
			return
		}
	}
}

func (w *walked) answer() {
	for ; w.unanswered > 0; w.unanswered-- {
		w.OnWritten(nil, false)
	}
}

// forget begins to count anew.
func (w *walked) forget() { w.looks, w.walks, w.waits, w.sent, w.writes = 0, 0, 0, nil, nil }

// stored gives the filters of the subscriptions written since.
func (w *walked) stored() (filters []string) {
	for _, doc := range w.writes {
		if put, ok := doc.(store.PutSubscriptions); ok {
			for i := range put.Subscriptions {
				filters = append(filters, put.Subscriptions[i].Filter)
			}
		}
	}
	return filters
}

// Runs that match nothing look at a bounded number of topics at once, and ask to go on
// later, once; what the hub brings goes in between, and costs no look.
func TestRunsLookAtLittleAtOnce(t *testing.T) {
	t.Parallel()
	const filters, topics = 50, 200
	subs := []schema.Subscription{{Filter: "live"}}
	for i := range filters {
		subs = append(subs, schema.Subscription{Filter: fmt.Sprintf("+/none%d", i), QoS: uint8(i % 2)})
	}
	w := newWalked(t, subs, func(_, after string) (*schema.Message, string, bool) {
		n, _ := strconv.Atoi(after)
		return nil, fmt.Sprintf("%06d", n+1), n == topics
	})
	if w.looks == 0 || w.looks > looksAtOnce || w.walks != 1 {
		t.Fatalf("%d looks and %d Walks asked for at the start", w.looks, w.walks)
	}
	rounds, asked := 0, w.walks
	for ; asked > 0 && rounds < 100_000; rounds++ {
		w.forget()
		w.Offer(&schema.Message{Topic: "live", Mark: schema.Mark{Lane: 1, N: uint64(rounds + 1)}})
		w.Pump()
		w.carry()
		if w.looks > 0 || w.walks > 0 || len(w.sent) != 1 {
			t.Fatalf("a live message: %d looks, %d Walks asked for, %d sent", w.looks, w.walks, len(w.sent))
		}
		w.Walk()
		w.carry()
		if w.looks > looksAtOnce || w.walks > 1 {
			t.Fatalf("%d looks at once, %d Walks asked for", w.looks, w.walks)
		}
		asked = w.walks
	}
	if want := (filters + 1) * topics / looksAtOnce; w.Session.runs != nil || rounds < want {
		t.Errorf("%d rounds, want %d or more; finished: %v", rounds, want, w.Session.runs == nil)
	}
}

// twoTopics is one in which each filter has two messages.
func twoTopics(filter, after string) (*schema.Message, string, bool) {
	if after == "b" {
		return nil, after, true
	}
	at := "a"
	if after == "a" {
		at = "b"
	}
	return &schema.Message{Topic: filter + at, QoS: 1, Payload: []byte("r"), Mark: schema.Mark{Lane: 1}}, at, false
}

// A save stores the places of the runs that moved since the last one, and no others.
func TestSaveStoresWhatMoved(t *testing.T) {
	t.Parallel()
	var subs []schema.Subscription
	for i := range 100 {
		subs = append(subs, schema.Subscription{Filter: fmt.Sprintf("%02d", i), QoS: 1})
	}
	w := newWalked(t, subs, twoTopics)
	for _, want := range [][]string{{"00"}, nil} {
		w.forget()
		w.Save()
		if w.carry(); !slices.Equal(w.stored(), want) {
			t.Errorf("stored %q, want %q", w.stored(), want)
		}
	}
	if last, ok := w.writes[len(w.writes)-1].(store.SaveCursor); !ok || last.Cursor.Seq != 1 {
		t.Errorf("the last write is %+v", w.writes[len(w.writes)-1])
	}
}

// retainedTopic is a projection in which each filter without wildcard has a message.
func retainedTopic(filter, after string) (*schema.Message, string, bool) {
	if after != "" {
		return nil, after, true
	}
	return &schema.Message{Topic: filter, QoS: 1, Payload: []byte("r"), Mark: schema.Mark{Lane: 1}}, filter, false
}

// With many runs waiting for room, an acknowledgement moves one, and costs what one
// costs; a save stores the places that moved.
func TestManyRunsWaitForRoom(t *testing.T) {
	t.Parallel()
	const many = 1000
	var subs []schema.Subscription
	for i := range many {
		subs = append(subs, schema.Subscription{Filter: fmt.Sprintf("d/%04d", i), QoS: 1})
	}
	w := newWalked(t, subs, retainedTopic)
	for i := range many {
		if len(w.sent) != 1 || w.looks > looksAtOnce {
			t.Fatalf("%d: %d sent, %d looks", i, len(w.sent), w.looks)
		}
		for range 3 { // nothing to be done
			w.looks = 0
			w.Pump()
			w.carry()
			if w.looks > 0 {
				t.Fatalf("%d looks without room", w.looks)
			}
		}
		w.writes = nil
		w.Save()
		w.carry()
		if got := w.stored(); len(got) > 1 {
			t.Fatalf("a save stores %d subscriptions: %q", len(got), got)
		}
		w.forget()
		w.OnAck(Puback, 1, Success)
		for w.carry(); w.walks > 0; w.carry() {
			w.walks = 0
			w.Walk()
		}
		// That one is finished, and the next one has moved, is all.
		if got := w.stored(); len(got) > 1 {
			t.Fatalf("an acknowledgement stores %q", got)
		}
	}
	if w.Session.runs != nil || w.records != many {
		t.Errorf("%d records, finished: %v", w.records, w.Session.runs == nil)
	}
}

// A run whose messages need no packet id does not wait for one that waits for them.
func TestRunWithoutIDsGoesOn(t *testing.T) {
	t.Parallel()
	w := newWalked(t, []schema.Subscription{{Filter: "a", QoS: 1}, {Filter: "b", QoS: 1}, {Filter: "c", QoS: 0}}, retainedTopic)
	var got []string
	for _, m := range w.sent {
		got = append(got, m.Topic)
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("sent %q", got)
	}
}

// A SUBSCRIBE waits for its place once, whatever number of runs begin with it; what
// replaces, or takes out, a run that waits leaves nothing of it.
func TestRunsAreDropped(t *testing.T) {
	t.Parallel()
	w := newWalked(t, []schema.Subscription{{Filter: "first", QoS: 1}}, retainedTopic)
	subscribe := func() {
		subs, codes, filters := []schema.Subscription(nil), make([]Code, 100), []string(nil)
		for i := range codes {
			filters = append(filters, fmt.Sprintf("d/%02d", i))
			subs = append(subs, schema.Subscription{Filter: filters[i], QoS: 1})
		}
		w.forget()
		w.OnSubscribe(1, subs, codes)
		w.carry()
		if w.waits != 1 {
			t.Errorf("%d places waited for", w.waits)
		}
		if r := w.Session.runs; r == nil || r.n < 100 || len(r.waiting[withIDs].subs) != 100 {
			t.Fatalf("runs: %+v", r)
		}
	}
	subscribe()
	subscribe()
	w.OnUnsubscribe(2, w.Filters())
	w.carry()
	w.Save()
	w.carry()
	if w.Session.runs != nil || len(w.subs) != 0 {
		t.Errorf("left: %+v, %d subscriptions", w.Session.runs, len(w.subs))
	}
	w.forget()
	w.Save()
	if w.carry(); len(w.stored()) > 0 {
		t.Errorf("what was taken out is stored: %q", w.stored())
	}
}

// [MQTT-4.3.3-11] A repeated PUBREL makes no second write while the first is under way,
// and PUBCOMP comes when that is committed, behind all of them.
func TestPubrelRepeated(t *testing.T) {
	t.Parallel()
	w := newWalked(t, nil, retainedTopic)
	w.OnPublish(&schema.Message{Topic: "x", QoS: 2, Created: time.Unix(1, 0)}, 7)
	w.carry()
	for range 3 { // each time for a message of its own
		w.forget()
		w.acks, w.stalled = nil, true
		for range 1000 {
			w.OnPubrel(7)
			w.carry()
		}
		if len(w.writes) != 1 || len(w.acks) != 0 {
			t.Fatalf("%d writes, answered with %v", len(w.writes), w.acks)
		}
		w.stalled = false
		w.answer()
		if w.carry(); !slices.Equal(w.acks, []AckKind{Pubcomp}) {
			t.Fatalf("answered with %v", w.acks)
		}
		w.OnPublish(&schema.Message{Topic: "x", QoS: 2, Created: time.Unix(1, 0)}, 7)
		w.carry()
	}
}
