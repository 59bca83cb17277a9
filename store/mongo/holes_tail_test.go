package mongo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// ownLane makes a lane of a node that does nothing else: what is in it, the test
// puts there.
func ownLane(t *testing.T, s *Store) laneID {
	t.Helper()
	head := headOf(t, s)
	l := newLaneID(head.Newest()+1, 7)
	if _, err := s.c.lane.InsertOne(context.Background(), laneDoc{Number: int64(l.number()), Key: 7, Node: bson.NewObjectID()}); err != nil {
		t.Fatal(err)
	}
	return l
}

// inTransaction calls fn in a transaction, and commits it.
func inTransaction(t *testing.T, r *rig, fn func(ctx context.Context, insert func(*schema.Message, laneID, uint64))) {
	t.Helper()
	ctx := context.Background()
	err := r.db.Client().UseSession(ctx, func(ctx context.Context) error {
		_, err := driver.SessionFromContext(ctx).WithTransaction(ctx, func(ctx context.Context) (any, error) {
			var err error
			fn(ctx, func(m *schema.Message, l laneID, n uint64) {
				_, e := r.db.Collection("message").InsertOne(ctx, form{}.encode(m, l, n))
				err = errors.Join(err, e)
			})
			return nil, err
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readFrom gives the payloads of a read.
func readFrom(t *testing.T, s *Store, after, upTo schema.Cursor, filters ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := s.Read(ctx, after, upTo, filters)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := []string{}
	for {
		m, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(m.Payload))
	}
}

// T1: what commits late has an early ts, as its server stamped it long before: a
// tail that is past that time has it, and so has a read from where the tail stood;
// by topic and by lanes, with the server stopped between the stamp and the commit.
func TestHole_T1_StampAndCommitInAnotherOrder(t *testing.T) {
	t.Parallel()
	set := ownSet(t, 1)
	r := rigOn(t, set)
	r.o.Lease = time.Minute
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	lane := ownLane(t, s)
	from := headOf(t, s)
	tail := runTail(ctx, t, s, from)
	defer func() { cancel(); <-tail.gone }()
	pub := nobody()
	var middle schema.Cursor
	const late, others = 5, 30
	inTransaction(t, r, func(ctx context.Context, insert func(*schema.Message, laneID, uint64)) {
		for i := range late {
			insert(message(s, pub, "late", fmt.Sprint("late ", i)), lane, uint64(i+1))
		}
		set.Members()[0].Pause()
		set.Members()[0].Resume()
		for i := range others {
			if a := answer(t, later(s, pub, "t", fmt.Sprint("m", i))); a.Outcome != store.Stored {
				t.Errorf("%+v", a)
			}
		}
		middle = headOf(t, s)
		tail.passed(ctx, t, from, middle) // by now it knows younger ones
	})
	head := headOf(t, s)
	first, last := uint64(0), uint64(0)
	order := []string{}
	for _, e := range tail.passed(ctx, t, from, head) {
		m := e.Message
		if m == nil {
			continue
		}
		order = append(order, string(m.Payload))
		if m.Topic == "late" {
			last = m.TS
		} else if first == 0 {
			first = m.TS
		}
	}
	if last >= first {
		t.Errorf("the late ones were stamped at %d, the others from %d on: this shows nothing", last, first)
	}
	var want []string
	for i := range others {
		want = append(want, fmt.Sprint("m", i))
	}
	for i := range late {
		want = append(want, fmt.Sprint("late ", i))
	}
	wantLog(t, "the tail", order, want...)
	wantLog(t, "a tail from the middle", logged(t, s, middle), want[others:]...)
	for _, filter := range []string{"#", "late", "+"} {
		wantLog(t, "a read from the middle, "+filter, readFrom(t, s, middle, head, filter), want[others:]...)
		if filter != "late" {
			wantLog(t, "a read up to the middle, "+filter, readFrom(t, s, from, middle, filter), want[:others]...)
		}
	}
	by, err := s.openTopics(ctx, []string{"late", "t"}, bson.Timestamp{})
	if err != nil {
		t.Fatal(err)
	}
	by.close()
}

// T2: a publisher that waits for each answer moves over 20 lanes while a tail makes
// passes: read lane by lane, at times of their own, its messages would be inverted.
func TestHole_T2_PublisherMovesOverLanes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lanes, r.o.NoStreams, r.o.Lease = 20, true, 20*time.Second
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	from := headOf(t, s)
	tail := runTail(ctx, t, s, from)
	defer func() { cancel(); <-tail.gone }()
	const publishers, each = 4, 150
	done := make(chan bool, publishers)
	for p := range publishers {
		go func() {
			defer func() { done <- true }()
			for i := range each {
				pub := &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprint("p", p)}}
				out := make(chan store.Appended, 1)
				s.writers[(i*7+p)%20].put(&lane.Pending{
					Context: ctx, Pub: pub, Done: func(a []store.Appended) { out <- a[0] }, Queued: time.Now(),
					Msgs: []*schema.Message{message(s, pub, "t", fmt.Sprint(i))}, Answers: make([]store.Appended, 1),
				})
				select {
				case a := <-out:
					if a.Outcome != store.Stored {
						t.Errorf("%+v", a)
					}
				case <-ctx.Done():
					t.Error("no answer")
					return
				}
			}
		}()
	}
	for range publishers {
		answer(t, done)
	}
	next := map[string]int{}
	lanes := map[schema.Lane]bool{}
	for _, e := range tail.passed(ctx, t, from, headOf(t, s)) {
		m := e.Message
		if m == nil {
			continue
		}
		lanes[m.Mark.Lane] = true
		if want := fmt.Sprint(next[m.ClientID]); string(m.Payload) != want {
			t.Fatalf("%s: %s, want %s", m.ClientID, m.Payload, want)
		}
		next[m.ClientID]++
	}
	for p, n := range next {
		if n != each {
			t.Errorf("%s: %d of %d", p, n, each)
		}
	}
	if len(lanes) != 20 || len(next) != publishers {
		t.Errorf("%d lanes, %d publishers", len(lanes), len(next))
	}
}

// T3: a message commits between the end of a pass and the opening of the stream. It
// comes by the stream, not only when somebody looks at the lanes again.
func TestHole_T3_NothingBetweenPassAndStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	var s *Store
	h := newHook("aggregate", func(cmd bson.Raw) bool {
		c, _ := cmd.Lookup("aggregate").StringValueOK()
		stages, _ := cmd.Lookup("pipeline").ArrayOK()
		list, _ := stages.Values()
		return c == "message" && len(list) > 0 && list[0].Document().Lookup("$changeStream").Type == bson.TypeEmbeddedDocument
	}, nil)
	h.each = func() {
		if a := answer(t, later(s, nobody(), "t", "between")); a.Outcome != store.Stored {
			t.Errorf("%+v", a)
		}
	}
	r.o.commands = h.monitor()
	s = r.start()
	from := headOf(t, s)
	close(h.armed)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tl, err := s.Tail(ctx, from)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	// Something else may lead it back to a pass, on a busy machine; not ten times.
	for range 10 {
		for found := false; !found; {
			got, err := tl.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			found = slices.ContainsFunc(got, func(e store.Event) bool { return e.Message != nil })
		}
		if tl.(*tail).stream != nil {
			return
		}
	}
	t.Error("each time a pass has found it")
}

