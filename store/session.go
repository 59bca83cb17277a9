package store

import (
	"context"
	"time"

	"rewindmq/schema"
)

// Sessions keeps who owns which session, and what a session needs to go on.
type Sessions interface {
	// Claim makes the caller the owner of sessions, one answer for each claim,
	// in the same order; one slow claim does not hold up the others of the
	// batch for longer than about a second. It raises each session's epoch,
	// waits for the former owner to let go as long as that is worth waiting for,
	// and reads the session as the former owner left it: a new owner's writes
	// follow, an older one's no longer count (promise 6). Expiry is judged here,
	// by the store's clock: the caller has none.
	Claim(ctx context.Context, claims []Claim) []Claimed
	// Write carries out writes in the given order, one answer for each: nil,
	// ErrSessionLost, or an error after which the outcome is not known. Writes
	// of one session are given by one goroutine at a time; an answered write is
	// durable; a write that was answered with an error never lands later. After
	// one write of a session has failed, the caller gives no more of its Owner.
	Write(ctx context.Context, writes []Write) []error
	// Watch opens the stream of sessions claimed elsewhere. It starts before
	// any claim that begins after the return.
	Watch(ctx context.Context) (Watch, error)
}

// Claim asks for a session.
type Claim struct {
	ClientID   string
	CleanStart bool
	// Expiry in seconds from the end of the connection; 0: the session ends
	// with the connection; schema.NoExpiry: it does not end.
	Expiry   uint32
	Protocol uint8 // 3, 4, 5
	// Will is added to the session's wills; nil: none. Its Key, Epoch, At and
	// Due are set by the store.
	Will *schema.Will
	// At is where a new session begins: a cursor of the caller's hub.
	At schema.Cursor
}

// Claimed answers a Claim. Its slices are the caller's.
type Claimed struct {
	// Err: ErrSuperseded, or why the store could not. All else is zero then.
	Err error
	schema.Owner
	// Present: the session existed, and goes on (session present in CONNACK).
	Present bool
	// Released: the former owner had let go in order: nothing was recovered.
	Released bool
	// Subscriptions of the session, by filter.
	Subscriptions []schema.Subscription
	// Cursor is recovered: it speaks for all records that exist.
	Cursor schema.SessionCursor
	// Wills of former connections (of this session or of the one that it
	// replaced) that are decided and due: the claimer appends each with
	// WillMessage, then writes TakeOutWill.
	Wills []schema.Will
}

// Watch is an open stream of sessions claimed elsewhere. For one goroutine.
type Watch interface {
	// Next waits for the next sessions that this node no longer owns. The
	// embedded log has one node: it never yields.
	Next(ctx context.Context) ([]Lost, error)
}

// Lost tells that a session, in a claim older than Epoch, is no longer ours.
type Lost struct {
	ClientID string // "": every session of this node (its lease has lapsed)
	Epoch    uint64
}

// Write is one write of a session. The set is closed.
type Write interface{ session() schema.Owner }

// SaveCursor stores After, Seq and Flight (Inbound is left as it is). It never
// goes back: a cursor whose Seq is lower is stale, and lost.
type SaveCursor struct {
	schema.Owner
	Cursor schema.SessionCursor
}

// PutInbound notes a QoS 2 message from the client, before it is appended (Q1).
type PutInbound struct {
	schema.Owner
	Inbound schema.Inbound
}

// DeleteInbound forgets it, before PUBCOMP leaves.
type DeleteInbound struct {
	schema.Owner
	PacketID uint16
}

// MarkReceived notes that PUBREC came for a delivery, before PUBREL leaves. The
// state never goes back.
type MarkReceived struct {
	schema.Owner
	Flight schema.Flight
}

// PutSubscriptions stores subscriptions, each in place of the one with the same
// filter, whose ID and Created it keeps. All of them or none.
type PutSubscriptions struct {
	schema.Owner
	Subscriptions []schema.Subscription
}

// DeleteSubscriptions removes them; one that is not there is no error.
type DeleteSubscriptions struct {
	schema.Owner
	Filters []string
}

