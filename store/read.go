package store

import (
	"context"

	"rewindmq/schema"
)

// Event is one step of the tail.
type Event struct {
	// Message is nil when only the cursor moved: a lane was opened, or retired.
	Message *schema.Message
	// H is the cursor that the event leads to: all that is not after H has been
	// yielded, up to and including this event. Read only.
	H schema.Cursor
}

// Tailer yields the log as it grows.
type Tailer interface {
	// Head gives the cursor of all that is committed (promise 5). It may wait.
	Head(ctx context.Context) (schema.Cursor, error)
	// Tail starts behind `after`, a cursor from Head or from a former event.
	Tail(ctx context.Context, after schema.Cursor) (Tail, error)
}

// Tail is an open tail (promise 3). For one goroutine.
type Tail interface {
	// Next waits for the next events and returns them, at least one, at most a
	// few hundred. The slice is valid until the next call; the messages and
	// cursors stay valid. An error ends the tail; it is not one that waiting
	// would cure.
	Next(ctx context.Context) ([]Event, error)
	// Close lets go of what the tail holds. Next is not called any more.
	Close() error
}

// Reader reads back what lies between two cursors.
type Reader interface {
	// Read opens a pull on the messages after `after` and not after upTo that
	// match at least one of the filters (promise 4). No filter: nothing. The
	// filter "#" stands for every topic that does not begin with `$`.
	Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (Messages, error)
	// Lookup gets messages by ID and mark, in the order of refs; nil where
	// retention has removed it.
	Lookup(ctx context.Context, refs []Ref) ([]*schema.Message, error)
}

// Ref names a message and tells where it stands.
type Ref struct {
	ID   schema.ID
	Mark schema.Mark
}

// Messages is an open read. For one goroutine. It may hold the store's
// resources: read what is needed soon, and close.
type Messages interface {
	// Next gives the next message, or io.EOF after the last.
	Next(ctx context.Context) (*schema.Message, error)
	// Trimmed counts what lay after `after` and had been removed by retention
	// when the read began. It counts all messages there, matching or not.
	Trimmed() uint64
	// Close ends the read, at any point.
	Close() error
}
