package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/wire"
)

// shelf is a store of retained messages, and a log to begin with.
type shelf struct {
	store.Store
	kept       map[string]*schema.Message
	checkpoint schema.Cursor
	log        []*schema.Message // what Read gives
	fail       error             // of StoreRetained
	reading    func()            // called before the log is read
}

func (s *shelf) LoadRetained(_ context.Context, fn func(*schema.Message) error) (schema.Cursor, error) {
	for _, m := range s.kept {
		if err := fn(m); err != nil {
			return schema.Cursor{}, err
		}
	}
	return s.checkpoint, nil
}

func (s *shelf) StoreRetained(_ context.Context, msgs []*schema.Message, checkpoint schema.Cursor) error {
	if s.fail != nil {
		return s.fail
	}
	for _, m := range msgs {
		if m.Supersedes(s.kept[m.Topic]) {
			s.kept[m.Topic] = m
		}
	}
	s.checkpoint = checkpoint
	return nil
}

func (s *shelf) Read(_ context.Context, after, _ schema.Cursor, _ []string) (store.Messages, error) {
	if s.reading != nil {
		s.reading()
	}
	var part []*schema.Message
	for _, m := range s.log {
		if after.After(m.Mark) {
			part = append(part, m)
		}
	}
	return &shelfMessages{part}, nil
}

type shelfMessages struct{ rest []*schema.Message }

func (s *shelfMessages) Next(context.Context) (*schema.Message, error) {
	if len(s.rest) == 0 {
		return nil, io.EOF
	}
	m := s.rest[0]
	s.rest = s.rest[1:]
	return m, nil
}

func (*shelfMessages) Trimmed() uint64 { return 0 }
func (*shelfMessages) Close() error    { return nil }

func openShelf(t testing.TB) *shelf { t.Helper(); return &shelf{kept: map[string]*schema.Message{}} }

// projectOn makes a projection on s.
func projectOn(t testing.TB, s *shelf, o Options) *projection {
	t.Helper()
	o.Node = "node-1"
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	b, err := New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	return b.projection
}

// at makes a retained message. An empty payload clears the topic.
func at(topic string, lane schema.Lane, n, ts uint64, payload string) *schema.Message {
	return &schema.Message{
		ID: schema.ID{byte(lane), byte(n)}, Topic: topic, Payload: []byte(payload), Retain: true, QoS: 1,
		Mark: schema.Mark{Lane: lane, N: n}, TS: ts, Created: time.Now(),
	}
}

// shows gives what is retained on a topic; "": nothing.
func shows(p *projection, topic string) string {
	m, _, _ := p.Next(topic, "")
	if m == nil {
		return ""
	}
	return string(m.Payload)
}

