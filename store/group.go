package store

import (
	"context"

	"rewindmq/schema"
)

// Groups keeps how far the groups of shared subscriptions have got. A group is
// named by the whole filter of the subscriptions that make sessions its members
// (schema.CutShare).
//
// # Its life
//
// It begins with the PutSubscriptions of its first member, at the Since of that
// subscription, and goes with its last member's: by DeleteSubscriptions or by the
// end of the session. Each is one step with that write (G3).
//
// # Its messages
//
// A record with Group is the claim of its session on the message: it is stored only
// if the group has the message to give, else the answer is ErrClaimed. A group has
// to give what lies after its After and no record with this Group names, and what
// stands in Again. So it does not matter what two nodes think of whose turn it is
// (G1).
//
// What a lost member has left goes back: when a session is released, finished after
// its node has died, or ends, each entry of its flight with a Group and QoS 1 goes
// into Again, and out of the flight, in one step (G2, G4); it leaves Again with the
// next record that claims it. An entry at QoS 2 stays in the flight, and goes to
// nobody if the session ends [MQTT-4.8.2-4, MQTT-4.8.2-5]. So does an entry at QoS 1
// of a group that has ended, also where another one of that name has begun since:
// nothing goes back that lies before its beginning.
//
// Invariant: everything that is not after After was claimed by a record, stands in
// Again, or was passed on purpose.
//
// A store that keeps none answers errors.ErrUnsupported.
type Groups interface {
	// OpenGroup tells where a group stands; ErrNoGroup: it has no member. It may
	// be called at any time, and sees all writes that were answered before.
	OpenGroup(ctx context.Context, name string) (Group, error)
	// SaveGroup moves After forward, never back: what is not after it is claimed
	// or passed. passed are messages of Again that nobody is to have any more:
	// sent at QoS 0, expired, gone, too large for each member. A group that has
	// ended is left alone: no error.
	SaveGroup(ctx context.Context, name string, after schema.Cursor, passed []schema.ID) error
}

// Group is where a group stands. Its slices are the caller's.
type Group struct {
	After schema.Cursor
	// Again holds what lost members left, in order of n in each lane.
	Again []Ref
	// Claimed are the messages after After that a record has claimed: each of
	// them has, or had, a member, or stands in Again as well.
	Claimed []Ref
	// Nodes are those on which members of the group are connected, and Self is the
	// one that asked; none: the store has one node. The record decides who gets a
	// message; at QoS 0 there is none, and this tells whose turn it is (G1). It may
	// be some seconds behind.
	Nodes []schema.ID
	Self  schema.ID
}
