package mongo

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"rewindmq/schema"
)

// place is where a document of `message` stands, as it is written there.
type place struct {
	lane laneID
	n    int64
	// has: both fields are there. A document without them is a foreign insert.
	has  bool
	stop string // "stop" or "end": it is no message
	ts   uint64
}

func (p place) mark() schema.Mark { return schema.Mark{Lane: p.lane.number(), N: uint64(p.n)} }

const (
	stopPlain = "stop"
	stopEnd   = "end"
	stopTopic = "$lane"
)

// form is how payloads are stored: text as a string, for people, and anything else as
// binary; or all of them as binary. What is read may have either.
type form struct{ binary bool }

// encode makes the document of m at a place of a lane. The server sets ts.
func (f form) encode(m *schema.Message, lane laneID, n uint64) bson.Raw {
	size := 192 + len(m.Topic) + len(m.Payload) + len(m.ClientID) + len(m.Host)
	return f.append(make([]byte, 0, size), m, lane, n)
}

func (f form) append(b []byte, m *schema.Message, lane laneID, n uint64) []byte {
	at, b := bsoncore.AppendDocumentStart(b)
	b = bsoncore.AppendObjectIDElement(b, "_id", bson.ObjectID(m.ID))
	b = bsoncore.AppendStringElement(b, "topic", m.Topic)
	b = f.appendPayload(b, m.Payload)
	b = bsoncore.AppendStringElement(b, "clientId", m.ClientID)
	b = bsoncore.AppendInt32Element(b, "qos", int32(m.QoS))
	b = bsoncore.AppendBooleanElement(b, "retain", m.Retain)
	b = bsoncore.AppendDateTimeElement(b, "created", m.Created.UnixMilli())
	b = bsoncore.AppendStringElement(b, "host", m.Host)
	b = bsoncore.AppendInt64Element(b, "lane", int64(lane))
	b = bsoncore.AppendInt64Element(b, "n", int64(n))
	b = bsoncore.AppendTimestampElement(b, "ts", 0, 0)
	if !m.Expiry.IsZero() {
		b = bsoncore.AppendDateTimeElement(b, "expiry", m.Expiry.UnixMilli())
	}
	if m.Properties != nil {
		b = appendProperties(b, m.Properties)
	}
	b, _ = bsoncore.AppendDocumentEnd(b, at) // fails only where the start is missing
	return b
}

func (f form) appendPayload(b []byte, payload []byte) []byte {
	if !f.binary && utf8.Valid(payload) {
		return bsoncore.AppendStringElement(b, "data", string(payload))
	}
	return bsoncore.AppendBinaryElement(b, "data", 0, payload)
}

func appendProperties(b []byte, p *schema.Properties) []byte {
	return bsoncore.AppendDocumentElement(b, "properties", bsoncore.Document(encodeProperties(p)))
}

func encodeProperties(p *schema.Properties) bson.Raw {
	at, b := bsoncore.AppendDocumentStart(nil)
	if p.HasPayloadFormat {
		b = bsoncore.AppendInt32Element(b, "payloadFormat", int32(p.PayloadFormat))
	}
	if p.ContentType != "" || p.EmptyContentType {
		b = bsoncore.AppendStringElement(b, "contentType", p.ContentType)
	}
	if p.ResponseTopic != "" {
		b = bsoncore.AppendStringElement(b, "responseTopic", p.ResponseTopic)
	}
	if p.CorrelationData != nil {
		b = bsoncore.AppendBinaryElement(b, "correlationData", 0, p.CorrelationData)
	}
	if p.User != nil {
		list := bson.A{}
		for _, u := range p.User {
			list = append(list, bson.A{u.Key, u.Value})
		}
		if t, v, err := bson.MarshalValue(list); err == nil { // strings in lists always go in
			b = bsoncore.AppendHeader(b, bsoncore.Type(t), "user")
			b = append(b, v...)
		}
	}
	b, _ = bsoncore.AppendDocumentEnd(b, at)
	return bson.Raw(b)
}

var errDocument = errors.New("mongo: malformed document")

// decodeMessage reads a document of `message`, also one in the shape that other
// writers use. It keeps nothing of raw. Every message comes through here, more than
// once: so the elements are read where they are.
func decodeMessage(raw bson.Raw) (*schema.Message, place, error) {
	m := &schema.Message{}
	var p place
	var hasN bool
	length, _, ok := bsoncore.ReadLength(raw)
	if !ok || length < 5 || int(length) > len(raw) {
		return nil, p, fmt.Errorf("%w: %d bytes say that they are %d", errDocument, len(raw), length)
	}
	for rem := raw[4 : length-1]; len(rem) > 0; {
		var e bsoncore.Element
		if e, rem, ok = bsoncore.ReadElement(rem); !ok {
			return nil, p, fmt.Errorf("%w: an element is cut off", errDocument)
		}
		key, v := e.KeyBytes(), e.Value()
		switch string(key) {
		case "_id":
			id, ok := v.ObjectIDOK()
			if !ok {
				return nil, p, fmt.Errorf("%w: _id is a %v", errDocument, v.Type)
			}
			m.ID = schema.ID(id)
		case "topic":
			m.Topic, _ = v.StringValueOK()
		case "data":
			m.Payload = payloadOf(v)
		case "clientId":
			m.ClientID, _ = v.StringValueOK()
		case "qos":
			n, _ := v.AsInt64OK()
			m.QoS = uint8(n)
		case "retain":
			m.Retain, _ = v.BooleanOK()
		case "created":
			m.Created = timeOf(v.DateTimeOK())
		case "host":
			m.Host, _ = v.StringValueOK()
		case "expiry":
			m.Expiry = timeOf(v.DateTimeOK())
		case "properties":
			m.Properties = propertiesOf(v)
		case "ts":
			if t, i, ok := v.TimestampOK(); ok {
				m.TS = stampOf(t, i)
				p.ts = m.TS
			}
		case "lane":
			n, ok := v.AsInt64OK()
			p.lane, p.has = laneID(n), ok
		case "n":
			p.n, hasN = v.AsInt64OK()
		case "stop":
			p.stop, _ = v.StringValueOK()
		}
	}
	p.has = p.has && hasN
	if p.has {
		m.Mark = p.mark()
	}
	return m, p, nil
}

