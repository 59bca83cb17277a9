package session

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Retained is the projection of the log that retained runs walk through.
type Retained interface {
	// Next gives the first retained message of a topic that comes after `after`
	// and matches filter, looking at a bounded number of topics. at is the last
	// topic looked at; m is nil when none matched up to there; end: no topic
	// comes after at.
	Next(filter, after string) (m *schema.Message, at string, end bool)
}

// Options of a session on one connection.
type Options struct {
	Owner schema.Owner
	// Clean: the session ends with the connection. Its deliveries are recorded
	// after they are sent, and no cursor is saved.
	Clean bool
	// Unrecorded: the deliveries of a clean session leave no record. A delivery of
	// a shared subscription always does: its record is the claim.
	Unrecorded bool
	// CanRefuse: the protocol can answer a message with a failure (MQTT 5).
	CanRefuse bool
	// Window bounds the flight, and the packet ids but those of a clean session,
	// 1..65535. The caller has already taken the smaller of the setting and the
	// client's Receive Maximum.
	Window int
	// Quota is the client's Receive Maximum, for what is resent, 1..65535.
	Quota int
	// ReceiveMaximum bounds what the client may have unacknowledged; only
	// enforced if CanRefuse.
	ReceiveMaximum int
	// MaximumPacketSize that the client takes, in bytes; 0: no limit.
	MaximumPacketSize int
	// Size gives the encoded size of a delivery. REQUIRED with a limit.
	Size func(m *schema.Message, qos uint8, identifiers []uint32) int
	// Queue bounds the messages waiting in memory, live and while attaching
	// (default 256 each).
	Queue int
	// Burst bounds the bytes of messages that are given to the connection at once
	// or wait for their records (one message is always let through); 0: no bound.
	Burst int
	// Host is the name of the node, for records.
	Host string
	// Now is the node's clock. REQUIRED.
	Now func() time.Time
	// NewID makes IDs of messages, records, runs. REQUIRED.
	NewID func(time.Time) schema.ID
	// H gives the hub's cursor. REQUIRED.
	H func() schema.Cursor
	// Retained is walked through by retained runs. REQUIRED.
	Retained Retained
	// Begin is where QoS 0 begins, beside H: a former connection that has not
	// released the session may have got more of it than H covers, from a hub that
	// was ahead, and left no trace (P4).
	Begin schema.Cursor
}

// Session is the state of one session while a connection owns it. Not safe for
// concurrent use.
type Session struct {
	o   Options
	off rule

	// The place in the log. Invariant: taken covers after.
	taken, after schema.Cursor
	begin        schema.Cursor // H when the connection began: QoS 0 is not replayed from before
	came         schema.Cursor // taken when it began, if there were runs: see stepRun
	line         []step        // what after still has to follow, in order
	seq, rseq    uint64        // last delivery number given; last one committed

	win       window
	recording fifo[*entry] // records under way, in order
	again     []*entry     // the flight of former connections, to be sent again
	looking   int          // entries of again whose messages are being looked up
	unacked   int          // entries of the flight that were sent on this connection

	mode    mode
	queue   []*schema.Message
	buffer  []*schema.Message // while attached and reading; nil: not attached, or it overflowed
	blocked bool              // the connection takes no more for now
	spent   int               // bytes of messages in out
	unsent  int               // bytes of messages whose records are under way
	paused  bool              // see Paused

	subs     map[string]*subscription // without the shared ones
	shared   map[string]*subscription // see share.go
	sharing  bool                     // it has, or had, shared ones
	wild     wildcards                // those with wildcards
	runs     *retainedRuns            // nil: no retained run is left to do
	filters  []string                 // of subs, in order; nil: not made yet
	requests []request                // SUBSCRIBE and UNSUBSCRIBE, one at a time
	asking   bool                     // requests[0] waits for its turn (see ask), or DoHead is under way for it
	asked    bool                     // DoHead is under way
	inbound  map[uint16]*inbound
	ingest   []incoming     // read, and waiting for an inbound entry
	appends  fifo[incoming] // in the store, in order
	read     uint64         // the client's messages so far
	answered uint64         // those that the store has answered: the first ones
	writes   fifo[written]  // session writes under way, in order
	used     int            // of the client's quota (ReceiveMaximum)
	looks    uint8          // calls of Retained.Next since the last Walk
	walking  bool           // DoWalk is under way

	dirty     bool // deliveries or acks since the last save
	merged    bool // a merge since the last save
	saving    bool
	dropping  dropping
	unsaved   int // deliveries since the last save
	lastSaved time.Time

	closing bool
	reason  Reason
	lost    bool // fenced, or something of it is in doubt: nothing more leaves, no release
	stage   stage
	release store.Release

	out []Action
}

type mode uint8

const (
	replaying mode = iota
	attached       // replaying, and the hub fills the buffer
	live
)

