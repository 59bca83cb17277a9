package mongo

import (
	"context"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// monitor feeds the operation histogram from the driver: one entry for each
// command, under its own name.
func (s *Store) monitor() *event.CommandMonitor {
	m := s.o.Metrics
	return &event.CommandMonitor{
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) {
			switch e.CommandName {
			case "find", "aggregate", "getMore", "insert", "update", "delete", "findAndModify":
				m.Operation("command_"+e.CommandName, e.Duration)
			}
		},
		Failed: func(_ context.Context, e *event.CommandFailedEvent) {
			m.Error("command_"+e.CommandName, kindOf(e.Failure))
		},
	}
}

const (
	// headRest and oldestRest are how often the log's ends are looked at for their
	// gauges.
	headRest   = 5 * time.Second
	oldestRest = 15 * time.Second
)

// gauge looks at the ends of the log until the store dies. What it cannot find out
// stays as it was: other metrics tell that the store is away.
func (s *Store) gauge() {
	var looked time.Time
	for {
		if h, err := s.head(s.life); err == nil {
			var sum uint64
			for _, m := range h.Marks() {
				sum += m.N
			}
			s.o.Metrics.HeadSequence.Set(float64(sum))
		}
		if looked.IsZero() || time.Since(looked) >= oldestRest {
			looked = time.Now()
			s.gaugeOldest()
		}
		if rest(s.life, headRest) != nil {
			return
		}
	}
}

// gaugeOldest takes the smallest _id: those that brokers make rise with time, and
// the index is there whatever is kept.
func (s *Store) gaugeOldest() {
	var docs []bson.Raw
	cur, err := s.c.message.Find(s.life, bson.D{}, options.Find().SetSort(fields("_id", 1)).SetLimit(1).SetProjection(fields("created", 1)))
	if err == nil {
		err = cur.All(s.life, &docs)
	}
	if err != nil {
		return
	}
	at := 0.0
	if len(docs) > 0 {
		if t := timeOf(docs[0].Lookup("created").DateTimeOK()); !t.IsZero() {
			at = float64(t.UnixMilli()) / 1000
		}
	}
	s.o.Metrics.OldestTimestamp.Set(at)
}