// timeOf takes what DateTimeOK gives.
func timeOf(ms int64, ok bool) time.Time {
	if !ok {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func payloadOf(v bsoncore.Value) []byte {
	if v.Type == bsoncore.TypeString {
		n, text, ok := bsoncore.ReadLength(v.Data)
		if !ok || n < 1 || int(n) > len(text) {
			return []byte{}
		}
		return append([]byte{}, text[:n-1]...) // behind it is a zero
	}
	_, data, _ := v.BinaryOK()
	return append([]byte{}, data...)
}

func propertiesOf(v bsoncore.Value) *schema.Properties {
	doc, ok := v.DocumentOK()
	if !ok {
		return nil
	}
	return decodeProperties(bson.Raw(doc))
}

func decodeProperties(doc bson.Raw) *schema.Properties {
	p := &schema.Properties{}
	elems, _ := doc.Elements()
	for _, e := range elems {
		v := e.Value()
		switch e.Key() {
		case "payloadFormat":
			n, ok := v.AsInt64OK()
			p.PayloadFormat, p.HasPayloadFormat = uint8(n), ok
		case "contentType":
			var ok bool
			p.ContentType, ok = v.StringValueOK()
			p.EmptyContentType = ok && p.ContentType == ""
		case "responseTopic":
			p.ResponseTopic, _ = v.StringValueOK()
		case "correlationData":
			p.CorrelationData = payloadOf(bsoncore.Value{Type: bsoncore.Type(v.Type), Data: v.Value})
		case "user":
			p.User = userOf(v)
		}
	}
	return p
}

func userOf(v bson.RawValue) []schema.UserProperty {
	list, ok := v.ArrayOK()
	if !ok {
		return nil
	}
	pairs, _ := list.Values()
	out := make([]schema.UserProperty, 0, len(pairs))
	for _, v := range pairs {
		pair, ok := v.ArrayOK()
		if !ok {
			continue
		}
		kv, _ := pair.Values()
		if len(kv) != 2 {
			continue
		}
		k, _ := kv[0].StringValueOK()
		val, _ := kv[1].StringValueOK()
		out = append(out, schema.UserProperty{Key: k, Value: val})
	}
	return out
}

// placeOf reads the place only.
func placeOf(raw bson.Raw) place {
	var p place
	if n, ok := raw.Lookup("lane").AsInt64OK(); ok {
		p.lane, p.has = laneID(n), true
	}
	n, ok := raw.Lookup("n").AsInt64OK()
	p.n, p.has = n, p.has && ok
	p.stop, _ = raw.Lookup("stop").StringValueOK()
	if t, i, ok := raw.Lookup("ts").TimestampOK(); ok {
		p.ts = stampOf(t, i)
	}
	return p
}

// stopper makes the document that takes a place in a lane.
func (s *Store) stopper(id bson.ObjectID, lane laneID, n uint64, kind string) bson.Raw {
	return s.appendStopper(make([]byte, 0, 192), id, lane, n, kind)
}

func (s *Store) appendStopper(b []byte, id bson.ObjectID, lane laneID, n uint64, kind string) []byte {
	at, b := bsoncore.AppendDocumentStart(b)
	b = bsoncore.AppendObjectIDElement(b, "_id", id)
	b = bsoncore.AppendStringElement(b, "topic", stopTopic)
	b = bsoncore.AppendStringElement(b, "data", "")
	b = bsoncore.AppendStringElement(b, "clientId", "")
	b = bsoncore.AppendInt32Element(b, "qos", 0)
	b = bsoncore.AppendBooleanElement(b, "retain", false)
	b = bsoncore.AppendDateTimeElement(b, "created", s.Now().UnixMilli())
	b = bsoncore.AppendStringElement(b, "host", s.o.Node)
	b = bsoncore.AppendInt64Element(b, "lane", int64(lane))
	b = bsoncore.AppendInt64Element(b, "n", int64(n))
	b = bsoncore.AppendTimestampElement(b, "ts", 0, 0)
	b = bsoncore.AppendStringElement(b, "stop", kind)
	b, _ = bsoncore.AppendDocumentEnd(b, at)
	return b
}