// Release lets go of a session: its connection has ended, all of its records and
// appends are settled, and its cursor is saved. A session whose expiry is 0 ends
// with it. Afterwards the Owner no longer counts. What its flight has of groups at
// QoS 1 goes back to them (see Groups).
type Release struct {
	schema.Owner
	// Normal: DISCONNECT with reason 0x00 was read; this claim's will is
	// removed [MQTT-3.14.4-3]. Else the will's delay begins.
	Normal bool
	// Expiry replaces the session's, if SetExpiry (DISCONNECT may change it).
	Expiry    uint32
	SetExpiry bool
}

// TakeOutWill removes a will that has been appended. It is not guarded by the
// epoch: Key is enough. Owner tells the ClientID only.
type TakeOutWill struct {
	schema.Owner
	Key schema.ID
}

func (w SaveCursor) session() schema.Owner          { return w.Owner }
func (w PutInbound) session() schema.Owner          { return w.Owner }
func (w DeleteInbound) session() schema.Owner       { return w.Owner }
func (w MarkReceived) session() schema.Owner        { return w.Owner }
func (w PutSubscriptions) session() schema.Owner    { return w.Owner }
func (w DeleteSubscriptions) session() schema.Owner { return w.Owner }
func (w Release) session() schema.Owner             { return w.Owner }
func (w TakeOutWill) session() schema.Owner         { return w.Owner }

// OwnerOf tells whose write w is.
func OwnerOf(w Write) schema.Owner { return w.session() }

// Deliveries keeps the delivery records.
type Deliveries interface {
	// Record stores a batch in order, one answer for each: nil (durable now),
	// ErrSessionLost, or an error after which the outcome is not known. A record
	// that is already there (by ID) counts as stored. After one record of a
	// session has failed, the later ones of that session in the batch fail too;
	// those of other sessions go on. But for ErrClaimed, which ends nothing: a
	// record with Group is stored only where the group has the message to give
	// (see Groups).
	Record(ctx context.Context, batch []schema.Delivery) []error
}

// Keeper is the housekeeping that the broker drives. Every call is idempotent.
type Keeper interface {
	// DueWills decides which wills of sessions without a connection are due (the
	// delay is over, or the session has ended), and returns at most limit of
	// them, also those found due before and not yet taken out.
	DueWills(ctx context.Context, limit int) ([]DueWill, error)
	// EndExpired ends sessions whose time is over and whose wills are out, at
	// most limit, and tells which.
	EndExpired(ctx context.Context, limit int) ([]schema.Owner, error)
	// Counts tells how many sessions and subscriptions are stored, connected or
	// not.
	Counts(ctx context.Context) (Counts, error)
}

// DueWill is a will to be appended, and whose it is.
type DueWill struct {
	ClientID string
	Will     schema.Will
}

// Counts are totals over the whole store.
type Counts struct {
	Sessions      int
	Subscriptions int // also the shared ones
	Shared        int
}

// Retained keeps the projection of the log that answers a SUBSCRIBE.
type Retained interface {
	// LoadRetained calls fn for every retained message, in topic order, and
	// returns the checkpoint: the cursor up to which the projection is complete.
	// Zero checkpoint: nothing was ever stored. Messages with an empty payload
	// are tombstones: the topic was cleared.
	LoadRetained(ctx context.Context, fn func(*schema.Message) error) (schema.Cursor, error)
	// StoreRetained stores messages (an empty payload leaves a tombstone) and
	// moves the checkpoint, in one step. For each topic the message that
	// Supersedes wins, whatever the order of calls.
	StoreRetained(ctx context.Context, msgs []*schema.Message, checkpoint schema.Cursor) error
}

// WillMessage makes the message of a due will, the same for everybody who makes
// it: the time is that at which it fell due, the ID is made of that and its Key.
func WillMessage(clientID, host string, w *schema.Will) *schema.Message {
	id := w.Key
	sec := uint32(w.At.Unix())
	id[0], id[1], id[2], id[3] = byte(sec>>24), byte(sec>>16), byte(sec>>8), byte(sec)
	m := &schema.Message{
		ID: id, Topic: w.Topic, Payload: w.Payload, ClientID: clientID, QoS: w.QoS, Retain: w.Retain,
		Created: w.At, Host: host, Properties: w.Properties,
	}
	if w.HasExpiry {
		m.Expiry = w.At.Add(time.Duration(w.Expiry) * time.Second)
	}
	return m
}
