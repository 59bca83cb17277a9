package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// plainProgram does with the plain driver what a broker does with a stream of
// messages: batches of inserts in two goroutines, a change stream, and a record of each
// delivery.
type plainProgram struct {
	b                 *testing.B
	messages, records *mongo.Collection
	runs              int
}

// live gives the lag of each message, from when it was due to its event.
func (p *plainProgram) live(rate int, during time.Duration) []time.Duration {
	ctx := context.Background()
	cs, err := p.messages.Watch(ctx, mongo.Pipeline{}, options.ChangeStream().SetBatchSize(10_000))
	if err != nil {
		p.b.Fatal(err)
	}
	defer cs.Close(ctx)
	const writers = 2
	p.runs++
	each := rate * int(during/time.Second) / writers
	came := make(chan int, writers*each)
	epoch := time.Now()
	var all sync.WaitGroup
	defer all.Wait()
	for w := range writers {
		all.Go(func() { p.write(ctx, epoch, p.runs*writers+w, each, rate/writers) })
	}
	all.Go(func() { p.record(ctx, came) })
	defer close(came)
	lag := make([]time.Duration, 0, writers*each)
	for range writers * each {
		if !cs.Next(ctx) {
			p.b.Error(cs.Err())
			return nil
		}
		due, _, _ := strings.Cut(cs.Current.Lookup("fullDocument", "data").StringValue(), ",")
		ns, _ := strconv.ParseInt(due, 10, 64)
		lag = append(lag, time.Since(epoch)-time.Duration(ns))
		came <- len(lag)
	}
	return lag
}

// write inserts n messages at a rate, what is due in one batch.
func (p *plainProgram) write(ctx context.Context, epoch time.Time, lane, n, rate int) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < n; <-tick.C {
		due := min(int(time.Since(epoch).Seconds()*float64(rate)), n, i+500)
		var docs []any
		for ; i < due; i++ {
			d := messageDoc(1000+lane, i)
			d[2].Value = fmt.Sprintf("%d,%s", int64(i)*int64(time.Second)/int64(rate), reading[:48])
			docs = append(docs, d)
		}
		if docs == nil {
			continue
		}
		if _, err := p.messages.InsertMany(ctx, docs); err != nil {
			p.b.Error(err)
			return
		}
	}
}

// record inserts a record for each message that came, what is waiting in one batch.
func (p *plainProgram) record(ctx context.Context, came <-chan int) {
	for n := range came {
		docs := []any{recordDoc(1000+p.runs, n)}
		for more := true; more && len(docs) < 500; {
			select {
			case n, more = <-came:
				if more {
					docs = append(docs, recordDoc(1000+p.runs, n))
				}
			default:
				more = false
			}
		}
		if _, err := p.records.InsertMany(ctx, docs); err != nil {
			p.b.Error(err)
			return
		}
	}
}