// T4: a lane is retired while a reader is in the middle of it. Its entry stays until
// the last message was read.
func TestHole_T4_RetiredLaneIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease, r.o.Lanes = 20*time.Second, 1
	a, b := r.start(), r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	from := headOf(t, a)
	const n = 3*tailBatch + 7
	load(t, b, n, func(int) string { return "t" })
	lane := newest(t, a)
	for _, before := range []bool{false, true} { // the pass begins before, and after the end
		retiredIsRead(ctx, t, a, from, lane, n, before)
	}
}

// retiredIsRead wants a tail to read all n messages of a lane that is ended.
func retiredIsRead(ctx context.Context, t *testing.T, a *Store, from schema.Cursor, lane schema.Lane, n int, ended bool) {
	t.Helper()
	tl, err := a.Tail(ctx, from)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	events, err := tl.Next(ctx)
	if err != nil || len(events) == 0 || len(events) >= n {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if !ended {
		end(t, a, lane)
	}
	head := headOf(t, a)
	cuts := []schema.Cursor{}
	seen := 0
	for h := from; !h.Covers(head); {
		for _, e := range events {
			if e.Message != nil {
				seen++
			}
			if _, there := e.H.N(lane); !there && seen < n {
				t.Fatalf("the entry of lane %d has gone after %d of %d messages", lane, seen, n)
			}
			if h = e.H; seen%tailBatch == 0 {
				cuts = append(cuts, h)
			}
		}
		if h.Covers(head) {
			break
		}
		if events, err = tl.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if seen != n {
		t.Errorf("%d of %d", seen, n)
	}
	for _, cut := range cuts {
		if at, there := cut.N(lane); there {
			if got := len(readFrom(t, a, cut, head, "#")); got != n-int(at) {
				t.Errorf("behind %d of %d: %d messages", at, n, got)
			}
		}
	}
}

// newest gives the newest lane.
func newest(t *testing.T, s *Store) schema.Lane {
	t.Helper()
	h := headOf(t, s)
	return h.Newest()
}

// T11: very many messages under one ts (those of one adoption have it). A replay by
// topic that is cut anywhere among them and resumed has each of them once.
func TestHole_T11_EqualStamps(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	from := headOf(t, s)
	const n = fewMessages + 700
	var docs []any
	for i := range n {
		docs = append(docs, fields("topic", "t", "data", fmt.Sprint(i)))
	}
	if _, err := r.db.Collection("message").InsertMany(ctx, docs); err != nil {
		t.Fatal(err)
	}
	stamps := map[uint64]int{}
	var order []string
	for _, m := range adopted(t, s, from, n) {
		stamps[m.TS]++
		order = append(order, string(m.Payload))
	}
	most := 0
	for _, k := range stamps {
		most = max(most, k)
	}
	if most < 50 {
		t.Fatalf("at most %d messages under one ts, of %d in %d: this shows nothing", most, n, len(stamps))
	}
	head := headOf(t, s)
	own := from.Clone()
	var got []string
	for len(got) < n {
		read, err := s.Read(ctx, own, head, []string{"t"})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 && read.(*reading).topic == nil {
			t.Error("not read by topic: this shows nothing")
		}
		for range 97 {
			m, err := read.Next(ctx)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(m.Payload))
			own.Advance(m.Mark)
		}
		if err := read.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, order) {
		t.Errorf("%d messages, in another order or not the same as the %d of the tail", len(got), len(order))
	}
}

// T12: the collection is renamed: the end of the stream is seen, and it is an alarm.
func TestHole_T12_RenamedCollection(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := Open(ctx, r.o)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- s.Run(ctx) }()
	from := headOf(t, s)
	v := runTail(ctx, t, s, from)
	answer(t, later(s, nobody(), "t", "m"))
	v.passed(ctx, t, from, headOf(t, s))
	err = r.db.Client().Database("admin").RunCommand(ctx, bson.D{
		{Key: "renameCollection", Value: r.name + ".message"}, {Key: "to", Value: r.name + ".elsewhere"},
	}).Err()
	if err != nil {
		t.Fatal(err)
	}
	if err := answer(t, gone); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Run: %v", err)
	}
	<-v.gone
}

