package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
	"rewindmq/store"
)

// pair is a node behind a gate and one with a way of its own, on one database.
func pair(t *testing.T, tune func(*Options)) (*rig, *gate, *Store, *Store) {
	t.Helper()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second // nobody is declared dead by the way
	if tune != nil {
		tune(&r.o)
	}
	g := newGate(t, sets[1].get(t))
	return r, g, r.through(g), r.start()
}

// logged gives the payloads of all that is in the log after a cursor, in the order
// of a tail.
func logged(t *testing.T, s *Store, from schema.Cursor) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range follow(ctx, t, s, from, head) {
		if e.Message != nil {
			out = append(out, string(e.Message.Payload))
		}
	}
	return out
}

func headOf(t *testing.T, s *Store) schema.Cursor {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func wantLog(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// L1: a batch hangs in a socket and is given up; what follows is stored; then the
// batch comes to the server after all. It must not be committed behind readers.
func TestHole_L1_GivenUpAndLate(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, func(o *Options) { o.Attempt, o.Hold, o.Lanes = 500*time.Millisecond, time.Second, 1 })
	from := headOf(t, b)
	held := g.holdAll(command("insert", "message"), "m1")
	first := later(a, nobody(), "t", "m1")
	held.come()
	if got := answer(t, first); got.Outcome == store.Stored {
		t.Fatalf("the batch that was given up: %+v", got)
	}
	// On a busy machine the next may be given up as well.
	next := func() string {
		for i := 0; ; i++ {
			name := fmt.Sprint("next ", i)
			if answer(t, later(a, nobody(), "t", name)).Outcome == store.Stored {
				return name
			}
		}
	}
	want := next()
	if got := logged(t, b, from); slices.Contains(got, "m1") || !slices.Contains(got, want) {
		t.Errorf("before: %v", got)
	}
	held.release()
	next()
	if got := logged(t, b, from); slices.Contains(got, "m1") {
		t.Errorf("after: %v", got)
	}
	if n := count(context.Background(), t, rigOf(t, b), "message", fields("data", "m1")); n != 0 {
		t.Errorf("m1 is stored %d times", n)
	}
}

// rigOf gives access to the database of a node.
func rigOf(t *testing.T, s *Store) *rig { return &rig{t: t, db: s.db, o: s.o} }

// L3: the primary has the message, the majority has not: an attempt meets its own
// document, by a duplicate key, and no majority. Nothing is acknowledged before the
// majority has it. L6: nor is a lane used.
func TestHole_L3_L6_OnlyWithTheMajority(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("three members in a short run")
	}
	mongod.Need(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	set, err := mongod.Start(ctx, mongod.Options{Dir: t.TempDir(), Members: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	primary, err := set.Primary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := rigOn(t, set)
	// The primary stays one while nobody follows.
	var conf struct {
		Config bson.M `bson:"config"`
	}
	admin := r.db.Client().Database("admin")
	if err := admin.RunCommand(ctx, fields("replSetGetConfig", 1)).Decode(&conf); err != nil {
		t.Fatal(err)
	}
	conf.Config["settings"] = fields("electionTimeoutMillis", 60_000)
	conf.Config["version"] = conf.Config["version"].(int32) + 1
	if err := admin.RunCommand(ctx, fields("replSetReconfig", conf.Config)).Err(); err != nil {
		t.Fatal(err)
	}
	r.o.Attempt, r.o.Lease, r.o.Lanes = 500*time.Millisecond, time.Minute, 1
	var tries atomic.Int64
	var reply sync.Map // what the server said
	ended := func(name, text string) {
		if name == "insert" {
			tries.Add(1)
			reply.Store(text, true)
		}
	}
	r.o.commands = &event.CommandMonitor{
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) { ended(e.CommandName, e.Reply.String()) },
		Failed:    func(_ context.Context, e *event.CommandFailedEvent) { ended(e.CommandName, e.Failure.Error()) },
	}
	s := r.start()
	from := headOf(t, s)
	lanes := count(ctx, t, r, "lane", bson.D{})
	for _, m := range set.Members() {
		if m != primary {
			m.Pause()
			defer m.Resume()
		}
	}
	got := later(s, nobody(), "t", "m1")
	// Until the message has met itself a few times.
	before := tries.Load()
	r.eventually("several attempts", func(context.Context) bool { return tries.Load() >= before+4 })
	select {
	case a := <-got:
		t.Errorf("answered without a majority: %+v", a)
	default:
	}
	opened := make(chan laneID, 1)
	go func() {
		for ctx.Err() == nil {
			try, stop := context.WithTimeout(ctx, s.o.Attempt)
			lane, err := s.openLane(try, false)
			stop()
			if err == nil {
				opened <- lane
				return
			}
		}
	}()
	before = tries.Load()
	r.eventually("attempts to open a lane", func(context.Context) bool { return tries.Load() >= before+4 })
	select {
	case l := <-opened:
		t.Errorf("lane %d is used without a majority", l.number())
	default:
	}
	for _, m := range set.Members() {
		m.Resume()
	}
	if a := answer(t, got); a.Outcome != store.Stored {
		t.Errorf("%+v", a)
	}
	lane := answer(t, opened)
	wantLog(t, "afterwards", logged(t, s, from), "m1")
	docs, err := s.readLanes(ctx, bson.D{})
	if err != nil || int64(len(docs)) <= lanes {
		t.Fatalf("%d lanes, %v", len(docs), err)
	}
	for i, d := range docs {
		if d.Number != int64(i+1) {
			t.Errorf("lane %d stands at place %d", d.Number, i+1)
		}
		if d.Number == int64(lane.number()) && d.id() != lane {
			t.Errorf("lane %d is used under another key", d.Number)
		}
	}
}

// L4: a batch of 500 that is stored already is looked up in one command; nobody goes
// on behind each duplicate.
func TestHole_L4_ResentBatchIsAFewCommands(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	var commands atomic.Int64
	r.o.Lease, r.o.Lanes = time.Minute, 1
	r.o.commands = &event.CommandMonitor{Started: func(_ context.Context, e *event.CommandStartedEvent) {
		if c, _ := e.Command.Lookup(e.CommandName).StringValueOK(); c == "message" && e.CommandName != "getMore" {
			commands.Add(1)
		}
	}}
	s := r.start()
	from := headOf(t, s)
	pub := nobody()
	var msgs []*schema.Message
	for i := range maxBatch {
		msgs = append(msgs, message(s, pub, "t", fmt.Sprint("m", i)))
	}
	send := func(list []*schema.Message) []store.Appended {
		out := make(chan []store.Appended, 1)
		s.Append(context.Background(), pub, list, func(a []store.Appended) { out <- slices.Clone(a) })
		return answer(t, out)
	}
	first := send(msgs[:300])
	for _, tt := range []struct {
		what string
		msgs []*schema.Message
	}{{"300 of 500 are stored", msgs}, {"all are stored", msgs}} {
		commands.Store(0)
		again := send(tt.msgs)
		if n := commands.Load(); n > 6 {
			t.Errorf("%s: %d commands", tt.what, n)
		}
		for i, a := range again {
			if a.Outcome != store.Stored || i < len(first) && a.Mark != first[i].Mark {
				t.Fatalf("%s: message %d: %+v", tt.what, i, a)
			}
		}
		first = again
	}
	got := logged(t, s, from)
	if len(got) != maxBatch || got[0] != "m0" || got[maxBatch-1] != fmt.Sprint("m", maxBatch-1) {
		t.Errorf("%d messages in the log", len(got))
	}
}

// L6: an attempt to open a lane hangs; meanwhile another node opens the lane of that
// number. Nobody takes the other's for its own. When the answer alone is lost, the
// lane is found again by its key.
func TestHole_L6_LaneOfTheSameNumber(t *testing.T) {
	t.Parallel()
	r, g, a, b := pair(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	open := func(s *Store) <-chan laneID {
		out := make(chan laneID, 1)
		go func() {
			_ = s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
				l, err := s.openLane(ctx, false)
				if err != nil {
					t.Error(err)
				}
				out <- l
				return err
			})
		}()
		return out
	}
	held := g.hold(command("insert", "lane"))
	first := open(a)
	held.come()
	second := answer(t, open(b))
	held.release()
	mine := answer(t, first)
	if mine.number() != second.number()+1 {
		t.Errorf("lanes %d and %d", mine.number(), second.number())
	}
	lost := g.lose(command("insert", "lane"))
	third := answer(t, open(a))
	lost.await(lost.answered, "the answer")
	if third.number() != mine.number()+1 {
		t.Errorf("after a lost answer lane %d", third.number())
	}
	docs, err := b.readLanes(ctx, bson.D{})
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range docs {
		if d.Number != int64(i+1) {
			t.Errorf("lane %d stands at place %d", d.Number, i+1)
		}
	}
	for _, l := range []laneID{mine, second, third} {
		if d := docs[l.number()-1]; d.id() != l {
			t.Errorf("lane %d has key %d, and is used under %d", l.number(), d.id(), l)
		}
	}
	_ = r
}

// L7: a writer is stopped; its lane is ended; it wakes and stores into it.
func TestHole_L7_EndedLane(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, func(o *Options) { o.Lanes = 1 })
	from := headOf(t, b)
	lane := answer(t, later(a, nobody(), "t", "m1")).Mark.Lane
	held := g.hold(command("insert", "message"), "m2")
	got := later(a, nobody(), "t", "m2")
	held.come()
	end(t, b, lane)
	wantLog(t, "before", logged(t, b, from), "m1")
	reader := headOf(t, b)
	held.release()
	if x := answer(t, got); x.Outcome != store.Stored || x.Mark.Lane == lane || !reader.After(x.Mark) {
		t.Errorf("stored at %+v; a reader stands at %v", x, reader)
	}
	wantLog(t, "after", logged(t, b, from), "m1", "m2")
	wantLog(t, "behind the reader", logged(t, b, reader), "m2")
}

