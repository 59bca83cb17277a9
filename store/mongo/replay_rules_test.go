package mongo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// The rules of replay, each with a test that fails without it. Those that are the
// session's or the hub's are tested there: a session ahead of its hub
// (broker/session TestHole_T6, fanout exact_test.go), an attach between two messages
// of one cluster time (TestT10_OneClusterTime here, fanout TestHubT10). A batch that
// is given up and commits later is TestHole_L1_GivenUpAndLate, stamp and commit in
// another order TestHole_T1, a publisher that moves over 20 lanes TestHole_T2, all
// nodes killed at once TestAllNodesKilledAtOnce.

// onLog gives the messages of the log after a cursor, as a tail yields them.
func onLog(t *testing.T, s *Store, from schema.Cursor) []*schema.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out []*schema.Message
	for _, e := range follow(ctx, t, s, from, headOf(t, s)) {
		if e.Message != nil {
			out = append(out, e.Message)
		}
	}
	return out
}

// wantExact wants a read to have what of list lies between two cursors and matches:
// all of it, nothing else, and each publisher's and each lane's in their order.
func wantExact(t *testing.T, s *Store, list []*schema.Message, after, upTo schema.Cursor, filters ...string) {
	t.Helper()
	var want []string
	for _, m := range list {
		if after.After(m.Mark) && !upTo.After(m.Mark) && slices.ContainsFunc(filters, func(f string) bool { return schema.Match(f, m.Topic) }) {
			want = append(want, string(m.Payload))
		}
	}
	got := readFrom(t, s, after, upTo, filters...)
	if !ordered(got) {
		t.Errorf("%v from %v to %v: a publisher's messages are not in their order", filters, after, upTo)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%v from %v to %v: %d messages, want %d, or not the same", filters, after, upTo, len(got), len(want))
	}
}

// ordered tells whether the numbers of each publisher rise. Payloads are "name
// number".
func ordered(payloads []string) bool {
	last := map[string]int{}
	for _, p := range payloads {
		var name string
		var n int
		if _, err := fmt.Sscan(p, &name, &n); err != nil || n <= last[name] {
			return false
		}
		last[name] = n
	}
	return true
}

// numbered appends n messages of several publishers, with their names and numbers.
type numbered struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *numbered) load(t *testing.T, s *Store, n int, topic func(i int) string) {
	t.Helper()
	var all sync.WaitGroup
	all.Add(n)
	for i := range n {
		name := fmt.Sprint("p", i%8)
		c.mu.Lock()
		if c.n == nil {
			c.n = map[string]int{}
		}
		c.n[name]++
		m := message(s, &store.Publisher{Owner: schema.Owner{ClientID: name}}, topic(i), fmt.Sprint(name, " ", c.n[name]))
		c.mu.Unlock()
		s.Append(context.Background(), publisherOf(name), []*schema.Message{m}, func(a []store.Appended) {
			if a[0].Outcome != store.Stored {
				t.Errorf("%+v", a[0])
			}
			all.Done()
		})
	}
	all.Wait()
}

func publisherOf(name string) *store.Publisher {
	return &store.Publisher{Owner: schema.Owner{ClientID: name}}
}

// Messages commit between the hub's vector and the read: they are not the read's, as
// the hub brings them, also where the read has been opened before, and whichever way
// it goes.
func TestReplayLeavesOutWhatCommitsMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.Lease = 20 * time.Second
	var s *Store
	var c numbered
	topic := func(i int) string { return fmt.Sprint("t/", i%5) }
	var mu sync.Mutex
	var more func()
	r.o.commands = (&hook{armed: closed(), name: "find", wanted: func(cmd bson.Raw) bool {
		name, _ := cmd.Lookup("find").StringValueOK()
		hint, _ := cmd.Lookup("hint").StringValueOK()
		return name == "message" && hint != "foreign"
	}, each: func() {
		mu.Lock()
		fn := more
		more = nil
		mu.Unlock()
		if fn != nil {
			fn()
		}
	}}).monitor()
	s = r.start()
	from := headOf(t, s)
	c.load(t, s, 3*fewMessages, topic)
	upTo := headOf(t, s)
	for _, filters := range [][]string{{"#"}, {"t/1", "t/3"}, {"+/2"}, {"t/+"}} {
		before := onLog(t, s, from)
		mu.Lock()
		more = func() { c.load(t, s, 100, topic) }
		mu.Unlock()
		wantExact(t, s, before, from, upTo, filters...)
		mu.Lock()
		if more != nil {
			t.Errorf("%v: nothing has committed meanwhile", filters)
		}
		mu.Unlock()
		wantExact(t, s, onLog(t, s, from), upTo, headOf(t, s), filters...)
	}
}

// closed gives a closed channel.
func closed() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// Lanes are opened and retired while a session is away: by nodes that stop in order
// and by nodes that are killed. From any vector of that time the replay is exact, by
// lanes and by topic.
func TestReplayOverLanesOfThatTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var c numbered
	topic := func(i int) string { return fmt.Sprint("t/", i%3) }
	cuts := []schema.Cursor{headOf(t, s)}
	cut := func() { cuts = append(cuts, headOf(t, s)) }
	for round := range 3 {
		run, stop := context.WithCancel(ctx)
		b, err := Open(ctx, r.o)
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() { gone <- b.Run(run) }()
		cut() // its lanes are open, and empty
		c.load(t, b, 400, topic)
		cut()
		c.load(t, s, 300, topic)
		if node := b.self.id(); round%2 == 0 {
			b.kill()
			r.ended(node)
		}
		stop()
		if err := <-gone; err != nil {
			t.Error(err)
		}
		cut() // and retired
	}
	all := onLog(t, s, cuts[0])
	if len(all) != 3*700 {
		t.Errorf("%d messages in the log", len(all))
	}
	d := r.start() // it knows nothing of that time
	for i, after := range cuts {
		for _, upTo := range cuts[i:] {
			wantExact(t, d, all, after, upTo, "#")
		}
		wantExact(t, d, all, after, headOf(t, d), "t/1")
	}
	read, err := d.Read(ctx, cuts[0], headOf(t, d), []string{"t/1"})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if read.(*reading).topic == nil {
		t.Error("not read by topic")
	}
}
