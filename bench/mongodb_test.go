package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"rewindmq/integration/mongod"
)

// reading is a payload of 64 bytes, as devices send them.
const reading = "1795657964.123,21.5,1013.2,45.1,0.002,17,ok,0001,0002,0003,00004"

// running are the replica sets of this run, by their number of members.
var running = map[int]*mongod.Set{}

func stopSets() {
	for _, s := range running {
		s.Stop()
	}
}

// replicaSet gives a set of one or three members.
func replicaSet(b *testing.B, members int) *mongod.Set {
	b.Helper()
	mongod.Need(b)
	if s := running[members]; s != nil {
		return s
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := mongod.Start(ctx, mongod.Options{
		Dir: filepath.Join(build(b), fmt.Sprint("set", members)), Members: members, CacheGB: 2, OplogMB: 4096, Election: 10 * time.Second,
	})
	if err != nil {
		b.Fatal(err)
	}
	running[members] = s
	return s
}

// database is a database of a benchmark's own, as the plain driver sees it.
type database struct {
	*mongo.Database
	b   *testing.B
	uri string
}

var databases int

func newDatabase(b *testing.B, members int) *database {
	b.Helper()
	set := replicaSet(b, members)
	c, err := mongo.Connect(options.Client().ApplyURI(set.URI()))
	if err != nil {
		b.Fatal(err)
	}
	databases++
	d := &database{c.Database(fmt.Sprint("bench", databases), options.Database().SetWriteConcern(writeconcern.Majority())), b, set.URI()}
	b.Cleanup(func() {
		_ = d.Drop(context.Background())
		_ = c.Disconnect(context.Background())
	})
	return d
}

// broker starts a broker on the database.
func (d *database) broker(args ...string) string {
	d.b.Helper()
	addr, _ := startBroker(d.b, append([]string{"--store", d.uri, "--set", "store.mongo.database=" + d.Name()}, args...)...)
	return addr
}

// like makes a collection with the indexes of another, for the plain driver.
func (d *database) like(name string) *mongo.Collection {
	d.b.Helper()
	ctx := context.Background()
	cur, err := d.Collection(name).Indexes().List(ctx)
	if err != nil {
		d.b.Fatal(err)
	}
	var indexes bson.A
	for cur.Next(ctx) {
		if cur.Current.Lookup("name").StringValue() != "_id_" {
			indexes = append(indexes, slices.Clone(cur.Current))
		}
	}
	err = d.RunCommand(ctx, bson.D{{Key: "createIndexes", Value: name + "Raw"}, {Key: "indexes", Value: indexes}}).Err()
	if err != nil {
		d.b.Fatal(err)
	}
	return d.Collection(name + "Raw")
}

// shape is how a plain program inserts: that many goroutines, each with one batch
// in flight.
type shape struct{ lanes, batch int }

func (s shape) String() string { return fmt.Sprintf("%dx%d", s.lanes, s.batch) }

// insert inserts n documents in a shape and tells how many were inserted a second.
func (s shape) insert(b *testing.B, coll *mongo.Collection, n int, ordered bool, doc func(lane, i int) bson.D) float64 {
	var lanes sync.WaitGroup
	began := time.Now()
	for l := range s.lanes {
		lanes.Go(func() {
			for i := 0; i < n/s.lanes; {
				docs := make([]any, min(s.batch, n/s.lanes-i))
				for k := range docs {
					docs[k] = doc(l, i)
					i++
				}
				if _, err := coll.InsertMany(context.Background(), docs, options.InsertMany().SetOrdered(ordered)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	lanes.Wait()
	return float64(n/s.lanes*s.lanes) / time.Since(began).Seconds()
}

// best looks for the shapes in which the plain driver is fastest here, and gives
// the best three.
func best(try func(shape) float64) []shape {
	type result struct {
		shape
		rate float64
	}
	var all []result
	for _, lanes := range []int{1, 2, 4, 8, 16} {
		for _, batch := range []int{100, 500, 1000} {
			s := shape{lanes, batch}
			all = append(all, result{s, try(s)})
		}
	}
	slices.SortFunc(all, func(x, y result) int { return int(y.rate - x.rate) })
	return []shape{all[0].shape, all[1].shape, all[2].shape}
}

// against runs ours and the plain program in turns, each giving a rate. The shapes are
// found with try; of the best three the fastest of each round counts.
func against(b *testing.B, unit, rawUnit string, ours func() float64, try, raw func(shape) float64) {
	ours()
	shapes := best(try)
	b.Log("best shapes of the plain program:", shapes)
	r := rounds{}
	for b.Loop() {
		x, y := ours(), 0.0
		for _, s := range shapes {
			y = max(y, raw(s))
		}
		r.add(unit, x)
		r.add(rawUnit, y)
		r.add("ratio", x/y)
	}
	r.report(b)
}

// rounds collects what was measured in turns.
type rounds map[string][]float64

func (r rounds) add(name string, x float64) { r[name] = append(r[name], x) }

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// report gives the median of each, and all values in the log.
func (r rounds) report(b *testing.B) {
	for name, x := range r {
		b.ReportMetric(median(x), name)
		var s strings.Builder
		for _, v := range x {
			fmt.Fprintf(&s, " %.4g", v)
		}
		b.Logf("%s:%s", name, s.String())
	}
}

// quantile of sorted times, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Microseconds()) / 1000
}
