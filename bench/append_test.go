package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/embedded"
)

const ingestTopics = 1000

func ingestTopic(i int) string { return fmt.Sprintf("site/%d/device/%d/reading", i%10, i%ingestTopics) }

// openEmbedded opens and runs a log in a directory of its own.
func openEmbedded(b *testing.B) *embedded.Log {
	b.Helper()
	l, err := embedded.Open(embedded.Options{Dir: b.TempDir(), Node: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return l
}

// ingest appends n messages of size bytes one by one, inFlight at a time, from
// 16 publishers, and waits until all are durable.
func ingest(b *testing.B, l *embedded.Log, n, size, inFlight int, qos uint8) time.Duration {
	b.Helper()
	ids := schema.NewIDSource()
	now := time.Now()
	publishers := make([]*store.Publisher, 16)
	for i := range publishers {
		publishers[i] = &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprintf("publisher-%d", i), SID: 1}}
	}
	topics := make([]string, ingestTopics)
	for i := range topics {
		topics[i] = ingestTopic(i)
	}
	payload := make([]byte, size)
	ctx := context.Background()
	room := make(chan struct{}, inFlight)
	done := func(a []store.Appended) {
		if a[0].Outcome != store.Stored {
			b.Error(a[0].Err)
		}
		<-room
	}
	start := time.Now()
	for i := range n {
		p := publishers[i%len(publishers)]
		m := &schema.Message{
			ID: ids.Next(now), Topic: topics[i*7%len(topics)], Payload: payload, ClientID: p.ClientID,
			QoS: qos, Created: now, Host: "bench",
		}
		room <- struct{}{}
		l.Append(ctx, p, []*schema.Message{m}, done)
	}
	for range inFlight {
		room <- struct{}{}
	}
	return time.Since(start)
}

// pebbleAlone is Pebble itself, with the log's options.
type pebbleAlone struct {
	db *pebble.DB
	n  uint64
}

func openPebble(b *testing.B) *pebbleAlone {
	b.Helper()
	cache := pebble.NewCache(64 << 20)
	o := &pebble.Options{
		Cache: cache, MemTableSize: 64 << 20, MemTableStopWritesThreshold: 4, FormatMajorVersion: pebble.FormatNewest,
		L0CompactionThreshold: 2, L0StopWritesThreshold: 32, LBaseMaxBytes: 64 << 20,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 }, Logger: quiet{},
	}
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{Enabled: true, MinimumSize: 256, MaxBlobReferenceDepth: 10, RewriteMinimumAge: 5 * time.Minute, TargetGarbageRatio: 0.2}
	}
	db, err := pebble.Open(b.TempDir(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
		cache.Unref()
	})
	return &pebbleAlone{db: db}
}

// write writes the records of n messages: each with an entry in its topic's
// index, batch of them in one synced commit.
func (p *pebbleAlone) write(b *testing.B, n, size, batch int) time.Duration {
	b.Helper()
	// What the log stores beside the payload: id, times, client, host.
	value := make([]byte, size+51)
	var key []byte
	start := time.Now()
	w := p.db.NewBatch()
	for i := range n {
		p.n++
		topic := uint32(i * 7 % ingestTopics)
		key = binary.BigEndian.AppendUint64(append(key[:0], 'm'), p.n)
		key = binary.BigEndian.AppendUint32(key, topic)
		if err := w.Set(key, value, nil); err != nil {
			b.Fatal(err)
		}
		key = binary.BigEndian.AppendUint32(append(key[:0], 't'), 1)
		key = binary.BigEndian.AppendUint32(key, topic)
		key = binary.BigEndian.AppendUint64(key, p.n)
		if err := w.Set(key, nil, nil); err != nil {
			b.Fatal(err)
		}
		if i%batch == batch-1 || i == n-1 {
			if err := p.db.Apply(w, pebble.Sync); err != nil {
				b.Fatal(err)
			}
			w.Reset()
		}
	}
	took := time.Since(start)
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return took
}

type quiet struct{}

func (quiet) Infof(string, ...any)      {}
func (quiet) Errorf(string, ...any)     {}
func (quiet) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// BenchmarkAppendAgainstPebble compares QoS 1 ingest into the embedded log with
// Pebble alone on the same records, in batches of the mean size that the log
// formed, in turns in the same run. Target: ratio at least 0.6.
func BenchmarkAppendAgainstPebble(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for _, inFlight := range []int{256, 4096} {
			b.Run(fmt.Sprintf("size=%d/inflight=%d", size, inFlight), func(b *testing.B) {
				n := 100_000
				l := openEmbedded(b)
				alone := openPebble(b)
				ingest(b, l, 20_000, size, inFlight, 1)
				alone.write(b, 20_000, size, inFlight)
				var ours, theirs time.Duration
				for b.Loop() {
					before := l.Commits()
					ours += ingest(b, l, n, size, inFlight, 1)
					batch := max(n/int(max(l.Commits()-before, 1)), 1)
					theirs += alone.write(b, n, size, batch)
				}
				total := float64(n * b.N)
				b.ReportMetric(total/ours.Seconds(), "log-msgs/s")
				b.ReportMetric(total/theirs.Seconds(), "pebble-msgs/s")
				b.ReportMetric(theirs.Seconds()/ours.Seconds(), "ratio")
			})
		}
	}
}

// BenchmarkAppendQoS2 measures ingest at QoS 2, whose messages are also indexed,
// and looked up, by id.
func BenchmarkAppendQoS2(b *testing.B) {
	l := openEmbedded(b)
	ingest(b, l, 20_000, 100, 4096, 2)
	var took time.Duration
	const n = 100_000
	for b.Loop() {
		took += ingest(b, l, n, 100, 4096, 2)
	}
	b.ReportMetric(float64(n*b.N)/took.Seconds(), "log-msgs/s")
}

// BenchmarkAppendCall measures the publisher's part of an append alone: time and
// allocations of the call, without the commit.
func BenchmarkAppendCall(b *testing.B) {
	l := openEmbedded(b)
	ids := schema.NewIDSource()
	now := time.Now()
	p := &store.Publisher{Owner: schema.Owner{ClientID: "p", SID: 1}}
	ctx := context.Background()
	const run = 1000
	msgs := make([][]*schema.Message, run)
	payload := make([]byte, 100)
	var open sync.WaitGroup
	done := func([]store.Appended) { open.Done() }
	var call time.Duration
	var mallocs uint64
	var before, after runtime.MemStats
	rounds := 0
	for b.Loop() {
		for i := range msgs {
			msgs[i] = []*schema.Message{{ID: ids.Next(now), Topic: ingestTopic(i), Payload: payload, QoS: 1, Created: now, ClientID: "p"}}
		}
		open.Add(run)
		runtime.ReadMemStats(&before)
		start := time.Now()
		for _, m := range msgs {
			l.Append(ctx, p, m, done)
		}
		call += time.Since(start)
		runtime.ReadMemStats(&after)
		mallocs += after.Mallocs - before.Mallocs
		open.Wait()
		rounds++
	}
	b.ReportMetric(float64(call.Nanoseconds())/float64(rounds*run), "ns/append")
	b.ReportMetric(float64(mallocs)/float64(rounds*run), "allocs/append")
}