// T13: a topic is first used while the catalog is being read, after the snapshot
// that it is read in. A wildcard replay has it, whether a tail has passed it or not.
func TestHole_T13_TopicWhileTheCatalogIsRead(t *testing.T) {
	t.Parallel()
	for _, tailed := range []bool{true, false} {
		r := newRig(t, 1)
		r.o.Lease = 20 * time.Second
		var s *Store
		var v *live
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var from schema.Cursor
		h := newHook("aggregate", func(cmd bson.Raw) bool {
			hint, _ := cmd.Lookup("hint").StringValueOK()
			return hint == "topic_ts"
		}, func() {
			if a := answer(t, later(s, nobody(), "d/new", "new")); a.Outcome != store.Stored {
				t.Errorf("%+v", a)
			}
			if v != nil {
				v.passed(ctx, t, from, headOf(t, s))
			}
		})
		r.o.commands = h.monitor()
		s = r.start()
		from = headOf(t, s)
		load(t, s, fewMessages+500, func(i int) string { return fmt.Sprint("x/", i%50) })
		upTo := headOf(t, s)
		if tailed {
			v = runTail(ctx, t, s, from)
			v.passed(ctx, t, from, upTo)
		}
		close(h.armed)
		wantLog(t, "before", readFrom(t, s, from, upTo, "d/#"))
		wantLog(t, fmt.Sprint("afterwards, with a tail: ", tailed), readFrom(t, s, from, headOf(t, s), "d/#"), "new")
		cancel()
		if v != nil {
			<-v.gone
		}
	}
}

