package session

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/storetest"
)

// play plays one client's session on a Model of the store, step by step: what
// the session asks for is done at once, unless it is held back. It writes down
// what leaves, as words.
type play struct {
	t   *testing.T
	m   *storetest.Model
	off rule

	node     storetest.Node
	lane     schema.Lane
	gen      uint32
	tail     *storetest.Tailing
	h        schema.Cursor
	retained map[string]*schema.Message

	o        Options
	cleanUp  bool // clean start
	expiry   uint32
	s        *Session
	claimed  store.Claimed
	filters  []string
	attached bool
	places   []schema.Cursor
	replays  int // DoReplay and rounds

	hold map[Do]bool // kept back until released
	held []Action
	lag  bool // the hub stands still

	reading bool
	open    bool
	upTo    schema.Cursor
	r       *storetest.Reading
	page    []*schema.Message
	rng     *rand.Rand // draws the order between lanes; nil: commit order

	out []string
}

// newPlay begins with one node and one lane. Rules are switched off by name.
func newPlay(t *testing.T, without ...string) *play {
	t.Helper()
	st := &play{t: t, m: storetest.NewModel(simStart), expiry: schema.NoExpiry, hold: map[Do]bool{}}
	for _, name := range without {
		if r, ok := coreRules[name]; ok {
			st.off |= r
		} else {
			st.m.Break(name)
		}
	}
	st.o = Options{
		Window: 3, Quota: 3, ReceiveMaximum: 4, Queue: 3, CanRefuse: true, Now: st.m.Now,
		NewID: func(time.Time) schema.ID { return st.m.NewID() },
		H:     func() schema.Cursor { return st.h },
		Size:  func(m *schema.Message, _ uint8, _ []uint32) int { return len(m.Payload) },
	}
	st.startNode()
	return st
}

func (st *play) startNode() {
	st.h = st.m.Head()
	st.tail = st.m.Tail(st.h)
	st.node = st.m.StartNode()
	st.lane = st.m.OpenLane(st.node)
	st.gen, _ = st.m.Lane(st.lane)
	st.retained = map[string]*schema.Message{}
	st.m.Messages(func(m *schema.Message) bool { st.project(m); return true })
	st.flow()
}

func (st *play) project(m *schema.Message) {
	if m.Retain {
		st.retained[m.Topic] = m
	}
}

// Next is the projection of the retained messages.
func (st *play) Next(filter, after string) (*schema.Message, string, bool) {
	var topics []string
	for t := range st.retained {
		if t > after {
			topics = append(topics, t)
		}
	}
	if len(topics) == 0 {
		return nil, "", true
	}
	t := slices.Min(topics)
	if m := st.retained[t]; len(m.Payload) > 0 && schema.Match(filter, t) {
		return m, t, false
	}
	return nil, t, false
}

// claim carries out a claim by the present node.
func (st *play) claim() {
	st.t.Helper()
	c := storetest.NewClaim(st.node, store.Claim{ClientID: "c", CleanStart: st.cleanUp, Expiry: st.expiry, Protocol: 5, At: st.h}, st.m.NewID(), 0)
	c.Hurry()
	var a storetest.Answer
	for step, more := c.Next(a); more; step, more = c.Next(a) {
		a = step.Do(st.m)
	}
	st.claimed = c.Claimed()
	if st.claimed.Err != nil {
		st.t.Fatalf("claim: %v", st.claimed.Err)
	}
}

// connect claims the session and starts it.
func (st *play) connect() {
	st.t.Helper()
	st.claim()
	st.o.Owner, st.o.Clean, st.o.Retained = st.claimed.Owner, st.expiry == 0, st
	s, err := New(st.o, &st.claimed)
	if err != nil {
		st.t.Fatal(err)
	}
	s.off = st.off
	st.s, st.filters, st.attached, st.places, st.held = s, nil, false, nil, nil
	st.reading, st.open, st.page = false, false, nil
	st.do((*Session).Start)
}

// crash is SIGKILL: the session is forgotten, with what it held back; another
// node starts.
func (st *play) crash() {
	st.s = nil
	st.hold, st.lag = map[Do]bool{}, false
	st.m.Kill(st.node)
	st.startNode()
}

