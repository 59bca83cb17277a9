// Package history is what the log tells people and their tools: which messages were
// published, by the log itself; who was sent what, and what is known of it, by the
// delivery records. Nothing of the protocol depends on it.
//
// A Delivery is a record with its State, which is told by the saved cursor of its
// session. A Query says which deliveries, a MessageQuery which messages; a Reader, which
// every store is, gives them page by page.
//
// The package has no state and starts no goroutine.
package history

import (
	"context"
	"errors"

	"rewindmq/schema"
)

// MaxPage bounds one answer.
const MaxPage = 1000

// MaxPageBytes ends a page of messages early: with the one whose schema.Message.Size
// reaches it.
const MaxPageBytes = 8 << 20

// ErrPage answers for the place of a page that the store has not given.
var ErrPage = errors.New("history: no such page")

// Reader gives what retention has left: messages, and deliveries by their records; with
// `records: window` these are the few that a crash needs. It sees every write that was
// answered before the call.
//
// Both methods give a page from behind `after`: where the page before ended ("": from the
// start). What that is made of is the store's affair; one that the store has not given is
// ErrPage. A page has at most limit, and at most MaxPage (limit 0: as many). next "" means
// that there are no more; a page may be empty and have a next, as a store looks at so much
// in a call. What is there for the whole of a walk over all pages is met once.
type Reader interface {
	// ListDeliveries gives the deliveries that q asks for. Those of one session are in
	// order of seq.
	ListDeliveries(ctx context.Context, q Query, after string, limit int) (list []Delivery, next string, err error)
	// ListMessages gives the messages that q asks for, in the store's order, which is
	// about that of their times. A page ends early at MaxPageBytes. The messages are
	// shared: not to be changed.
	ListMessages(ctx context.Context, q MessageQuery, after string, limit int) (list []*schema.Message, next string, err error)
}

// Query says which deliveries: to a client, of a message, or both. One of the two is set.
type Query struct {
	ClientID  string // "": to any
	MessageID schema.ID
}

// Match tells whether d is one of them. Fences and what fills a hole are none.
func (q *Query) Match(d *schema.Delivery) bool {
	return !d.MessageID.IsZero() && (q.ClientID == "" || d.ClientID == q.ClientID) &&
		(q.MessageID.IsZero() || d.MessageID == q.MessageID)
}

// Delivery is a record, and what is known of it.
type Delivery struct {
	schema.Delivery
	State State
}

// State is what is known of a delivery.
type State string

// The states. A session tells of acknowledgements when it saves its place: seconds
// later, or when its connection ends.
const (
	// Sent: it was sent, or is about to be. No acknowledgement is known, or none any
	// more: the session has ended.
	Sent State = "sent"
	// Received: of QoS 2, PUBREC has come.
	Received State = "received"
	// Acknowledged: by PUBACK or PUBCOMP; or its session had it discarded, as expired.
	Acknowledged State = "acknowledged"
	// Dropped: it was not sent and never will be: too large for the client.
	Dropped State = "dropped"
)

// StateOf tells what is known of d by the saved cursor of its session; nil: there is
// none, or the session is another.
func StateOf(d *schema.Delivery, c *schema.SessionCursor) State {
	open := Sent
	if d.QoS == 2 && d.Received {
		open = Received
	}
	switch {
	case d.Dropped:
		return Dropped
	case c == nil || d.Seq > c.Seq:
		return open
	}
	for i := range c.Flight {
		if f := &c.Flight[i]; f.Seq == d.Seq {
			if f.Received {
				return Received
			}
			return open
		}
	}
	return Acknowledged
}