// T16: what a read is asked for may not be there yet on the member that answers: each
// of its commands asks for the time that this node's tail and Head have reached.
func TestHole_T16_ReadWaitsForWhatWasPassed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	type asked struct {
		at, want bson.Timestamp
		cmd      string
	}
	list := make(chan asked, 1000)
	var s *Store
	var on atomic.Bool
	r.o.commands = watchReads(&on, func(cmd bson.Raw) {
		t1, i, ok := cmd.Lookup("readConcern", "afterClusterTime").TimestampOK()
		if !ok {
			t1, i, _ = cmd.Lookup("readConcern", "atClusterTime").TimestampOK()
		}
		list <- asked{bson.Timestamp{T: t1, I: i}, s.passed.time(), cmd.String()}
	})
	s = r.start()
	ctx := context.Background()
	from := headOf(t, s)
	load(t, s, fewMessages+500, func(i int) string { return fmt.Sprint("t/", i%3) })
	upTo := headOf(t, s)
	follow(ctx, t, s, from, upTo)
	refs := []store.Ref{{ID: s.ids.Next(time.Now())}}
	on.Store(true)
	readFrom(t, s, from, upTo, "t/1")
	readFrom(t, s, from, upTo, "#")
	if _, err := s.Lookup(ctx, refs); err != nil {
		t.Fatal(err)
	}
	on.Store(false)
	n := 0
	for n < 5 || len(list) > 0 {
		a := answer(t, list)
		if n++; a.want.IsZero() || a.at.Before(a.want) {
			t.Errorf("a read after %v, where %v was reached: %v", a.at, a.want, a.cmd)
		}
	}
}

// R4: a keeper that was paused stores v1 over v2.
func TestHole_R4_LateKeeper(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, nil)
	ctx := context.Background()
	retained := func(payload string, n uint64) *schema.Message {
		m := message(a, nobody(), "r", payload)
		m.Retain, m.TS, m.Mark = true, n, schema.Mark{Lane: 1, N: n}
		return m
	}
	held := g.hold(command("update", "retained"), "v1")
	late := make(chan error, 1)
	go func() { late <- a.StoreRetained(ctx, []*schema.Message{retained("v1", 1)}, schema.At(1, 1)) }()
	held.come()
	if err := b.StoreRetained(ctx, []*schema.Message{retained("v2", 2)}, schema.At(1, 2)); err != nil {
		t.Fatal(err)
	}
	held.release()
	if err := answer(t, late); err != nil {
		t.Error(err)
	}
	at, got := loaded(t, b)
	wantLog(t, "retained", got, "v2")
	if !at.Equal(schema.At(1, 2)) {
		t.Errorf("complete up to %v", at)
	}
}

