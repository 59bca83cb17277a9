// Package config reads the configuration of the broker: defaults, a YAML file, the environment and flags, in rising
// order of precedence.
//
// Nouns: a setting is one leaf of Config and has a key path such as store.retention.messages; a layer is what one
// source says (default, dev, file, env, flag); an origin is the place in the layer that won; a Problem is one thing
// that is wrong, with its place and what to try.
//
// Invariants: the struct Config is the only list of settings: the file's keys, the environment's names, the JSON
// Schema, the template of `config init` and the table in the README are all derived from it. A key that no setting
// has is an error in every layer. Nothing outside cmd knows this package: each package of the broker has its own
// options.
//
// The package starts no goroutine.
package config

import "time"

// Config is the whole configuration. Tags: koanf is the key, doc is the text for the user, min, max and enum bound the
// value.
type Config struct {
	Node    node        `koanf:"node"`
	Listen  []string    `koanf:"listen" doc:"MQTT listeners, as tcp://host:port or ws://host:port/path; tcp:// may be left out"`
	HTTP    httpAddress `koanf:"http"`
	Log     logging     `koanf:"log"`
	Store   storage     `koanf:"store"`
	Append  appending   `koanf:"append"`
	Limits  limits      `koanf:"limits"`
	Metrics metrics     `koanf:"metrics"`

	ServerReference string `koanf:"server_reference" doc:"other servers that MQTT 5 clients are sent to when this one stops, as host:port, more than one with blanks between; empty: none"`

	ConnectTimeout Duration `koanf:"connect_timeout" doc:"how long a new connection may take to send its CONNECT" min:"100ms" max:"10m"`
	DrainTimeout   Duration `koanf:"drain_timeout" doc:"how long a stopping broker waits for its clients and for writes under way" min:"0s" max:"10m"`
}

type node struct {
	Name string `koanf:"name" doc:"name of this broker in logs and records; empty: the host's name"`
}

type httpAddress struct {
	Addr string `koanf:"addr" doc:"address of /metrics, /livez, /readyz and, for this machine alone, /api; off: no HTTP"`
}

type logging struct {
	Level  string `koanf:"level" doc:"least level that is logged" enum:"debug,info,warn,error"`
	Format string `koanf:"format" doc:"console for people, json for machines; auto: console on a terminal, else json" enum:"auto,console,json"`
}

type storage struct {
	URL         string    `koanf:"url" doc:"embedded: the log inside this process; mongodb://…: a MongoDB replica set" secret:"true"`
	Data        string    `koanf:"data" doc:"directory of the embedded log"`
	DiskReserve Reserve   `koanf:"disk_reserve" doc:"free disk space below which publishes are refused; auto: 5 % of the file system, from 16MiB to 512MiB"`
	Records     string    `koanf:"records" doc:"full: each delivery leaves a record for as long as retention says; window: none of clean sessions, and on MongoDB none below a saved cursor" enum:"full,window"`
	Retention   retention `koanf:"retention"`
	Mongo       database  `koanf:"mongo"`
}

// Window tells whether records are kept only as long as a crash needs them.
func (s storage) Window() bool { return s.Records == "window" }

type database struct {
	Database         string `koanf:"database" doc:"name of the MongoDB database"`
	Message          string `koanf:"message" doc:"name of the collection of messages"`
	Subscription     string `koanf:"subscription" doc:"name of the collection of subscriptions"`
	PublishedMessage string `koanf:"published_message" doc:"name of the collection of delivery records"`
	Payload          string `koanf:"payload" doc:"how payloads are stored; auto: valid UTF-8 as a string, anything else as binary; binary: all as binary" enum:"auto,binary"`
	Lanes            int    `koanf:"lanes" doc:"streams of appends of this broker" min:"1" max:"64"`
	Streams          bool   `koanf:"streams" doc:"tail by change streams; false, for finding faults: by reading the lanes alone"`
}

type retention struct {
	Messages Duration `koanf:"messages" doc:"how long a message stays in the log" min:"1m"`
	Records  Duration `koanf:"records" doc:"how long a delivery record stays" min:"1m"`
}