// New takes over a claimed session for one connection.
func New(o Options, c *store.Claimed) (*Session, error) {
	if o.Queue == 0 {
		o.Queue = defaultQueue
	}
	if o.Window < 1 || o.Window > maximumPacketIDs || o.Quota < 1 || o.Quota > maximumPacketIDs || o.ReceiveMaximum < 1 {
		return nil, fmt.Errorf("session: %q: window %d, quota %d, receive maximum %d: want 1..%d", o.Owner.ClientID, o.Window, o.Quota, o.ReceiveMaximum, maximumPacketIDs)
	}
	s := &Session{
		o: o, taken: c.Cursor.After.Clone(), after: c.Cursor.After.Clone(), begin: begin(&o),
		seq: c.Cursor.Seq, rseq: c.Cursor.Seq, dirty: !c.Released && c.Present, lastSaved: o.Now(),
	}
	s.win.init(o.Window, o.Clean)
	for _, f := range c.Cursor.Flight {
		e := &entry{Flight: f, committed: true}
		s.win.restore(e)
		s.again = append(s.again, e)
	}
	for _, in := range c.Cursor.Inbound {
		s.putInbound(in.PacketID, &inbound{id: in.MessageID, stored: true})
	}
	for i := range c.Subscriptions {
		s.setSubscription(&subscription{Subscription: c.Subscriptions[i], stored: true, safe: nextOf(c.Subscriptions[i].Run)})
	}
	return s, nil
}

func nextOf(r *schema.Run) string {
	if r == nil {
		return ""
	}
	return r.Next
}

// Lend gives the session a buffer for the actions of the next inputs: a buffer
// of its own for each of many idle sessions would cost too much memory.
func (s *Session) Lend(buf []Action) { s.out = append(buf[:0], s.out...) }

// Actions gives what is to be carried out, and forgets it. The slice is the
// caller's.
func (s *Session) Actions() []Action {
	a := s.out
	s.out, s.spent = nil, 0
	return a
}

func begin(o *Options) schema.Cursor {
	at := o.H().Clone()
	at.Merge(o.Begin)
	return at
}

// Start begins: the filters are announced, the flight is sent again, and the log
// is read from where the session stands.
func (s *Session) Start() {
	if len(s.subs) > 0 {
		s.do(Action{Do: DoFilters, Filters: s.Filters()})
	}
	if s.runs != nil {
		s.came = s.taken.Clone()
		s.do(Action{Do: DoWaitFor, Place: s.runsPlace()})
	}
	s.join()
	s.do(Action{Do: DoReplay})
	s.Pump()
}

// Filters gives the topic filters in order, so that the same inputs give the
// same actions. The slice is shared, and never changed.
func (s *Session) Filters() []string {
	if s.filters == nil && len(s.subs) > 0 {
		s.filters = slices.Sorted(maps.Keys(s.subs))
	}
	return s.filters
}

// Hungry tells whether Feed would take a message now.
func (s *Session) Hungry() bool {
	return !s.closing && s.mode != live && s.room()
}

func (s *Session) do(a Action) {
	if a.Do == SendPublish {
		s.spent += a.Message.Size()
	}
	s.out = append(s.out, a)
}

// Owner gives the session's right to write.
func (s *Session) Owner() schema.Owner { return s.o.Owner }

// Closing tells whether the session has ended its connection or is ending it.
func (s *Session) Closing() bool { return s.closing }

// InFlight gives the number of deliveries that are not settled.
func (s *Session) InFlight() int { return s.win.len() }

// Waiting gives the number of the client's messages that are not yet settled by
// the store.
func (s *Session) Waiting() int { return len(s.ingest) + s.appends.len() }

// Queued gives the number of messages that wait in memory.
func (s *Session) Queued() int { return len(s.queue) + len(s.buffer) }

// Live tells whether the hub feeds the session.
func (s *Session) Live() bool { return s.mode == live }

// Subscriptions gives the number of subscriptions.
func (s *Session) Subscriptions() int { return len(s.subs) + len(s.shared) }

// Pump goes on as far as the window and the connection allow.
func (s *Session) Pump() {
	for !s.closing && s.step() {
	}
	s.finishRuns()
}

// step does one thing towards the client; false: there is nothing to do.
func (s *Session) step() bool {
	if len(s.again) > 0 {
		return s.resend()
	}
	if s.mode == live && len(s.queue) > 0 && s.take(s.queue[0], true) {
		s.queue[0] = nil
		if s.queue = s.queue[1:]; len(s.queue) == 0 {
			s.queue = nil
		}
		return true
	}
	return s.stepRun()
}

// Block tells that the connection takes no more bytes for now, or does again.
func (s *Session) Block(blocked bool) {
	s.blocked = blocked
	if !blocked {
		s.Pump()
	}
}