// loaded gives the checkpoint, and the retained payloads.
func loaded(t *testing.T, s *Store) (schema.Cursor, []string) {
	t.Helper()
	var got []string
	at, err := s.LoadRetained(context.Background(), func(m *schema.Message) error {
		got = append(got, string(m.Payload))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at, got
}

// R5: the node that appended a retained message dies before anybody stored it. It
// is in the log behind the checkpoint, whoever starts next and however often.
func TestHole_R5_RetainedBehindTheCheckpoint(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	put := func(s *Store, payload string) *schema.Message {
		m := message(s, nobody(), "r/"+payload, payload)
		m.Retain = true
		out := make(chan store.Appended, 1)
		s.Append(ctx, nobody(), []*schema.Message{m}, func(x []store.Appended) { out <- x[0] })
		if x := answer(t, out); x.Outcome != store.Stored {
			t.Fatalf("%+v", x)
		}
		return m
	}
	m := put(a, "v1")
	if err := a.StoreRetained(ctx, []*schema.Message{m}, headOf(t, a)); err != nil {
		t.Fatal(err)
	}
	put(a, "v2")
	for range 2 { // a rolling restart
		node := a.self.id()
		a.kill()
		a = r.start()
		r.ended(node)
		at, got := loaded(t, a)
		wantLog(t, "stored", got, "v1")
		wantLog(t, "behind the checkpoint", logged(t, a, at), "v2")
	}
}

// R7: Head begins with a majority write, which no deposed primary answers, and reads
// not before its time.
func TestHole_R7_HeadWritesFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = time.Minute
	var on atomic.Bool
	var mu sync.Mutex
	var wrote bson.Timestamp // of the first write that began after the call
	begun := map[int64]bool{}
	reads := 0
	r.o.commands = &event.CommandMonitor{
		Started: func(_ context.Context, e *event.CommandStartedEvent) {
			mu.Lock()
			defer mu.Unlock()
			if e.CommandName == "update" && on.Load() {
				begun[e.RequestID] = true
				if w, _ := e.Command.Lookup("writeConcern", "w").StringValueOK(); w != "majority" {
					t.Errorf("a write with w %q", w)
				}
			}
			c, _ := e.Command.Lookup(e.CommandName).StringValueOK()
			if !on.Load() || c != "lane" && c != "message" || e.CommandName != "find" && e.CommandName != "aggregate" {
				return
			}
			if level, _ := e.Command.Lookup("readConcern", "level").StringValueOK(); level != "snapshot" {
				return // not Head's
			}
			reads++
			at, i, _ := e.Command.Lookup("readConcern", "atClusterTime").TimestampOK()
			if (bson.Timestamp{T: at, I: i}).Before(wrote) || wrote.IsZero() {
				t.Errorf("read at %d.%d, written at %v: %v", at, i, wrote, e.Command)
			}
		},
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) {
			mu.Lock()
			defer mu.Unlock()
			if at, i, ok := e.Reply.Lookup("operationTime").TimestampOK(); ok && begun[e.RequestID] && wrote.IsZero() {
				wrote = bson.Timestamp{T: at, I: i}
			}
		},
	}
	s := r.start()
	on.Store(true)
	headOf(t, s)
	on.Store(false)
	mu.Lock()
	defer mu.Unlock()
	if reads < 2 {
		t.Errorf("%d reads of one snapshot were seen", reads)
	}
}

// R7: Head is asked on a node whose server was deposed while it slept: it does not
// answer with what it knows.
func TestHole_R7_HeadOfADeposedPrimary(t *testing.T) {
	t.Parallel()
	if !soak() {
		t.Skip("half a minute of waiting for an election: REWINDMQ_TEST_SCALE=soak")
	}
	mongod.Need(t)
	set := ownSet(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	old, err := set.Primary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := rigOn(t, set)
	r.o.Lease, r.o.Attempt = time.Minute, 2*time.Second
	uri := r.o.URI
	r.o.URI = "mongodb://" + old.Addr() + "/?directConnection=true"
	a := r.start()
	r.o.URI = uri
	headOf(t, a)
	old.Pause()
	defer old.Resume()
	b := r.start()
	got := answer(t, later(b, nobody(), "t", "m")) // with the next primary
	if got.Outcome != store.Stored {
		t.Fatalf("%+v", got)
	}
	type answered struct {
		h   schema.Cursor
		err error
	}
	out := make(chan answered, 50)
	for range cap(out) {
		go func() {
			try, stop := context.WithTimeout(ctx, 3*time.Second)
			defer stop()
			h, err := a.Head(try)
			out <- answered{h, err}
		}()
	}
	old.Resume()
	for range cap(out) {
		if x := answer(t, out); x.err == nil && x.h.After(got.Mark) {
			t.Errorf("Head %v, where %v had been acknowledged", x.h, got.Mark)
		}
	}
	a.kill() // its server takes no writes any more
}