type appending struct {
	Hold Duration `koanf:"hold" doc:"how long an append may stay in doubt before its connection is closed" min:"1s" max:"1h"`
}

type limits struct {
	PacketSize             Size     `koanf:"packet_size" doc:"largest MQTT packet taken or sent" min:"1KiB" max:"8MiB"`
	Window                 int      `koanf:"window" doc:"QoS 1 and 2 messages in flight to one client" min:"1" max:"65535"`
	ReceiveMaximum         int      `koanf:"receive_maximum" doc:"QoS 1 and 2 messages that one connection may have waiting for the store" min:"1" max:"65535"`
	SessionQueue           int      `koanf:"session_queue" doc:"live messages waiting in one session before it reads from the log" min:"1" max:"65536"`
	HubCache               Size     `koanf:"hub_cache" doc:"newest messages kept in memory for readers that are nearly live" min:"1MiB" max:"64GiB"`
	SubscriptionsPerClient int      `koanf:"subscriptions_per_client" doc:"subscriptions of one client" min:"1" max:"1000000"`
	FiltersPerSubscribe    int      `koanf:"filters_per_subscribe" doc:"filters in one SUBSCRIBE" min:"1" max:"65535"`
	Connections            int      `koanf:"connections" doc:"connections at the same time" min:"1" max:"10000000"`
	Sessions               int      `koanf:"sessions" doc:"sessions, connected or not" min:"1" max:"100000000"`
	TopicLevels            int      `koanf:"topic_levels" doc:"levels in a topic or a filter" min:"8" max:"32768"`
	TopicBytes             int      `koanf:"topic_bytes" doc:"bytes of a topic or a filter" min:"64" max:"65535"`
	TopicAliases           int      `koanf:"topic_aliases" doc:"topics that one connection may name by a number; each stays in memory" min:"1" max:"65535"`
	RetainedBytes          Size     `koanf:"retained_bytes" doc:"memory for retained messages" min:"1MiB" max:"1TiB"`
	SessionExpiryMax       Expiry   `koanf:"session_expiry_max" doc:"longest session expiry that a client gets, as a time or in seconds; never: no bound"`
	KeepAliveMax           Duration `koanf:"keep_alive_max" doc:"longest keep alive that a client gets" min:"1s" max:"65535s"`
}

type metrics struct {
	Go      bool `koanf:"go" doc:"metrics of the Go runtime"`
	Process bool `koanf:"process" doc:"metrics of the process"`
}

// Default returns the configuration that holds when nothing is said.
func Default() Config {
	return Config{
		Listen: []string{"tcp://:1883"},
		HTTP:   httpAddress{Addr: ":8080"},
		Log:    logging{Level: "info", Format: "auto"},
		Store: storage{
			URL:         Embedded,
			Data:        "./data",
			DiskReserve: ReserveAuto,
			Records:     "full",
			Retention:   retention{Messages: Duration(365 * day), Records: Duration(30 * day)},
			Mongo: database{
				Database: "mqtt", Message: "message", Subscription: "subscription", PublishedMessage: "publishedMessage",
				Payload: "auto", Lanes: 2, Streams: true,
			},
		},
		Append: appending{Hold: Duration(time.Minute)},
		Limits: limits{
			PacketSize:             mib,
			Window:                 1000,
			ReceiveMaximum:         1000,
			SessionQueue:           256,
			HubCache:               64 * mib,
			SubscriptionsPerClient: 10_000,
			FiltersPerSubscribe:    1000,
			Connections:            100_000,
			Sessions:               1_000_000,
			TopicLevels:            256,
			TopicBytes:             65535,
			TopicAliases:           10,
			RetainedBytes:          256 * mib,
			SessionExpiryMax:       ExpiryNever,
			KeepAliveMax:           Duration(65535 * time.Second),
		},
		Metrics:        metrics{Go: true, Process: true},
		ConnectTimeout: Duration(10 * time.Second),
		DrainTimeout:   Duration(10 * time.Second),
	}
}

// Embedded is the value of store.url that names the log inside this process.
const Embedded = "embedded"
