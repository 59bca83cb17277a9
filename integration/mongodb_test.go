package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"rewindmq/integration/mongod"
)

// replicaSet is the one that the tests share: each place is a database of its
// own. The first test that needs it starts it, TestMain stops it.
var replicaSet shared

type shared struct {
	once sync.Once
	dir  string
	set  *mongod.Set
	err  error
}

// get gives the set; without a mongod it skips the test or fails it.
func (s *shared) get(t *testing.T) *mongod.Set {
	t.Helper()
	mongod.Need(t)
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "rewindmq-mongod-"); s.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.set, s.err = mongod.Start(ctx, mongod.Options{Dir: filepath.Join(s.dir, "set")})
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.set
}

func (s *shared) stop() {
	if s.set != nil {
		s.set.Stop()
	}
	_ = os.RemoveAll(s.dir)
}

// noStreams tells whether brokers tail by reading the lanes alone.
var noStreams = os.Getenv("REWINDMQ_TEST_NO_STREAMS") == "1"

const withoutStreams = "store.mongo.streams=false"

// streamings are the ways in which a broker may tail, for tests of what differs.
func streamings() map[string]launch {
	lanes := launch{args: []string{"--set", withoutStreams}}
	if noStreams {
		return map[string]launch{"lanes": lanes}
	}
	return map[string]launch{"streams": {}, "lanes": lanes}
}

var databases atomic.Int64

// mongodbBackend is a database of the shared set for each place.
func mongodbBackend() backend {
	return backend{name: "mongodb", place: func(t *testing.T, _ string) place {
		t.Helper()
		return database(t, replicaSet.get(t).URI())
	}}
}

// database makes a place of an empty database of the server at uri.
func database(t *testing.T, uri string, args ...string) place {
	t.Helper()
	name := fmt.Sprintf("t%d", databases.Add(1))
	if noStreams {
		args = append(args, "--set", withoutStreams)
	}
	db := dialMongoDB(t, uri).Database(name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = db.Drop(ctx) // of a set that is thrown away
	})
	return place{
		args:      append([]string{"--store", uri, "--set", "store.mongo.database=" + name}, args...),
		audit:     func(t *testing.T) audit { t.Helper(); return auditMongoDB(t, db) },
		makeNewer: func(t *testing.T) { t.Helper(); makeMongoDBNewer(t, db) },
		db:        db,
	}
}

// dialMongoDB gives a client whose reads and writes are the majority's.
func dialMongoDB(t *testing.T, uri string) *driver.Client {
	t.Helper()
	c, err := driver.Connect(options.Client().ApplyURI(uri).
		SetWriteConcern(writeconcern.Majority()).SetReadConcern(readconcern.Majority()).SetReadPreference(readpref.Primary()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c
}

// auditMongoDB reads the messages in log order, as each lane has them, and the
// records in the order of each session's seq.
func auditMongoDB(t *testing.T, db *driver.Database) audit {
	t.Helper()
	var a audit
	each(t, db.Collection("message"), bson.D{{Key: "ts", Value: 1}, {Key: "lane", Value: 1}, {Key: "n", Value: 1}}, func(d bson.Raw) {
		if _, err := d.LookupErr("stop"); err == nil {
			return // it takes a place in a lane, and is no message
		}
		m := storedMessage{
			id: d.Lookup("_id").ObjectID().Hex(), clientID: d.Lookup("clientId").StringValue(),
			topic: d.Lookup("topic").StringValue(), qos: byte(d.Lookup("qos").AsInt64()), retain: d.Lookup("retain").Boolean(),
		}
		if text, ok := d.Lookup("data").StringValueOK(); ok {
			m.payload = []byte(text)
		} else {
			_, m.payload = d.Lookup("data").Binary()
		}
		a.messages = append(a.messages, m)
	})
	each(t, db.Collection("publishedMessage"), bson.D{{Key: "clientId", Value: 1}, {Key: "sid", Value: 1}, {Key: "seq", Value: 1}}, func(d bson.Raw) {
		r := storedRecord{clientID: d.Lookup("clientId").StringValue(), seq: uint64(d.Lookup("seq").AsInt64())}
		if id, ok := d.Lookup("messageId").ObjectIDOK(); ok {
			r.messageID = id.Hex()
		}
		id, _ := d.Lookup("packetId").AsInt64OK()
		qos, _ := d.Lookup("qos").AsInt64OK()
		r.packetID, r.qos = uint16(id), byte(qos)
		_, err := d.LookupErr("retained")
		r.retained = err == nil
		r.dropped, _ = d.Lookup("dropped").BooleanOK()
		a.records = append(a.records, r)
	})
	return a
}

func each(t *testing.T, c *driver.Collection, order bson.D, take func(bson.Raw)) {
	t.Helper()
	cur, err := c.Find(t.Context(), bson.D{}, options.Find().SetSort(order).SetAllowDiskUse(true))
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	defer cur.Close(context.Background())
	for cur.Next(t.Context()) {
		take(cur.Current)
	}
	if err := cur.Err(); err != nil {
		t.Fatalf("audit: %v", err)
	}
}

// makeMongoDBNewer marks the database as one that a later program has written.
func makeMongoDBNewer(t *testing.T, db *driver.Database) {
	t.Helper()
	res, err := db.Collection("meta").UpdateOne(t.Context(), bson.D{{Key: "_id", Value: "format"}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: 1000}}}})
	if err != nil || res.MatchedCount != 1 {
		t.Fatalf("format of %s: %v, %v", db.Name(), res, err)
	}
}

// letGo waits until the store knows that a session has no connection: on a store
// that nodes share, a node that dies before has its sessions until its lease is
// over.
func (b *broker) letGo(clientID string) {
	b.t.Helper()
	if b.place.db == nil {
		b.eventually("session "+clientID+" is let go", func() bool { return sum(b.metrics(), "sessions", `state="offline"`) == 1 })
		return
	}
	b.eventually("session "+clientID+" is let go", func() bool {
		n, err := b.place.db.Collection("session").CountDocuments(b.t.Context(), bson.D{{Key: "_id", Value: clientID}, {Key: "owner", Value: nil}})
		return err == nil && n == 1
	})
}