// end retires a lane, as the keeper does.
func end(t *testing.T, s *Store, lane schema.Lane) {
	t.Helper()
	err := s.inSession(context.Background(), bson.Timestamp{}, func(ctx context.Context) error {
		docs, err := s.readLanes(ctx, fields("_id", int64(lane)))
		if err == nil {
			err = s.endLane(ctx, docs[0].id())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// L11: an append of the old owner hangs in a socket when its client goes on
// elsewhere; it lands after the client's next message.
func TestHole_L11_StopperBeforeTheClientGoesOn(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, nil)
	from := headOf(t, b)
	first := claim(t, a, "c")
	held := g.hold(command("insert", "message"), "m1")
	old := later(a, &store.Publisher{Owner: first.Owner}, "t", "m1")
	held.come()
	second := claim(t, b, "c")
	if second.Released {
		t.Fatal("released, with an append under way")
	}
	if x := answer(t, later(b, &store.Publisher{Owner: second.Owner}, "t", "m2")); x.Outcome != store.Stored {
		t.Fatalf("%+v", x)
	}
	held.release()
	if x := answer(t, old); x.Outcome != store.Refused || !errors.Is(x.Err, store.ErrSessionLost) {
		t.Errorf("the old owner's append: %+v", x)
	}
	wantLog(t, "the log", logged(t, b, from), "m2")
}

// L12: the lane in which the append hangs is ended before the claim, which finds no
// lane to put a stopper into. The writer opens another one, and has to look then.
func TestHole_L12_LookBehindTheOpening(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, func(o *Options) { o.Lanes = 1 })
	from := headOf(t, b)
	first := claim(t, a, "c")
	other := claim(t, a, "d")
	lane := answer(t, later(a, nobody(), "t", "m0")).Mark.Lane
	held := g.hold(command("insert", "message"), "m1")
	old := later(a, &store.Publisher{Owner: first.Owner}, "t", "m1")
	held.come()
	kept := later(a, &store.Publisher{Owner: other.Owner}, "t", "m1 of d")
	end(t, b, lane)
	second := claim(t, b, "c")
	if x := answer(t, later(b, &store.Publisher{Owner: second.Owner}, "t", "m2")); x.Outcome != store.Stored {
		t.Fatalf("%+v", x)
	}
	held.release()
	if x := answer(t, old); x.Outcome != store.Refused || !errors.Is(x.Err, store.ErrSessionLost) {
		t.Errorf("the old owner's append: %+v", x)
	}
	if x := answer(t, kept); x.Outcome != store.Stored || x.Mark.Lane == lane {
		t.Errorf("another session's append: %+v", x)
	}
	wantLog(t, "the log", logged(t, b, from), "m0", "m2", "m1 of d")
}
