package session

import (
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Do names what an Action asks for.
type Do uint8

// The actions. Those that send are to be carried out in the order given.
const (
	// SendPublish sends Message with QoS, PacketID, Dup, Retain, Identifiers.
	// At QoS 0 it may be dropped when the connection does not take it.
	SendPublish Do = iota + 1
	// SendAck sends a PUBACK, PUBREC, PUBREL or PUBCOMP: Ack, PacketID, Code.
	// With Ack 0 nothing is sent: a QoS 0 message was appended, or refused.
	SendAck
	// SendSuback and SendUnsuback answer the request PacketID with Codes.
	SendSuback
	SendUnsuback
	// DoRecord stores Delivery; the answer comes by OnRecorded, in order.
	DoRecord
	// DoWrite carries out Write; the answer comes by OnWritten, in order.
	DoWrite
	// DoAppend appends Message; the answer comes by OnAppended, in order.
	DoAppend
	// DoFilters adds Filters to what the hub matches for this session;
	// DoUnfilter removes them.
	DoFilters
	DoUnfilter
	// DoHead asks for Head; the answer comes by OnHead.
	DoHead
	// DoLookup asks for the messages of Refs; the answer comes by OnLookup.
	DoLookup
	// DoReplay asks for a reader of the log: OnAttach, Feed, OnCaughtUp.
	DoReplay
	// DoWaitFor asks for a Pump once the hub has passed Place.
	DoWaitFor
	// DoWalk asks for a Walk when others have had their turn with what the caller
	// holds: retained runs have looked at enough topics for once.
	DoWalk
	// DoJoin makes the session a member of Group, or tells that its options have
	// changed: OfferShared. DoPart ends that.
	DoJoin
	DoPart
	// Claimed tells the group what became of the record of the message ID, which
	// OfferShared took. Outcome: Stored; Refused (another member has it);
	// InDoubt (it is to be offered again: if the record is there, the next claim
	// is refused).
	Claimed
	// DoClose ends the connection with Reason; what was sent before is flushed.
	DoClose
	// DoEnd: the session has let go of everything; nothing follows.
	DoEnd
	// Count tells of a message that is not delivered: Dropped, QoS.
	Count
	// Settled tells that the client has acknowledged a delivery: QoS, At.
	Settled
)

// Action is one thing to carry out. Which fields count depends on Do.
type Action struct {
	Do          Do
	Message     *schema.Message
	QoS         uint8
	PacketID    uint16
	Dup         bool
	Retain      bool
	Live        bool // offered by the hub, not read: at QoS 0 it may be dropped
	Identifiers []uint32
	Ack         AckKind
	Code        Code
	Codes       []Code
	Delivery    *schema.Delivery // the caller's
	Write       store.Write
	Filters     []string
	Refs        []store.Ref
	Place       schema.Cursor
	Reason      Reason
	Dropped     Drop
	Group       string
	ID          schema.ID
	Outcome     store.Outcome
	// Again: a PUBREC for what was sent before, not for a new message.
	Again bool
	// At is when the message that is acknowledged was taken in, or when the
	// delivery that is settled was recorded.
	At time.Time
}

// AckKind is one of the four acknowledgements.
type AckKind uint8

// The values are those of the MQTT packet types.
const (
	Puback  AckKind = 4
	Pubrec  AckKind = 5
	Pubrel  AckKind = 6
	Pubcomp AckKind = 7
)

// Code is an MQTT 5 reason code; a broker speaking 3.1.1 sends none.
type Code uint8

// The codes that the core itself decides on.
const (
	Success               Code = 0x00
	NoSubscriptionFound   Code = 0x11
	UnspecifiedError      Code = 0x80
	ImplementationError   Code = 0x83
	PacketIDNotFound      Code = 0x92
	QuotaExceeded         Code = 0x97
	failure               Code = 0x80
	maximumPacketIDs           = 65535
	defaultQueue               = 256
	defaultLookup              = 32
	defaultSaveDeliveries      = 1000
)

// Drop says why a message is not delivered. The texts are metric labels.
type Drop string

// The reasons.
const (
	DropQoS0Offline Drop = "qos0_offline"
	DropExpired     Drop = "expired"
	DropTooLarge    Drop = "too_large"
	DropTrimmed     Drop = "trimmed" // retention removed it while it was in flight
)

// Reason says why the core ends a connection. The texts are metric labels.
type Reason string

// The reasons.
const (
	ReasonTakenOver  Reason = "takeover"
	ReasonStore      Reason = "store"       // the store failed a write of the session
	ReasonRefused    Reason = "refused"     // a message was refused and cannot be answered (3.1.1)
	ReasonInDoubt    Reason = "in_doubt"    // a message stayed in doubt
	ReasonReceiveMax Reason = "receive_max" // more unacknowledged messages than agreed
	ReasonDetached   Reason = "detached"    // the connection is gone
	ReasonNormal     Reason = "normal"      // DISCONNECT 0x00
	ReasonWithWill   Reason = "with_will"   // DISCONNECT 0x04
	ReasonShutdown   Reason = "drain"       // the server ends
	ReasonExpired    Reason = "keepalive"   // keep alive ran out
	ReasonProtocol   Reason = "protocol_error"
	ReasonAdmin      Reason = "admin" // the operator ends the session
)
