package broker

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"rewindmq/fanout"
	"rewindmq/replay"
)

// Options of a broker. The zero value of a field means its default.
type Options struct {
	// Node names the broker in messages and records. REQUIRED.
	Node string
	// Version of the build, for $SYS/broker/version (unknown).
	Version string
	// MaximumPacketSize that is accepted, in bytes (1 MiB; at most 8 MiB).
	MaximumPacketSize int
	// Window is the number of deliveries that may be unacknowledged for one
	// client (1,000; 1..65535). A client's Receive Maximum may lower it.
	Window int
	// ReceiveMaximum is the number of messages that a client may have
	// unacknowledged (1,000; 1..65535).
	ReceiveMaximum int
	// Unrecorded: deliveries to clean sessions leave no record. (They do, after
	// they were sent.)
	Unrecorded bool
	// SessionQueue is the number of messages that wait in memory for one
	// session before it becomes a reader of the log (256).
	SessionQueue int
	// IngestBytes bounds the messages of all connections that wait for the
	// store (64 MiB). Above it connections are not read.
	IngestBytes int64
	// OutboxBytes is what may wait to be written to one connection before its
	// session holds back (256 KiB).
	OutboxBytes int
	// HubCacheBytes is what the hub keeps of the last messages (64 MiB).
	HubCacheBytes int64
	// RetainedBytes bounds the retained messages (256 MiB).
	RetainedBytes int64
	// SubscriptionsPerClient (10,000) and FiltersPerSubscribe (1,000).
	SubscriptionsPerClient int
	FiltersPerSubscribe    int
	// Connections bounds those that are open (100,000), Sessions those that
	// are stored (1,000,000; new ones are refused above it).
	Connections int
	Sessions    int
	// TopicLevels bounds the levels of topics and filters (256), TopicBytes their
	// length (65,535).
	TopicLevels int
	TopicBytes  int
	// TopicAliases is how many topics a client may name by number (10; 1..65535).
	// Each holds a topic in memory.
	TopicAliases int
	// SessionExpiryMax in seconds lowers what clients ask for (no limit).
	SessionExpiryMax uint32
	// KeepAliveMax is told to MQTT 5 clients that ask for more or for none; 0:
	// no limit.
	KeepAliveMax time.Duration
	// ServerReference names another server to MQTT 5 clients when this one ends:
	// reason 0x9C instead of 0x8B (none).
	ServerReference string
	// ConnectTimeout is how long a connection may take to send CONNECT (10 s).
	ConnectTimeout time.Duration
	// DrainTimeout is how long Run waits for sessions to let go (10 s).
	DrainTimeout time.Duration
	// Now is the clock (time.Now).
	Now func() time.Time
	// Log takes the edges: connections, takeovers, store trouble (none).
	Log *zap.Logger
	// Metrics are fed if not nil; so are Replay's.
	Metrics *Metrics
	Replay  *replay.Metrics
	Hub     *fanout.Metrics
}

func defaultTo[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// complete fills in the defaults and judges the rest.
func (o *Options) complete() error {
	defaultTo(&o.Version, "unknown")
	defaultTo(&o.MaximumPacketSize, 1<<20)
	defaultTo(&o.Window, 1000)
	defaultTo(&o.ReceiveMaximum, 1000)
	defaultTo(&o.SessionQueue, 256)
	defaultTo(&o.IngestBytes, 64<<20)
	defaultTo(&o.OutboxBytes, 256<<10)
	defaultTo(&o.HubCacheBytes, 64<<20)
	defaultTo(&o.RetainedBytes, 256<<20)
	defaultTo(&o.SubscriptionsPerClient, 10_000)
	defaultTo(&o.FiltersPerSubscribe, 1000)
	defaultTo(&o.Connections, 100_000)
	defaultTo(&o.Sessions, 1_000_000)
	defaultTo(&o.TopicLevels, 256)
	defaultTo(&o.TopicBytes, 65535)
	defaultTo(&o.TopicAliases, 10)
	defaultTo(&o.SessionExpiryMax, ^uint32(0))
	defaultTo(&o.ConnectTimeout, 10*time.Second)
	defaultTo(&o.DrainTimeout, 10*time.Second)
	defaultTo(&o.Log, zap.NewNop())
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case o.Node == "":
		return fmt.Errorf("broker: Options.Node is empty")
	case o.MaximumPacketSize < 128 || o.MaximumPacketSize > 8<<20:
		return fmt.Errorf("broker: MaximumPacketSize %d: want 128 to %d bytes", o.MaximumPacketSize, 8<<20)
	case o.Window < 1 || o.Window > 65535:
		return fmt.Errorf("broker: Window %d: want 1 to 65535", o.Window)
	case o.ReceiveMaximum < 1 || o.ReceiveMaximum > 65535:
		return fmt.Errorf("broker: ReceiveMaximum %d: want 1 to 65535", o.ReceiveMaximum)
	case o.IngestBytes < int64(o.MaximumPacketSize):
		return fmt.Errorf("broker: IngestBytes %d: want at least MaximumPacketSize, %d", o.IngestBytes, o.MaximumPacketSize)
	case o.TopicAliases < 1 || o.TopicAliases > 65535:
		return fmt.Errorf("broker: TopicAliases %d: want 1 to 65535", o.TopicAliases)
	case len(o.ServerReference) > 65535:
		return fmt.Errorf("broker: ServerReference has %d bytes: want at most 65535", len(o.ServerReference))
	case o.SessionQueue < 1 || o.OutboxBytes < 1024 || o.TopicLevels < 1 || o.TopicBytes < 1:
		return fmt.Errorf("broker: SessionQueue %d, OutboxBytes %d, TopicLevels %d, TopicBytes %d: too small", o.SessionQueue, o.OutboxBytes, o.TopicLevels, o.TopicBytes)
	}
	return nil
}