func turn(t testing.TB, p *projection, h schema.Cursor, rounds int) {
	t.Helper()
	for range rounds {
		if err := p.save(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
}

func two(n, k uint64) schema.Cursor {
	return schema.NewCursor(2, []schema.Mark{{Lane: 1, N: n}, {Lane: 2, N: k}})
}

// TestClearedDoNotCount: empty retained messages take nothing from the bound of what is
// retained.
func TestClearedDoNotCount(t *testing.T) {
	t.Parallel()
	h := memoryHouse(t, Options{RetainedBytes: 1 << 20})
	p, q := h.clean(wire.V5, "p"), h.clean(wire.V5, "q")
	for i := range 1000 {
		p.write(wire.AppendPublish(nil, p.v, &wire.Publish{Topic: fmt.Sprintf("%d/%s", i, strings.Repeat("x", 2000)), QoS: 1, PacketID: 1, Retain: true}))
		p.ack(wire.PUBACK, 1)
	}
	head, err := h.mem.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.b.hub.WaitFor(t.Context(), head); err != nil {
		t.Fatal(err)
	}
	if n, bytes := h.b.projection.totals(); n != 0 || bytes != 0 {
		t.Errorf("%d retained messages, %d bytes", n, bytes)
	}
	q.write(wire.AppendPublish(nil, q.v, &wire.Publish{Topic: "door", Payload: []byte("open"), QoS: 1, PacketID: 1, Retain: true}))
	if a := expect[*wire.Ack](q); a.Code != wire.Success {
		t.Errorf("another client's retained message is refused: %v", a.Code)
	}
}

// TestTombstonesBound: so many topics can be cleared, and then no more until those
// before need not be remembered any more. Those that clear nothing keep nobody from
// clearing, none keeps anybody from retaining, and nothing that was cleared comes back.
func TestTombstonesBound(t *testing.T) {
	t.Parallel()
	s := openShelf(t)
	p := projectOn(t, s, Options{RetainedBytes: 1 << 20})
	p.graves.limit = 200 * tombstoneSize
	h := two(1000, 1000)
	fill := func(name string, ts uint64, live bool) (n int) {
		for {
			topic := fmt.Sprint(name, n)
			if live {
				p.observe(at(topic, 1, 1, ts, "v"))
			}
			if !p.admits(topic, 0) {
				return n
			}
			p.observe(at(topic, 1, 2, ts+1, ""))
			turn(t, p, h, 1) // stored: what is left is what has to be remembered
			if n++; n > 1000 {
				t.Fatal("no bound")
			}
			if p.graves.turns == tombstoneTurns-1 {
				p.graves.turns = 0 // all of it within a minute
			}
		}
	}
	bare := fill("bare/", 100, false)
	if bare < 50 || bare > 100 {
		t.Errorf("%d that clear nothing were taken", bare)
	}
	full := fill("full/", 100, true)
	if full < 50 || bare+full > 200 {
		t.Errorf("%d and %d were taken", bare, full)
	}
	if !p.admits("other", 10) {
		t.Error("tombstones keep others from retaining")
	}
	if got, bound := p.graves.bytes(), p.graves.limit; got > bound {
		t.Errorf("%d bytes of a bound of %d", got, bound)
	}
	turn(t, p, h, tombstoneTurns-1)
	for i := range bare {
		p.observe(at(fmt.Sprint("bare/", i), 2, 1, 50, "late"))
	}
	for i := range full {
		p.observe(at(fmt.Sprint("full/", i), 2, 1, 50, "late"))
	}
	if n, _ := p.totals(); n != 1 { // full's last, which could not be cleared
		t.Errorf("%d are retained", n)
	}
	turn(t, p, h, 2*tombstoneTurns)
	if n := p.graves.len(); n != 0 {
		t.Errorf("%d tombstones after %d rounds", n, 3*tombstoneTurns)
	}
	if !p.admits("bare/x", 0) {
		t.Error("still refused")
	}
}

// TestTombstonesUnsaved: what the store does not take is bounded too, is not forgotten
// in however many rounds, and is stored in the end.
func TestTombstonesUnsaved(t *testing.T) {
	t.Parallel()
	for _, h := range []schema.Cursor{schema.At(1, 1000), two(1000, 0)} {
		s := openShelf(t)
		p := projectOn(t, s, Options{})
		p.graves.limit = 1 << 20
		p.observe(at("a", 1, 1, 1, "v"))
		turn(t, p, h, 1)
		s.fail = errors.New("no")
		cleared := at("a", 1, 2, 2, "")
		cleared.Properties = &schema.Properties{CorrelationData: make([]byte, 1000)}
		p.observe(cleared)
		for range 3 * tombstoneTurns {
			if err := p.save(t.Context(), h); err == nil {
				t.Fatal("stored")
			}
		}
		p.observe(at("a", 2, 1, 1, "late"))
		p.observe(at("a", 1, 3, 3, "")) // nothing there, but in the store
		if got := shows(p, "a"); got != "" {
			t.Errorf("%v: %q is back", h, got)
		}
		n := 0
		for topic := strings.Repeat("x", 1000); p.admits(topic, 0); n++ {
			topic = fmt.Sprint(strings.Repeat("x", 1000), n)
			p.observe(at(topic, 1, uint64(n+4), uint64(n+4), ""))
			if n > 1000 {
				t.Fatal("no bound")
			}
		}
		s.fail = nil
		turn(t, p, h, 1)
		if m := s.kept["a"]; m == nil || len(m.Payload) > 0 {
			t.Errorf("%v: the store has %v", h, m)
		}
		if p.graves.unsaved != 0 {
			t.Errorf("%v: %d bytes are said to be unsaved", h, p.graves.unsaved)
		}
		if !p.admits("y", 0) {
			t.Errorf("%v: refused", h)
		}
	}
}

// TestTombstonesOneLane: where there is one lane, an empty message for a topic that has
// nothing leaves nothing, here or in the store; one that clears something is forgotten
// here when the store has it.
func TestTombstonesOneLane(t *testing.T) {
	t.Parallel()
	s := openShelf(t)
	p := projectOn(t, s, Options{})
	p.observe(at("a", 1, 1, 1, "v"))
	p.observe(at("a", 1, 2, 2, ""))
	p.observe(at("b", 1, 3, 3, ""))
	p.observe(at("c", 1, 4, 4, "")) // the hub is at 3: it has not passed this one
	turn(t, p, schema.At(1, 3), 1)
	if n := p.graves.len(); n != 1 {
		t.Errorf("%d tombstones", n)
	}
	if m := s.kept["a"]; m == nil || len(m.Payload) > 0 {
		t.Errorf("the store has %v", m)
	}
	if m := s.kept["b"]; m != nil {
		t.Errorf("the store has %v", m)
	}
}

// TestClearedBeforeLoaded: what the hub shows while the log is being read clears what
// is then read, also in the store.
func TestClearedBeforeLoaded(t *testing.T) {
	t.Parallel()
	for _, h := range []schema.Cursor{schema.At(1, 10), two(10, 0)} {
		s := openShelf(t)
		s.kept["stored"] = at("stored", 1, 1, 1, "old")
		s.checkpoint = schema.At(1, 1)
		s.log = []*schema.Message{at("read", 1, 2, 2, "old"), at("both", 1, 3, 3, "old"), at("both", 1, 4, 4, ""), at("stays", 1, 5, 5, "new")}
		p := projectOn(t, s, Options{})
		p.observe(at("stored", 1, 6, 6, ""))
		s.reading = func() { p.observe(at("read", 1, 7, 7, "")) }
		if err := p.load(t.Context(), schema.At(1, 5)); err != nil {
			t.Fatal(err)
		}
		turn(t, p, h, 1)
		again := projectOn(t, s, Options{})
		if err := again.load(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		for topic, want := range map[string]string{"stored": "", "read": "", "both": "", "stays": "new"} {
			for i, p := range []*projection{p, again} {
				if got := shows(p, topic); got != want {
					t.Errorf("%v: %s at start %d: %q, want %q", h, topic, i, got, want)
				}
			}
		}
	}
}

// TestR4_ProjectionInAnyOrder: with several lanes the message that Supersedes wins in
// whatever order they are met within the time of tombstoneTurns, cleared topics
// included, here and in the store, over saves that fail and a start in the middle. With
// one lane they are met in order.
func TestR4_ProjectionInAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		lanes := rapid.IntRange(1, 3).Draw(rt, "lanes")
		topics := []string{"a", "b", "c"}
		n := make([]uint64, lanes+1)
		var msgs []*schema.Message
		best := map[string]*schema.Message{}
		for range rapid.IntRange(1, 12).Draw(rt, "messages") {
			lane := rapid.IntRange(1, lanes).Draw(rt, "lane")
			n[lane]++
			ts := uint64(len(msgs) + 1)
			m := at(rapid.SampledFrom(topics).Draw(rt, "topic"), schema.Lane(lane), n[lane], ts, rapid.SampledFrom([]string{"", fmt.Sprint(ts)}).Draw(rt, "payload"))
			if msgs = append(msgs, m); m.Supersedes(best[m.Topic]) {
				best[m.Topic] = m
			}
		}
		if lanes > 1 {
			msgs = rapid.Permutation(msgs).Draw(rt, "order")
		}
		s := openShelf(t)
		p := projectOn(t, s, Options{})
		head := func(m *schema.Message) schema.Cursor {
			if lanes == 1 {
				return schema.At(1, m.Mark.N)
			}
			return schema.NewCursor(schema.Lane(lanes), func() (at []schema.Mark) {
				for i := 1; i <= lanes; i++ { // the checkpoint hides nothing: all is met
					at = append(at, schema.Mark{Lane: schema.Lane(i), N: n[i]})
				}
				return at
			}())
		}
		for _, m := range msgs {
			p.observe(m)
			switch rapid.IntRange(0, 3).Draw(rt, "then") {
			case 1:
				turn(t, p, head(m), rapid.IntRange(1, 4).Draw(rt, "rounds"))
			case 2:
				s.fail = errors.New("no")
				_ = p.save(t.Context(), head(m))
				s.fail = nil
			case 3:
				turn(t, p, head(m), 1)
				p = projectOn(t, s, Options{})
				if err := p.load(t.Context(), head(m)); err != nil {
					rt.Fatal(err)
				}
			}
		}
		turn(t, p, head(msgs[len(msgs)-1]), 1)
		again := projectOn(t, s, Options{})
		if err := again.load(t.Context(), schema.Cursor{}); err != nil {
			rt.Fatal(err)
		}
		for topic, m := range best {
			if got, stored := shows(p, topic), shows(again, topic); got != string(m.Payload) || stored != string(m.Payload) {
				rt.Fatalf("%s: %q, stored %q, want %q", topic, got, stored, m.Payload)
			}
		}
	})
}
