package store

import (
	"context"
	"sync/atomic"

	"rewindmq/schema"
)

// Outcome is what became of one message of an Append.
type Outcome uint8

const (
	// InDoubt: not known. The message may be, or become, stored. It is never
	// answered to a client. The zero value, so that nothing is stored by mistake.
	InDoubt Outcome = iota
	// Stored: durable, at a mark.
	Stored
	// Refused: certainly not stored, and never will be by this Append.
	Refused
)

// Appended is the answer for one message.
type Appended struct {
	Outcome Outcome
	Mark    schema.Mark // where it stands, if Stored
	// Err says why not, if not Stored. A sentinel of this package, wrapped.
	Err error
}

// Publisher is one claim's right to append. What is appended through it is
// stored in the order of the calls; when a message fails, nothing behind it
// overtakes it (see Strict). Its fields are not changed after the first Append.
type Publisher struct {
	schema.Owner // ClientID chooses the lane; zero SID: nobody's (a will, a tool)
	// Strict: a refused message fails everything behind it too. It is set for
	// protocols that cannot answer a refusal: their connection has to close,
	// and the client sends all of it again, in order. While the store is below
	// its reserve, a strict publisher's messages wait in their queue instead of
	// being refused.
	Strict bool

	failed atomic.Bool
}

// Fail makes every later Append of the publisher be refused with
// ErrPublisherFailed, and what it has waiting too. Stores call it when a message
// failed that others may not overtake; the broker calls it when the session's
// connection is closed and what waits must not be stored any more.
func (p *Publisher) Fail() { p.failed.Store(true) }

// Failed tells whether Fail was called.
func (p *Publisher) Failed() bool { return p.failed.Load() }

// Appender takes messages into the log.
type Appender interface {
	// Append queues msgs behind what p has queued before, and returns at once.
	// The store sets Mark and TS of each message that it stores, and takes
	// ownership of the messages, not of the slice.
	//
	// done is called exactly once, with one answer for each message, when all of
	// them are settled; answers for one publisher come in the order of its
	// Appends. It is called by a goroutine of the store's and must not block nor
	// call the store's waiting methods (Append is allowed). The slice is valid
	// during the call only. When ctx ends, the messages that are not yet being
	// written are refused; the others are still answered.
	//
	// The number and size of what waits is bounded by the caller.
	Append(ctx context.Context, p *Publisher, msgs []*schema.Message, done func([]Appended))
}
