package store

import (
	"context"
	"time"

	"rewindmq/schema"
)

// MaxSessionPage bounds one answer of ListSessions.
const MaxSessionPage = 1000

// Directory shows which sessions are stored, to people and their tools. Nothing of
// the protocol depends on it. It sees every write that was answered before the call.
type Directory interface {
	// ListSessions gives the sessions whose client ids come behind `after` ("": all),
	// in order of the bytes of their client ids, at most limit and at most
	// MaxSessionPage; limit 0: as many. An empty answer: there are no more. A session
	// that is there for the whole of a walk over all pages is met once. One whose time
	// is over may be met until it has been ended.
	ListSessions(ctx context.Context, after string, limit int) ([]SessionInfo, error)
	// LookSession gives one, with its subscriptions; ErrNoSession.
	LookSession(ctx context.Context, clientID string) (SessionInfo, error)
}

// SessionInfo is what can be told of a session. Its slices are the caller's.
type SessionInfo struct {
	schema.Owner
	// Connected: a claim has not been released. Here: that claim is this node's.
	Connected, Here bool
	// Expiry is in seconds from the end of the connection; schema.NoExpiry: none.
	Expiry uint32
	// Gone is when the connection ended, if Connected is false.
	Gone time.Time
	// Subscriptions are in order of their filters, and InFlight is the number of
	// deliveries that the saved cursor has unacknowledged. Only LookSession gives them.
	Subscriptions []schema.Subscription
	InFlight      int
}