// again is a crash and a return of the client.
func (st *play) again() {
	st.t.Helper()
	st.crash()
	st.connect()
}

// do tells the session something, and carries out all that follows.
func (st *play) do(f func(*Session)) {
	f(st.s)
	for range 1_000_000 {
		acts := st.s.Actions()
		for _, a := range acts {
			if st.hold[a.Do] {
				st.held = append(st.held, a)
			} else {
				st.carry(a)
			}
		}
		if len(acts) == 0 && !st.read() {
			return
		}
	}
	st.t.Fatal("it does not come to rest")
}

// release lets go what was held back, and holds nothing more of that kind.
func (st *play) release(kind Do) {
	delete(st.hold, kind)
	held := st.held
	st.held = nil
	st.do(func(*Session) {
		for _, a := range held {
			if a.Do == kind {
				st.carry(a)
			} else {
				st.held = append(st.held, a)
			}
		}
	})
}

func (st *play) say(format string, args ...any) {
	st.out = append(st.out, fmt.Sprintf(format, args...))
}

// heard gives what left since the last call.
func (st *play) heard() string {
	out := strings.Join(st.out, ", ")
	st.out = nil
	return out
}

func (st *play) carry(a Action) {
	s := st.s
	switch a.Do {
	case SendPublish:
		text := fmt.Sprintf("%s qos %d", a.Message.Payload, a.QoS)
		if a.PacketID != 0 {
			text += fmt.Sprintf(" id %d", a.PacketID)
		}
		if a.Dup {
			text += " dup"
		}
		if a.Retain {
			text += " retain"
		}
		if len(a.Identifiers) > 0 {
			text += fmt.Sprintf(" subscriptions %v", a.Identifiers)
		}
		st.say("%s", text)
	case SendAck:
		if a.Ack != 0 {
			st.say("%s %d%s", ackName(a.Ack), a.PacketID, code(a.Code))
		}
	case SendSuback:
		st.say("SUBACK %d %v", a.PacketID, a.Codes)
	case SendUnsuback:
		st.say("UNSUBACK %d %v", a.PacketID, a.Codes)
	case DoRecord:
		old := st.m.Record(a.Delivery)
		lost := old != nil && old.ID != a.Delivery.ID
		s.OnRecorded(errIf(lost), lost)
	case DoWrite:
		err := st.m.Write(a.Write)
		s.OnWritten(err, errors.Is(err, store.ErrSessionLost))
	case DoAppend:
		mark, ok := st.m.Land(st.lane, st.gen, a.Message)
		if !ok {
			s.OnAppended(store.Appended{Outcome: store.InDoubt})
			return
		}
		s.OnAppended(store.Appended{Outcome: store.Stored, Mark: mark})
	case DoFilters:
		st.filters = append(st.filters, a.Filters...)
	case DoUnfilter:
		st.filters = slices.DeleteFunc(st.filters, func(f string) bool { return slices.Contains(a.Filters, f) })
	case DoHead:
		s.OnHead(st.m.Head(), nil)
	case DoLookup:
		msgs := make([]*schema.Message, len(a.Refs))
		for i, r := range a.Refs {
			msgs[i] = st.m.Message(r.ID)
		}
		s.OnLookup(a.Refs, msgs)
	case DoReplay:
		st.reading = true
		st.replays++
	case DoWalk:
		s.Walk()
	case DoWaitFor:
		st.places = append(st.places, a.Place)
		st.passed()
	case DoClose:
		st.say("closed: %s", a.Reason)
	case DoEnd:
		st.say("let go")
	case Count:
		st.say("dropped: %s", a.Dropped)
	}
}

func errIf(lost bool) error {
	if lost {
		return store.ErrSessionLost
	}
	return nil
}

func code(c Code) string {
	if c == Success {
		return ""
	}
	return fmt.Sprintf(" code %#x", uint8(c))
}

// passed pumps the session for each place that the hub has passed.
func (st *play) passed() {
	for i := 0; i < len(st.places); {
		if st.h.Covers(st.places[i]) {
			st.places = slices.Delete(st.places, i, i+1)
			st.s.Pump()
		} else {
			i++
		}
	}
}

