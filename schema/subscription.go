package schema

import "time"

// Subscription is a session's wish to get what matches a filter.
type Subscription struct {
	ID      ID               `bson:"_id"`
	Owner   `bson:",inline"` // of its writer
	Filter  string           `bson:"topic"`
	QoS     uint8            `bson:"qos"` // maximum QoS of deliveries, 0..2
	Created time.Time        `bson:"created"`

	NoLocal           bool   `bson:"nl,omitempty"`
	RetainAsPublished bool   `bson:"rap,omitempty"`
	RetainHandling    uint8  `bson:"rh,omitempty"` // 0, 1, 2
	Identifier        uint32 `bson:"subscriptionId,omitempty"`

	// Since is where the subscription begins: what is not after it was there
	// before SUBSCRIBE. A replacement keeps it.
	Since Cursor `bson:"since"`
	// Before holds for what lies before the last replacement; nil: never
	// replaced.
	Before *Before `bson:"before,omitempty"`
	// Run is the retained run that is not yet finished; nil: none.
	Run *Run `bson:"run,omitempty"`
}

// Before says with which QoS a subscription was held until it was replaced.
type Before struct {
	QoS  uint8  `bson:"qos"`  // the highest so far
	UpTo Cursor `bson:"upTo"` // what is not after it is judged by QoS
}

// Run is the walk of a subscription through the retained messages that were
// there when it was made, in topic order.
type Run struct {
	ID    ID     `bson:"id"`
	Place Cursor `bson:"place"` // a topic whose message is after it is left to the log
	Next  string `bson:"next"`  // all topics up to and including this one are done
}

// Effective gives the QoS at which the subscription delivers m, and whether it
// delivers it at all. The filter is not looked at: the caller has matched it.
func (s *Subscription) Effective(m *Message) (uint8, bool) {
	if !s.Since.After(m.Mark) {
		return 0, false
	}
	q := s.QoS
	// What lies before the last replacement is judged by the highest QoS so far
	// (R6): the backlog of QoS 1 is not lost by a second SUBSCRIBE with QoS 0.
	if b := s.Before; b != nil && b.QoS > q && !b.UpTo.After(m.Mark) {
		q = b.QoS
	}
	return min(q, m.QoS), true
}

// Will is what a broker publishes for a client whose connection ended without a
// normal DISCONNECT [MQTT-3.1.2-8].
type Will struct {
	// Key is made from the claim's token: two who publish the same will make
	// the same message of it (W1).
	Key        ID     `bson:"key"`
	Epoch      uint64 `bson:"epoch"`
	Topic      string `bson:"topic"`
	Payload    []byte `bson:"data"`
	QoS        uint8  `bson:"qos"`
	Retain     bool   `bson:"retain"`
	Delay      uint32 `bson:"delay"`  // seconds after the end of the connection
	Expiry     uint32 `bson:"expiry"` // message expiry in seconds, counted from when it is published
	HasExpiry  bool   `bson:"hasExpiry"`
	Properties *Properties

	// At is when the delay is over, by the store's clock; zero while connected.
	At time.Time `bson:"at"`
	// Due: decided, and to be appended by whoever finds it.
	Due bool `bson:"due"`
}
