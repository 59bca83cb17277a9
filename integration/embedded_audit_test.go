package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store/embedded"
)

// auditEmbedded opens the log in dir, which no process holds. The records are
// read first, from the engine, as the store's contract has no reader for them.
func auditEmbedded(t *testing.T, dir string) audit {
	t.Helper()
	a := audit{records: embeddedRecords(t, dir)}
	log, err := embedded.Open(embedded.Options{Dir: dir, Node: "audit"})
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- log.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("audit: the log ended with %v", err)
		}
	}()
	head, err := log.Head(ctx)
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	messages, err := log.Read(ctx, schema.Cursor{}, head, []string{"#"})
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	defer messages.Close()
	for {
		m, err := messages.Next(ctx)
		if errors.Is(err, io.EOF) {
			return a
		}
		if err != nil {
			t.Fatalf("audit: %v", err)
		}
		a.messages = append(a.messages, storedMessage{
			id: m.ID.String(), clientID: m.ClientID, topic: m.Topic, payload: m.Payload, qos: m.QoS, retain: m.Retain,
		})
	}
}

// embeddedRecords reads d | epoch4 | session8 | seq8, as the key layout of the
// log has it.
func embeddedRecords(t *testing.T, dir string) []storedRecord {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{
		ReadOnly: true, FormatMajorVersion: pebble.FormatNewest, Logger: quietEngine{},
	})
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	defer db.Close()
	iter, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{'d'}, UpperBound: []byte{'d' + 1}})
	if err != nil {
		t.Fatalf("audit: %v", err)
	}
	defer iter.Close()
	var out []storedRecord
	for iter.First(); iter.Valid(); iter.Next() {
		key, value := iter.Key(), body{b: iter.Value()}
		if len(key) != 21 || value.byte() != 1 {
			t.Fatalf("audit: record %x: unknown layout", key)
		}
		rec := storedRecord{seq: binary.BigEndian.Uint64(key[13:])}
		value.take(12) // its own id
		rec.clientID = string(value.take(int(value.uvarint())))
		value.uvarint() // sid
		value.uvarint() // epoch
		value.take(int(value.uvarint()))
		rec.messageID = idText(value.take(12))
		value.uvarint() // lane
		value.uvarint() // n
		rec.packetID, rec.qos = value.uint16(), value.byte()
		rec.retained = idText(value.take(12)) != ""
		rec.dropped = value.byte() == 1
		if value.bad {
			t.Fatalf("audit: record %x: too short", key)
		}
		out = append(out, rec)
	}
	if err := iter.Error(); err != nil {
		t.Fatalf("audit: %v", err)
	}
	return out
}

func idText(b []byte) string {
	if id := schema.ID(b); !id.IsZero() {
		return id.String()
	}
	return ""
}

// quietEngine keeps Pebble's own log lines out of the test's output.
type quietEngine struct{}

func (quietEngine) Infof(string, ...any)      {}
func (quietEngine) Errorf(string, ...any)     {}
func (quietEngine) Fatalf(f string, _ ...any) { panic(f) }

// makeEmbeddedNewer writes a format version that no program knows yet.
func makeEmbeddedNewer(t *testing.T, dir string) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quietEngine{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte{'f'}, binary.BigEndian.AppendUint32(nil, 1000), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
