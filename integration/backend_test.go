package integration

import (
	"os"
	"strings"
	"testing"

	driver "go.mongodb.org/mongo-driver/v2/mongo"
)

// backend is a store that a broker can run on. The tests know nothing else of
// it: a new backend is one more entry of backends.
type backend struct {
	name string
	// place makes room for one broker's store; dir is the test's own.
	place func(t *testing.T, dir string) place
}

// place is where one broker keeps its data.
type place struct {
	dir  string   // the data directory; empty if the backend has none
	args []string // what serve needs to find it
	// audit reads the store of a broker that has been stopped.
	audit func(t *testing.T) audit
	// makeNewer marks the store as one that a later program has written.
	makeNewer func(t *testing.T)
	// db is the database of the mongodb backend; nil elsewhere.
	db *driver.Database
}

// audit is what is stored: every message in log order, and every delivery
// record in the order of each session's seq.
type audit struct {
	messages []storedMessage
	records  []storedRecord
}

type storedMessage struct {
	id       string
	clientID string
	topic    string
	payload  []byte
	qos      byte
	retain   bool
}

type storedRecord struct {
	clientID  string
	messageID string // empty: a fence
	seq       uint64
	packetID  uint16
	qos       byte
	retained  bool
	dropped   bool
}

func backends() []backend { return []backend{embeddedBackend(), mongodbBackend()} }

// forEachStore runs a test on every backend that REWINDMQ_TEST_STORES (comma
// separated names; default: all) leaves in.
func forEachStore(t *testing.T, test func(t *testing.T, s backend)) {
	t.Helper()
	t.Parallel()
	for _, s := range backends() {
		if !chosen(s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// chosen tells whether REWINDMQ_TEST_STORES leaves a backend in.
func chosen(name string) bool {
	only := os.Getenv("REWINDMQ_TEST_STORES")
	return only == "" || strings.Contains(","+only+",", ","+name+",")
}
