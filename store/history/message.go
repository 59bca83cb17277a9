package history

import (
	"time"

	"rewindmq/schema"
)

// MessageQuery says which messages. The zero value: all.
type MessageQuery struct {
	// Filter is a topic filter, valid and not shared; "": any topic, those with $ too.
	Filter   string
	ClientID string // of the publisher; "": any
	// From and To bound the time of a message: that of its ID, in whole seconds. From is
	// included, To is not. Zero: no bound.
	From, To time.Time
}

// Match tells whether m is one of them.
func (q *MessageQuery) Match(m *schema.Message) bool {
	at := m.ID.Seconds()
	return (q.ClientID == "" || m.ClientID == q.ClientID) &&
		(q.From.IsZero() || at >= q.From.Unix()) && (q.To.IsZero() || at < q.To.Unix()) &&
		(q.Filter == "" || schema.Match(q.Filter, m.Topic))
}
