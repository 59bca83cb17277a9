package embedded

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"time"

	"rewindmq/schema"
)

var at = time.Unix(1_700_000_000, 123_456_789).UTC()

func sampleMessage() *schema.Message {
	return &schema.Message{
		ID: schema.ID{1, 2}, TS: 77, Payload: []byte("payload"), ClientID: "c", QoS: 2, Retain: true, Created: at,
		Host: "h", Expiry: at.Add(time.Hour),
		Properties: &schema.Properties{
			HasPayloadFormat: true, PayloadFormat: 1, ContentType: "t", ResponseTopic: "r", CorrelationData: []byte{},
			User: []schema.UserProperty{{Key: "k", Value: "v"}, {Key: "k"}},
		},
	}
}

func sampleDocument() *document {
	return &document{
		session: 3, sid: 4, epoch: 5, owned: true, clean: true, owner: "n", expiry: schema.NoExpiry, protocol: 5, connected: at,
		wills: []schema.Will{{
			Key: schema.ID{9}, Epoch: 5, Topic: "w", Payload: []byte("x"), QoS: 1, Retain: true, Delay: 7, Expiry: 8, HasExpiry: true,
			Properties: &schema.Properties{ContentType: "t"}, At: at, Due: true,
		}},
	}
}

func sampleCursor() schema.Cursor {
	return schema.NewCursor(9, []schema.Mark{{Lane: 1, N: 5}, {Lane: 7, N: 1 << 40}})
}

func samplePlace() *place {
	return &place{from: 6, SessionCursor: schema.SessionCursor{After: sampleCursor(), Seq: 3, Flight: []schema.Flight{{
		Seq: 2, MessageID: schema.ID{1}, Mark: schema.Mark{Lane: 1, N: 3}, PacketID: 9, QoS: 2, Received: true, Retained: schema.ID{4}, Created: at,
	}}}}
}

func sampleSubscription() *schema.Subscription {
	return &schema.Subscription{
		ID: schema.ID{1}, Owner: schema.Owner{SID: 2, Epoch: 3}, QoS: 1, Created: at, NoLocal: true, RetainAsPublished: true,
		RetainHandling: 2, Identifier: 268_435_455, Since: sampleCursor(), Before: &schema.Before{QoS: 2, UpTo: sampleCursor()},
		Run: &schema.Run{ID: schema.ID{7}, Place: sampleCursor(), Next: "next"},
	}
}

func sampleDelivery() *schema.Delivery {
	return &schema.Delivery{
		ID: schema.ID{1}, Owner: schema.Owner{ClientID: "c", SID: 2, Epoch: 3}, Topic: "t", MessageID: schema.ID{4},
		Mark: schema.Mark{Lane: 1, N: 5}, PacketID: 6, QoS: 2, Retained: schema.ID{7}, Dropped: true, Received: true, Host: "h", Created: at,
	}
}

