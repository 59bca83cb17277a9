package mongo

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/event"
	"go.uber.org/zap"

	"rewindmq/store"
)

// Options tell where the replica set is and how the store behaves. The zero value
// of every field but URI is the default.
type Options struct {
	// URI is the connection string. What in it would weaken a promise (w,
	// journal, readPreference, readConcernLevel, retryWrites, timeoutMS) is
	// overridden, with a warning in Log.
	URI string
	// Database is the name of the database; default "mqtt".
	Database string
	// Collections names the collections; empty names are the defaults.
	Collections Names
	// Node is the name of this node in documents; default: the host's name.
	Node string
	// Lanes that this node appends through; default 2.
	Lanes int
	// Hold bounds a doubt: when what happened to an append cannot be found out
	// for so long, it is given up; default 60 s.
	Hold time.Duration
	// Attempt bounds one attempt of a write; default 10 s.
	Attempt time.Duration
	// Lease is how long a node counts as living after its last heartbeat, which
	// it writes five times as often; default 10 s.
	Lease time.Duration
	// ClaimWait bounds how long a claim waits for the former owner; default 1 s.
	ClaimWait time.Duration
	// ClockBound is how far this machine's clock may be off the server's before
	// Ready says so; default 1 min. No promise depends on it, see Store.Now.
	ClockBound time.Duration
	// Now is this machine's clock (time.Now).
	Now func() time.Time
	// MaxPayload in bytes: a larger one is refused with store.ErrTooLarge; default
	// 8 MiB, at most 15 MiB.
	MaxPayload int
	// BinaryPayloads stores every payload as binary; else one that is valid UTF-8 is
	// stored as a string. Both are read, whatever is set.
	BinaryPayloads bool
	// RetainMessages and RetainRecords are how long messages and delivery records
	// are kept; 0: 365 and 30 days; negative: for ever.
	RetainMessages, RetainRecords time.Duration
	// SweepRecords removes the delivery records that a saved cursor has made
	// superfluous, in place of keeping them as history for RetainRecords.
	SweepRecords bool
	// NoStreams switches the change streams off: lanes alone, for tests and for
	// finding faults.
	NoStreams bool
	// Log takes what people should read; nil: nothing.
	Log *zap.Logger
	// Metrics are fed if not nil.
	Metrics *store.Metrics

	// clock stands in for the server's where sessions are judged. For tests.
	clock *testClock
	// mute makes the streams of messages lose what they see while it is set. For
	// tests.
	mute *atomic.Bool
	// noGauge leaves the ends of the log unlooked at: no write but the heartbeats
	// tells the time. For tests.
	noGauge bool
	// busy is how many events within a second make the tail pass. For tests.
	busy int
	// crowded is how many entries of the oplog within a second do. For tests.
	crowded int
	// messageScan bounds the documents that one ListMessages looks at where no index
	// leads to what it is asked for. For tests.
	messageScan int
	// commands sees the commands of both clients. For tests.
	commands *event.CommandMonitor
}

// Names of the collections. The first three are those that others read.
type Names struct {
	Message, Subscription, PublishedMessage            string
	Lane, Session, Cursor, Group, Retained, Node, Meta string
}

func (n Names) withDefaults() Names {
	def := func(s *string, name string) {
		if *s == "" {
			*s = name
		}
	}
	def(&n.Message, "message")
	def(&n.Subscription, "subscription")
	def(&n.PublishedMessage, "publishedMessage")
	def(&n.Lane, "lane")
	def(&n.Session, "session")
	def(&n.Cursor, "cursor")
	def(&n.Group, "group")
	def(&n.Retained, "retained")
	def(&n.Node, "node")
	def(&n.Meta, "meta")
	return n
}

func (o Options) withDefaults() (Options, error) {
	if o.URI == "" {
		return o, errors.New("mongo: Options.URI is empty")
	}
	if o.Database == "" {
		o.Database = "mqtt"
	}
	o.Collections = o.Collections.withDefaults()
	if o.Node == "" {
		o.Node, _ = os.Hostname()
	}
	if o.Lanes == 0 {
		o.Lanes = 2
	}
	if o.Lanes < 1 || o.Lanes > 64 {
		return o, fmt.Errorf("mongo: Options.Lanes is %d, want 1 to 64", o.Lanes)
	}
	for _, d := range []struct {
		name string
		at   *time.Duration
		def  time.Duration
	}{
		{"Hold", &o.Hold, time.Minute},
		{"Attempt", &o.Attempt, 10 * time.Second},
		{"Lease", &o.Lease, 10 * time.Second},
		{"ClaimWait", &o.ClaimWait, time.Second},
		{"ClockBound", &o.ClockBound, time.Minute},
	} {
		if *d.at == 0 {
			*d.at = d.def
		}
		if *d.at < 0 {
			return o, fmt.Errorf("mongo: Options.%s is %v, want more than 0", d.name, *d.at)
		}
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = 8 << 20
	}
	if o.MaxPayload < 0 || o.MaxPayload > 15<<20 {
		return o, fmt.Errorf("mongo: Options.MaxPayload is %d, want 1 to %d", o.MaxPayload, 15<<20)
	}
	if o.RetainMessages == 0 {
		o.RetainMessages = 365 * 24 * time.Hour
	}
	if o.RetainRecords == 0 {
		o.RetainRecords = 30 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	o.messageScan, o.busy, o.crowded = cmp.Or(o.messageScan, messageScan), cmp.Or(o.busy, busyEvents), cmp.Or(o.crowded, busyEntries)
	return o, nil
}