// read does one step of the reader; false: there is nothing it can do.
func (st *play) read() bool {
	s := st.s
	switch {
	case !st.reading || st.hold[DoReplay]:
		return false
	case !st.open:
		from, filters, ok := s.OnAttach()
		if !ok {
			st.reading = false
			return false
		}
		st.upTo, st.attached, st.open = st.h, true, true
		st.r = st.m.Read(from, st.upTo, filters, st.rng)
		return true
	case len(st.page) == 0:
		if m := st.r.Next(); m != nil {
			st.page = append(st.page, m)
			return true
		}
		st.open = false
		if s.OnCaughtUp(st.upTo) {
			st.reading = false
		} else {
			st.replays++
		}
		return true
	case s.Hungry() && s.Feed(st.page) == 1:
		st.page = nil
		return true
	}
	return false
}

// publish appends a message of another client, and lets it flow.
func (st *play) publish(topic, name string, qos uint8) *schema.Message {
	return st.append(&schema.Message{ID: st.m.NewID(), Topic: topic, Payload: []byte(name), QoS: qos, ClientID: "other"})
}

func (st *play) append(m *schema.Message) *schema.Message {
	if _, ok := st.m.Land(st.lane, st.gen, m); !ok {
		st.gen, _ = st.m.Lane(st.lane)
		if _, ok := st.m.Land(st.lane, st.gen, m); !ok {
			st.t.Fatal("append: the lane is stopped")
		}
	}
	st.flow()
	return m
}

// retain appends a retained message.
func (st *play) retain(topic, name string, qos uint8) *schema.Message {
	return st.append(&schema.Message{ID: st.m.NewID(), Topic: topic, Payload: []byte(name), QoS: qos, ClientID: "other", Retain: true})
}

// flow lets the hub catch up.
func (st *play) flow() {
	for !st.lag {
		e, ok := st.tail.Next()
		if !ok {
			return
		}
		if m := e.Message; m != nil {
			st.project(m)
			if st.s != nil && st.attached && slices.ContainsFunc(st.filters, func(f string) bool { return schema.Match(f, m.Topic) }) {
				st.do(func(s *Session) { st.attached = s.Offer(m) })
			}
		}
		st.h = e.H
		if st.s != nil {
			st.do(func(*Session) { st.passed() })
		}
	}
}

// subscribe sends a SUBSCRIBE; its packet id is 100 and its answer is not noted.
func (st *play) subscribe(filter string, qos uint8) {
	st.subscribeAs(schema.Subscription{Filter: filter, QoS: qos, RetainHandling: 2})
}

func (st *play) subscribeAs(sub schema.Subscription) {
	st.t.Helper()
	st.do(func(s *Session) { s.OnSubscribe(100, []schema.Subscription{sub}, []Code{Code(sub.QoS)}) })
	st.out = slices.DeleteFunc(st.out, func(x string) bool { return strings.HasPrefix(x, "SUBACK") })
}

func (st *play) ack(kind AckKind, id uint16) {
	st.do(func(s *Session) { s.OnAck(kind, id, Success) })
}

// send is a PUBLISH of the client's.
func (st *play) send(name string, qos uint8, id uint16) {
	m := &schema.Message{Topic: "x", Payload: []byte(name), QoS: qos, ClientID: "c", Created: st.m.Now()}
	st.do(func(s *Session) { s.OnPublish(m, id) })
}

// logged gives the messages of the log, in order.
func (st *play) logged() string {
	var out []string
	st.m.Messages(func(m *schema.Message) bool { out = append(out, string(m.Payload)); return true })
	return strings.Join(out, " ")
}

func (st *play) wait(d time.Duration) { st.m.SetNow(st.m.Now().Add(d)) }

func (st *play) tick() {
	st.wait(time.Second)
	st.do(func(s *Session) { s.Tick(st.h) })
}

func (st *play) save() { st.do((*Session).Save) }

func (st *play) close(why Reason) { st.do(func(s *Session) { s.Close(why) }) }

// want compares what left.
func (st *play) want(want string) {
	st.t.Helper()
	if got := st.heard(); got != want {
		st.t.Errorf("left: %s\nwant: %s", got, want)
	}
}
