package mongo

import (
	"errors"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"pgregory.net/rapid"

	"rewindmq/schema"
)

// L2, L3: only an error about the document itself refuses it; everything else is a
// doubt, from that index on, and from the start where the write concern failed.
func TestJudge(t *testing.T) {
	t.Parallel()
	at := func(index, code int) []driver.WriteError {
		return []driver.WriteError{{Index: index, Code: code}}
	}
	wce := &driver.WriteConcernError{Code: 64}
	for _, tt := range []struct {
		name             string
		err              error
		stored           int
		refused, inDoubt bool
	}{
		{"acknowledged", nil, 5, false, false},
		{"validator", driver.WriteException{WriteErrors: at(2, 121)}, 2, true, false},
		{"too large", driver.WriteException{WriteErrors: at(0, 10334)}, 0, true, false},
		{"duplicate", driver.WriteException{WriteErrors: at(3, 11000)}, 3, false, true},
		{"L2 step-down inside ok:1", driver.WriteException{WriteErrors: at(0, 189), WriteConcernError: wce}, 0, false, true},
		{"step-down without a write concern error", driver.WriteException{WriteErrors: at(1, 11602)}, 1, false, true},
		{"L3 duplicate and write concern", driver.WriteException{WriteErrors: at(3, 11000), WriteConcernError: wce}, 0, false, true},
		{"validator and write concern", driver.WriteException{WriteErrors: at(3, 121), WriteConcernError: wce}, 0, false, true},
		{"write concern", driver.WriteException{WriteConcernError: wce}, 0, false, true},
		{"index out of the batch", driver.WriteException{WriteErrors: at(7, 121)}, 0, false, true},
		{"by the driver's BulkWrite", driver.BulkWriteException{WriteErrors: []driver.BulkWriteError{{WriteError: at(2, 121)[0]}}}, 2, true, false},
		{"the same with a write concern", driver.BulkWriteException{WriteErrors: []driver.BulkWriteError{{WriteError: at(2, 121)[0]}}, WriteConcernError: wce}, 0, false, true},
		{"command", driver.CommandError{Code: 121}, 0, false, true},
		{"network", errors.New("broken pipe"), 0, false, true},
	} {
		v := judge(tt.err, 5)
		if v.stored != tt.stored || v.refused != tt.refused || v.doubt != tt.inDoubt {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

// S-30: the bytes and fields that come back are those that went in, and text is
// stored as text.
func TestMessageDocument(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-z/ü ]{0,12}`)
		m := schema.Message{
			ID: schema.ID(bson.NewObjectID()), Topic: rapid.StringMatching(`[a-zü/]{1,20}`).Draw(t, "topic"), ClientID: text.Draw(t, "client"),
			Payload: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload"), QoS: uint8(rapid.IntRange(0, 2).Draw(t, "qos")),
			Retain: rapid.Bool().Draw(t, "retain"), Created: time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "created")).UTC(), Host: text.Draw(t, "host"),
		}
		if rapid.Bool().Draw(t, "properties") {
			p := &schema.Properties{
				HasPayloadFormat: rapid.Bool().Draw(t, "has"), ContentType: text.Draw(t, "type"), ResponseTopic: text.Draw(t, "response"),
			}
			if rapid.Bool().Draw(t, "correlation") {
				p.CorrelationData = append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, "data")...)
			}
			for range rapid.IntRange(0, 3).Draw(t, "pairs") {
				p.User = append(p.User, schema.UserProperty{Key: text.Draw(t, "key"), Value: text.Draw(t, "value")})
			}
			m.Properties = p
		}
		if rapid.Bool().Draw(t, "expires") {
			m.Expiry = m.Created.Add(time.Minute)
		}
		lane := newLaneID(schema.Lane(rapid.Uint32Range(1, 1<<31-1).Draw(t, "lane")), rapid.Uint32().Draw(t, "key"))
		n := rapid.Uint64Range(1, 1<<40).Draw(t, "n")
		f := form{binary: rapid.Bool().Draw(t, "binary")}
		doc := f.encode(&m, lane, n)
		if typ := doc.Lookup("data").Type; typ != bson.TypeString && (typ != bson.TypeBinary || !f.binary && utf8.Valid(m.Payload)) || f.binary && typ != bson.TypeBinary {
			t.Fatalf("%q is stored as %v, binary %v", m.Payload, typ, f.binary)
		}
		if size := m.Size() + len(m.Host); len(doc) > size {
			t.Fatalf("%d bytes, and by Size at most %d", len(doc), size)
		}
		got, at, err := decodeMessage(doc)
		if err != nil {
			t.Fatal(err)
		}
		if !at.has || at.lane != lane || uint64(at.n) != n || at.stop != "" || at.mark() != (schema.Mark{Lane: lane.number(), N: n}) {
			t.Fatalf("place %+v, want %v/%d", at, lane, n)
		}
		m.Mark = at.mark()
		if string(got.Payload) != string(m.Payload) {
			t.Fatalf("payload %q, want %q", got.Payload, m.Payload)
		}
		got.Payload, m.Payload = nil, nil
		if !reflect.DeepEqual(*got, m) {
			t.Fatalf("got %+v (%+v), want %+v (%+v)", got, got.Properties, m, m.Properties)
		}
	})
}
