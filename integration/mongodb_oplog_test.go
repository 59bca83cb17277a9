package integration

import (
	"fmt"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"

	"rewindmq/integration/mongod"
)

// smallOplog gives a set of one member with the smallest oplog.
func smallOplog(t *testing.T) *mongod.Set {
	t.Helper()
	return setWith(t, mongod.Options{OplogMB: 1, Checkpoint: time.Second})
}

// rollOplog writes to another collection until the oplog has nothing left of what
// was in it at the call. The server cuts it behind its checkpoints.
func rollOplog(t *testing.T, uri string) {
	t.Helper()
	server := dialMongoDB(t, uri)
	oplog := server.Database("local", options.Database().SetReadConcern(readconcern.Local())).Collection("oplog.rs")
	end := func(order int) uint64 {
		t.Helper()
		doc, err := oplog.FindOne(t.Context(), bson.D{}, options.FindOne().SetSort(bson.D{{Key: "$natural", Value: order}})).Raw()
		if err != nil {
			return 0 // the server is just cutting there
		}
		sec, i := doc.Lookup("ts").Timestamp()
		return uint64(sec)<<32 | uint64(i)
	}
	newest := end(-1)
	filler := server.Database("filler").Collection("other")
	data := make([]byte, 64<<10)
	began := time.Now()
	for end(1) <= newest {
		if time.Since(began) > time.Minute {
			t.Fatal("the oplog did not roll over in a minute")
		}
		if _, err := filler.InsertOne(t.Context(), bson.D{{Key: "x", Value: data}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the oplog rolled over in %v", time.Since(began).Round(time.Millisecond))
}

// overValve gives a running broker on a database of its own, behind a valve.
func overValve(t *testing.T, set *mongod.Set, with ...launch) (*broker, *valve) {
	t.Helper()
	v := valveTo(t, set.Members()[0].Addr())
	return startOn(t, v.uri(), with...), v
}

// F-26, P2, P7: the place of a quiet stream goes out of the oplog while the node is
// cut off, and meanwhile the driver inserts 200 documents. The tail reads them from
// the lanes and streams again from the present: no attempts at the dead place over
// and over, both subscribers get all of it once and in order, and the loss is
// counted once. The cut is of the stream's connections alone (the lanes go on:
// nobody waits, and the node stays ready), of all the node has to the server (it is
// not ready until it is back), or of the process itself, which stands still.
func TestF26_QuietStream(t *testing.T) {
	t.Parallel()
	needStreams(t)
	for _, cut := range []string{"stream", "node", "process"} {
		t.Run(cut, func(t *testing.T) {
			t.Parallel()
			set := smallOplog(t)
			b, v := overValve(t, set)
			direct := dialMongoDB(t, set.URI()).Database(b.place.db.Name())
			keeps := b.open(persistent(v5, "keeps"))
			keeps.subscribe(want{"f26/#", 1})
			clean := b.open(transient(v311, "clean"))
			clean.subscribe(want{"f26/t", 1})
			pub := b.open(transient(v5, "pub"))
			b.streams(pub, keeps, "f26/warm")
			rollOplog(t, set.URI()) // the stream is quiet, and goes on
			b.eventually("no loss yet", func() bool { return sum(b.metrics(), "change_stream_resumes_total", `reason="history_lost"`) == 0 })
			before := b.metrics()

			list := texts(1, 200)
			insert := func() {
				t.Helper()
				docs := make([]any, len(list))
				for i, text := range list {
					docs[i] = document("f26/t", text)
				}
				if _, err := direct.Collection("message").InsertMany(t.Context(), docs); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			switch cut {
			case "stream":
				v.shut(true, streamLinks)
				insert()
				gather(t, keeps, list) // while it is cut
				gather(t, clean, list)
				rollOplog(t, set.URI())
				if status, text := b.get("/readyz"); status != 200 {
					t.Errorf("/readyz: %d %s", status, text)
				}
				v.shut(false, streamLinks)
			case "node":
				v.shut(true, plainLinks, streamLinks)
				insert()
				rollOplog(t, set.URI())
				b.within(time.Minute, "/readyz is red", func() bool { return b.status("/readyz") == 503 })
				v.shut(false, plainLinks, streamLinks)
				gather(t, keeps, list)
				gather(t, clean, list)
			case "process":
				b.pause()
				insert()
				rollOplog(t, set.URI())
				b.resume()
				gather(t, keeps, list)
				gather(t, clean, list)
			}
			b.within(time.Minute, "/readyz is green", func() bool { return b.status("/readyz") == 200 })
			b.streams(pub, keeps, "f26/warm")
			took := time.Since(began)
			after := b.metrics()
			moved := func(name string, labels ...string) float64 {
				return sum(after, name, labels...) - sum(before, name, labels...)
			}
			if n := moved("change_stream_resumes_total", `reason="history_lost"`); n != 1 {
				t.Errorf("the lost history was counted %v times", n)
			}
			// Whole tens of seconds, each with fewer than ten.
			bound := 10 * float64(1+int(took/(10*time.Second)))
			if n := moved("store_errors_total", `op="tail"`); n >= bound {
				t.Errorf("%v failed attempts to tail in %v", n, took)
			}
			// The dead place was asked for, by the driver or by the tail: seldom.
			refused := moved("store_errors_total", `op="command_aggregate"`, `kind="other"`) + moved("store_errors_total", `op="command_getMore"`, `kind="other"`)
			t.Logf("%v: %v answers that the place is not there", took.Round(time.Millisecond), refused)
			if refused == 0 || refused >= bound {
				t.Errorf("the server refused %v attempts to stream in %v", refused, took)
			}
			if n := sum(after, "lossless_violations_total"); n != 0 {
				t.Errorf("lossless_violations_total is %v", n)
			}
			for _, c := range []*client{keeps, clean} {
				c.nothing()
			}
			checkOnce(t, b.place.audit(t), "f26/t", list)
		})
	}
}

// checkOnce fails unless the log has the texts of a topic, each once and in order.
func checkOnce(t *testing.T, a audit, topic string, list []string) {
	t.Helper()
	var got []string
	for _, m := range a.messages {
		if m.topic == topic {
			got = append(got, string(m.payload))
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(list) {
		t.Errorf("the log has %d of %s: %.300v", len(got), topic, got)
	}
}

// failing makes the server answer commands with an error, for the connections of one
// name; code 0: no more.
func failing(t *testing.T, server *driver.Client, app string, code int, more bson.D, commands ...string) {
	t.Helper()
	mode, data := "off", bson.D{}
	if code != 0 {
		mode = "alwaysOn"
		data = append(bson.D{{Key: "failCommands", Value: commands}, {Key: "errorCode", Value: code}, {Key: "appName", Value: app}}, more...)
	}
	cmd := bson.D{{Key: "configureFailPoint", Value: "failCommand"}, {Key: "mode", Value: mode}, {Key: "data", Value: data}}
	if err := server.Database("admin").RunCommand(t.Context(), cmd).Err(); err != nil {
		t.Fatal(err)
	}
}

// failable gives a set whose commands can be made to fail.
func failable(t *testing.T) *mongod.Set {
	t.Helper()
	return setWith(t, mongod.Options{Parameters: []string{"enableTestCommands=1"}})
}

// F-26: the server refuses every change stream, at once. It is not asked over and
// over; the lanes are read meanwhile, so nobody waits, and the node is ready. When it
// refuses no more, the tail streams again.
func TestF26_RefusedStream(t *testing.T) {
	t.Parallel()
	needStreams(t)
	for _, code := range []int{286, 280, 260, 13, 10107} {
		if code != 286 && !soak {
			continue
		}
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			set := failable(t)
			b := startOn(t, set.URI())
			sub := b.open(persistent(v5, "sub"))
			sub.subscribe(want{"f26/#", 1})
			pub := b.open(transient(v5, "pub"))
			b.streams(pub, sub, "f26/warm")
			failing(t, b.place.db.Client(), "rewindmq n1 tail", code, nil, "aggregate", "getMore")
			refusals := func() float64 { return sum(b.metrics(), "store_errors_total", `op="tail"`) }
			b.eventually("a refusal", func() bool { return refusals() > 0 })
			from := refusals()
			began, n := time.Now(), 0
			for ; time.Since(began) < 10*time.Second; n++ {
				pub.publish(message{topic: "f26/t", qos: 1, payload: fmt.Append(nil, n)})
				sub.settle(sub.takePayload(fmt.Sprint(n)))
				if status, text := b.get("/readyz"); status != 200 {
					t.Fatalf("/readyz: %d %s", status, text)
				}
				elapse(t, 100*time.Millisecond)
			}
			attempts := refusals() - from
			t.Logf("%v attempts in %v, %d messages", attempts, time.Since(began).Round(time.Millisecond), n)
			if bound := 10 * time.Since(began).Seconds() / 10; attempts == 0 || attempts >= bound {
				t.Errorf("%v attempts in %v", attempts, time.Since(began))
			}
			failing(t, b.place.db.Client(), "", 0, nil)
			b.streams(pub, sub, "f26/warm")
			sub.nothing()
		})
	}
}

// S-65: a node that can write but cannot read the log says so by readiness: what is
// published is acknowledged, and reaches nobody. When it can, all of it comes, once
// and in order.
func TestReadyFollowsTheTail(t *testing.T) {
	t.Parallel()
	b, v := overValve(t, failable(t))
	sub := b.open(persistent(v5, "sub"))
	sub.subscribe(want{"s65/#", 1})
	pub := b.open(transient(v5, "pub"))
	server := b.place.db.Client()
	failing(t, server, "rewindmq n1", 13, bson.D{{Key: "namespace", Value: b.place.db.Name() + ".message"}}, "find")
	v.shut(true, streamLinks)
	list := texts(1, 50)
	for _, text := range list {
		pub.publish(message{topic: "s65/t", qos: 1, payload: []byte(text)})
	}
	b.within(time.Minute, "/readyz is red", func() bool { return b.status("/readyz") == 503 })
	if _, text := b.get("/readyz"); !contains(text, "has not reached this node") {
		t.Errorf("/readyz says %q", text)
	}
	failing(t, server, "", 0, nil)
	gather(t, sub, list)
	b.within(time.Minute, "/readyz is green", func() bool { return b.status("/readyz") == 200 })
	v.shut(false, streamLinks)
	sub.nothing()
}
