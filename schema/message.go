package schema

import (
	"bytes"
	"cmp"
	"time"
)

// Message is what was published. Once appended it is never changed; its byte
// slices are shared by everybody who holds it.
type Message struct {
	ID   ID   `bson:"_id"`
	Mark Mark `bson:",inline"` // zero until it is appended
	// TS is given by the log when it stores the message: within a lane it rises
	// with n, between lanes it sorts. It is never a position.
	TS       uint64 `bson:"ts"`
	Topic    string `bson:"topic"`
	Payload  []byte `bson:"data"`
	ClientID string `bson:"clientId"` // of the publisher
	QoS      uint8  `bson:"qos"`      // 0..2, as published
	Retain   bool   `bson:"retain"`
	Created  time.Time
	Host     string    `bson:"host"`   // node that took the message in
	Expiry   time.Time `bson:"expiry"` // zero: none
	// Properties are the MQTT 5 properties that are passed on; nil: none.
	Properties *Properties `bson:"properties,omitempty"`
}

// Properties are those of a PUBLISH or a will that a broker passes on unchanged
// [MQTT-3.3.2-17, MQTT-3.3.2-18].
type Properties struct {
	PayloadFormat    uint8 // 0 bytes, 1 UTF-8
	HasPayloadFormat bool
	ContentType      string // empty: absent, but for EmptyContentType
	EmptyContentType bool
	ResponseTopic    string // empty: absent
	CorrelationData  []byte // nil: absent
	User             []UserProperty
}

// UserProperty is one pair; order and repetition are kept.
type UserProperty struct{ Key, Value string }

// Expired tells whether the message's time is over at now.
func (m *Message) Expired(now time.Time) bool { return !m.Expiry.IsZero() && !now.Before(m.Expiry) }

// Supersedes tells whether m wins over o as the retained message of their
// topic: the larger (ts, lane, n, _id) does, in whatever order they are met.
// What was there before the other (o == nil) is won by anything.
func (m *Message) Supersedes(o *Message) bool {
	if o == nil {
		return true
	}
	return cmp.Or(
		cmp.Compare(m.TS, o.TS),
		cmp.Compare(m.Mark.Lane, o.Mark.Lane),
		cmp.Compare(m.Mark.N, o.Mark.N),
		bytes.Compare(m.ID[:], o.ID[:]),
	) > 0
}

// Size estimates the bytes of memory that the message holds.
func (m *Message) Size() int {
	n := 256 + len(m.Topic) + len(m.Payload) + len(m.ClientID)
	if p := m.Properties; p != nil {
		n += 96 + len(p.ContentType) + len(p.ResponseTopic) + len(p.CorrelationData)
		for _, u := range p.User {
			n += 32 + len(u.Key) + len(u.Value)
		}
	}
	return n
}