// codecs are all values that are stored: a sample, and a way to read and write
// again.
var codecs = []struct {
	name   string
	sample []byte
	again  func(value []byte) ([]byte, any, error)
	want   any
}{
	{"message", putMessage(nil, sampleMessage()), func(v []byte) ([]byte, any, error) {
		m := &schema.Message{}
		err := readMessage(m, v, &interner{})
		return putMessage(nil, m), m, err
	}, sampleMessage()},
	{"document", putDocument(nil, sampleDocument()), func(v []byte) ([]byte, any, error) {
		d, err := readDocument(v)
		return putDocument(nil, d), d, err
	}, sampleDocument()},
	{"place", putPlace(nil, samplePlace()), func(v []byte) ([]byte, any, error) {
		p, err := readPlace(v)
		return putPlace(nil, p), p, err
	}, samplePlace()},
	{"subscription", putSubscription(nil, sampleSubscription()), func(v []byte) ([]byte, any, error) {
		s := &schema.Subscription{}
		err := readSubscription(s, v)
		return putSubscription(nil, s), s, err
	}, sampleSubscription()},
	{"delivery", putDelivery(nil, sampleDelivery()), func(v []byte) ([]byte, any, error) {
		d := &schema.Delivery{}
		err := readDelivery(d, v)
		return putDelivery(nil, d), d, err
	}, sampleDelivery()},
	{"state", putState(nil, &state{n: 1, ts: 2, session: 3, floor: 4, nextTopic: 5, sessions: 6, subscriptions: 7, clock: 8, from: 9, ran: 10}), func(v []byte) ([]byte, any, error) {
		s, err := readState(v)
		return putState(nil, &s), s, err
	}, state{n: 1, ts: 2, session: 3, floor: 4, nextTopic: 5, sessions: 6, subscriptions: 7, clock: 8, from: 9, ran: 10}},
	{"epoch", putEpoch(nil, &epoch{first: 5, day: 20_000, newest: at, messagesGone: true}), func(v []byte) ([]byte, any, error) {
		e, err := readEpoch(epochKey(nil, keyEpoch, 0), v)
		return putEpoch(nil, &e), e, err
	}, epoch{first: 5, day: 20_000, newest: at, messagesGone: true}},
	{"retained", putRetained(nil, sampleMessage()), func(v []byte) ([]byte, any, error) {
		m, err := readRetained([]byte("r"), v)
		if err != nil {
			return nil, nil, err
		}
		return putRetained(nil, m), m, err
	}, sampleMessage()},
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	for _, c := range codecs {
		again, got, err := c.again(c.sample)
		if err != nil || !bytes.Equal(again, c.sample) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, got %+v, want %+v", c.name, err, got, c.want)
		}
		for n := range c.sample {
			if _, _, err := c.again(c.sample[:n:n]); err == nil && (c.name != "message" && c.name != "retained" || n < 60) {
				t.Errorf("%s: %d of %d bytes are taken for whole", c.name, n, len(c.sample))
			}
		}
		other := append([]byte{encoding + 1}, c.sample[1:]...)
		if _, _, err := c.again(other); err == nil {
			t.Errorf("%s: an unknown encoding is taken", c.name)
		}
	}
}

// Whatever stands there, decoding ends with a value that encodes and decodes to
// itself, or with an error.
func FuzzDecode(f *testing.F) {
	for i, c := range codecs {
		f.Add(uint8(i), c.sample)
	}
	f.Fuzz(func(t *testing.T, which uint8, value []byte) {
		c := codecs[int(which)%len(codecs)]
		again, _, err := c.again(bytes.Clone(value))
		if err != nil {
			return
		}
		twice, _, err := c.again(bytes.Clone(again))
		if err != nil || !bytes.Equal(again, twice) {
			t.Errorf("%s: %q decodes, its own encoding %q does not: %v", c.name, value, again, err)
		}
	})
}

// Whatever a file of chunks holds, looking at it ends, within it.
func FuzzChunks(f *testing.F) {
	whole := func(number uint32, kind byte, payload string) []byte {
		c := []byte{0, 0, 0, 0, byte(len(payload)), byte(len(payload) >> 8), kind}
		if number != 0 {
			c = append(binary.LittleEndian.AppendUint32(c, number), 0, 0, 0, 0, 0, 0, 0, 0)
		}
		c = append(c, payload...)
		file := chunkFile{data: c, number: number}
		claimed, _ := file.claimed(0)
		binary.LittleEndian.PutUint32(c, file.checksum(claimed))
		return c
	}
	f.Add(uint32(0), append(whole(0, 1, "a"), whole(0, 1, "b")...))
	f.Add(uint32(7), append(whole(7, 9, "a"), whole(7, 10, "b")...))
	f.Add(uint32(7), make([]byte, chunkBlock+5))
	f.Fuzz(func(t *testing.T, number uint32, data []byte) {
		file := chunkFile{data: data, number: number}
		e := file.walk()
		if e.at < 0 || e.at > len(data) || e.record > e.at {
			t.Fatalf("%+v of %d bytes", e, len(data))
		}
		if n := file.torn(e); n < 0 || n > len(data) {
			t.Fatalf("torn %d of %d bytes", n, len(data))
		}
		if at, ok := file.proof(e); ok && (at <= e.at || at >= len(data)) {
			t.Fatalf("proof at %d, end at %d", at, e.at)
		}
		file.flipped(e)
	})
}
