package mongo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"rewindmq/integration/mongod"
	"rewindmq/schema"
)

// sets are the replica sets that the tests share: each test has a database of its
// own. They are started by the first test that needs them and stopped by TestMain.
var sets = map[int]*shared{1: {members: 1}, 3: {members: 3}}

type shared struct {
	members int
	once    sync.Once
	dir     string
	set     *mongod.Set
	err     error
}

var databases atomic.Int64

func TestMain(m *testing.M) {
	code := m.Run()
	for _, s := range sets {
		if s.set != nil {
			s.set.Stop()
		}
		_ = os.RemoveAll(s.dir)
	}
	os.Exit(code)
}

func (s *shared) get(t testing.TB) *mongod.Set {
	t.Helper()
	mongod.Need(t)
	s.once.Do(func() {
		s.dir, s.err = os.MkdirTemp("", "rewindmq-mongo-")
		if s.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.set, s.err = mongod.Start(ctx, mongod.Options{Dir: filepath.Join(s.dir, strconv.Itoa(s.members)), Members: s.members})
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.set
}

// rig is a database of a test's own.
type rig struct {
	t    testing.TB
	uri  string
	name string
	db   *driver.Database // for looking into it
	o    Options
}

func newRig(t testing.TB, members int) *rig {
	t.Helper()
	set := sets[members].get(t)
	return rigOn(t, set)
}

func rigOn(t testing.TB, set *mongod.Set) *rig {
	t.Helper()
	r := &rig{t: t, uri: set.URI(), name: fmt.Sprintf("t%d", databases.Add(1))}
	c, err := driver.Connect(options.Client().ApplyURI(r.uri))
	if err != nil {
		t.Fatal(err)
	}
	r.db = c.Database(r.name)
	t.Cleanup(func() {
		_ = r.db.Drop(context.Background())
		_ = c.Disconnect(context.Background())
	})
	log := zap.NewNop()
	if os.Getenv("REWINDMQ_TEST_LOG") != "" {
		log = zaptest.NewLogger(t, zaptest.WrapOptions(zap.IncreaseLevel(zap.WarnLevel)))
	}
	r.o = Options{
		URI: r.uri, Database: r.name, Node: "h", ClaimWait: 50 * time.Millisecond, Lease: time.Second,
		RetainMessages: -1, RetainRecords: -1, // the suite's messages are old
		Log: log, clock: &testClock{base: time.Now()},
	}
	return r
}

// start runs a store until the test ends.
func (r *rig) start() *Store {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(ctx, r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() { gone <- s.Run(run) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-gone; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	if err := s.enter(ctx); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// until waits for a condition on the database.
func (r *rig) until(what string, cond func(ctx context.Context) bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !cond(ctx) {
		if rest(ctx, 10*time.Millisecond) != nil {
			r.t.Fatalf("waiting for %s", what)
		}
	}
}

// finished waits until the keeper has finished a node that was killed.
func (r *rig) finished(node bson.ObjectID) {
	r.t.Helper()
	r.until("the end of node "+node.Hex(), func(ctx context.Context) bool {
		n, err := r.db.Collection("node").CountDocuments(ctx, fields("_id", node, "finished", fields("$ne", nil)))
		return err == nil && n == 1
	})
}

// trim removes what is not after upTo, as the TTL does.
func (r *rig) trim(upTo schema.Cursor) {
	r.t.Helper()
	ctx := context.Background()
	cur, err := r.db.Collection("message").Find(ctx, bson.D{})
	if err != nil {
		r.t.Fatal(err)
	}
	for cur.Next(ctx) {
		if p := placeOf(cur.Current); p.has && !upTo.After(p.mark()) {
			if _, err := r.db.Collection("message").DeleteOne(ctx, fields("_id", cur.Current.Lookup("_id"))); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}
