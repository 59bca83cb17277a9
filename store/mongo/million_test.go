package mongo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"rewindmq/schema"
)

// A replay's cost follows what it delivers: of a million messages on 10,000 topics
// (at the small scale: 40,000 on 400) 1,000 match, and the server examines fewer than
// 5,000 keys and documents for them: by the explain of the very commands that the
// read sends, and by its profile.
func TestReplayExaminesWhatItDelivers(t *testing.T) {
	t.Parallel()
	perTopic, topics := 100, 400
	if soak() {
		topics = 10_000
	}
	n := perTopic * topics
	set := ownSet(t, 1)
	r := rigOn(t, set)
	r.o.RetainMessages = 0
	r.o.Lease = time.Hour // no heartbeat and no keeper in between
	var on atomic.Bool
	var mu sync.Mutex
	var sent []bson.Raw
	r.o.commands = watchReads(&on, func(cmd bson.Raw) {
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, append(bson.Raw{}, cmd...))
	})
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	from := headOf(t, s)
	// One message in n/1000 goes to one topic, the rest over all others; ten topics
	// share each second level.
	topic := func(i int) string {
		if i%(n/1000) == 0 {
			return "hot/one"
		}
		k := i % topics
		return fmt.Sprintf("d/%d/k%d/x", k/10, k%10)
	}
	began := time.Now()
	fillLanes(ctx, t, r, s, n, topic)
	t.Logf("%d messages inserted in %v", n, time.Since(began).Round(time.Second))
	upTo := headOf(t, s)
	began = time.Now()
	cost := examined(ctx, t, r.db, func() { readAll(ctx, t, s, from, upTo, "none/+") })
	t.Logf("the catalog of topics is read once: %d examined, %v", cost, time.Since(began).Round(time.Millisecond))
	exact := make([]string, 10)
	for i := range exact {
		exact[i] = fmt.Sprintf("d/%d/k%d/x", i+1, i%9+1)
	}
	for _, filters := range [][]string{{"hot/one"}, exact, {"d/7/+/x"}, {"d/9/#"}, {"+/one"}} {
		want := 0
		for i := range n {
			for _, f := range filters {
				if schema.Match(f, topic(i)) {
					want++
					break
				}
			}
		}
		mu.Lock()
		sent = nil
		mu.Unlock()
		got := 0
		began := time.Now()
		on.Store(true)
		counted := examined(ctx, t, r.db, func() { got = readAll(ctx, t, s, from, upTo, filters...) })
		on.Store(false)
		took := time.Since(began)
		mu.Lock()
		explained := 0
		for _, cmd := range sent {
			explained += explain(ctx, t, r.db, cmd)
		}
		commands := len(sent)
		mu.Unlock()
		t.Logf("%v: %d of %d delivered in %v by %d commands; keys and documents examined: %d by explain, %d by the server's profile",
			filters, got, n, took.Round(time.Millisecond), commands, explained, counted)
		if got != want || want < 900 || want > 1100 {
			t.Errorf("%v: %d delivered, want %d, about 1,000", filters, got, want)
		}
		if explained >= 5000 || counted >= 5000 || explained < want {
			t.Errorf("%v: %d examined by explain, %d by the profile, for %d messages", filters, explained, counted, got)
		}
	}
}

// fillLanes puts n messages into four lanes, by the driver.
func fillLanes(ctx context.Context, t *testing.T, r *rig, s *Store, n int, topic func(int) string) {
	t.Helper()
	coll := r.db.Collection("message", options.Collection().SetWriteConcern(writeconcern.W1()))
	var all sync.WaitGroup
	for part := range 4 {
		l := ownLane(t, s)
		all.Go(func() {
			at := uint64(0)
			var docs []any
			for i := part; i < n; i += 4 {
				at++
				docs = append(docs, form{}.encode(message(s, nobody(), topic(i), "1795657964,21.5"), l, at))
				if len(docs) == 1000 || i+4 >= n {
					if _, err := coll.InsertMany(ctx, docs); err != nil {
						t.Error(err)
						return
					}
					docs = docs[:0]
				}
			}
		})
	}
	all.Wait()
}

// explain gives how many keys and documents a command that was sent examines.
func explain(ctx context.Context, t *testing.T, db *driver.Database, cmd bson.Raw) int {
	t.Helper()
	elems, err := cmd.Elements()
	if err != nil {
		t.Fatal(err)
	}
	var bare bson.D
	for _, e := range elems {
		switch e.Key() {
		case "lsid", "$clusterTime", "$db", "readConcern", "txnNumber", "$readPreference", "writeConcern":
		default:
			bare = append(bare, bson.E{Key: e.Key(), Value: e.Value()})
		}
	}
	raw, err := db.RunCommand(ctx, bson.D{{Key: "explain", Value: bare}, {Key: "verbosity", Value: "executionStats"}}).Raw()
	if err != nil {
		t.Fatalf("explain of %v: %v", cmd, err)
	}
	keys, docs := sumOf(raw, "totalKeysExamined"), sumOf(raw, "totalDocsExamined")
	return keys + docs
}

// sumOf adds up a field wherever it is found in a document. What an explain says
// under allPlansExecution and under command is no part of it.
func sumOf(raw bson.Raw, name string) int {
	n := 0
	elems, _ := raw.Elements()
	for _, e := range elems {
		v := e.Value()
		if k, ok := v.AsInt64OK(); ok && e.Key() == name {
			n += int(k)
		}
		if e.Key() == "allPlansExecution" || e.Key() == "command" {
			continue
		}
		if d, ok := v.DocumentOK(); ok {
			n += sumOf(d, name)
		} else if a, ok := v.ArrayOK(); ok {
			n += sumOf(bson.Raw(a), name)
		}
	}
	return n
}
