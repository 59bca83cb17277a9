package storetest

import (
	"encoding/binary"
	"fmt"
	"sort"
	"time"

	"rewindmq/schema"
)

// Lease is how long a node counts as living after its last Beat.
const Lease = 10 * time.Second

// Node is one run of a broker process, from 1. Node 0 is nobody.
type Node uint32

// Model is a store as a plain state machine: no goroutine, no clock, no lock, no
// randomness of its own. Each exported method is one atomic operation of the
// store. A caller that plays the network delays the call, makes it twice, or
// drops what it returns.
//
// The log is exact: lanes with marks, one commit order, idempotent by ID.
// Everything is durable at once: a SIGKILL of a broker loses nothing here, and is
// played by forgetting the broker.
//
// Not safe for concurrent use. Messages and cursors that it hands out are read
// only; slices are the caller's.
type Model struct {
	now   time.Time
	off   rules
	ids   uint32
	lease []time.Time // by node; 0 is nobody

	// Invariant: order holds every message once, in commit order; lanes[k-1].at
	// holds the places of lane k's messages in it, n ascending from 1.
	order []entry
	byID  map[schema.ID]*schema.Message
	lanes []lane
	ts    uint64

	sessions map[string]*session
	clients  []string // keys of sessions, sorted: walks are deterministic
	floor    uint64   // the largest epoch of a deleted session: epochs never start again
	cursors  map[string]*cursor
	subs     map[string]map[string]*schema.Subscription // by client, filter
	records  map[recordKey]*recordList

	groups      map[string]*group
	groupFaults groupFault // none, but in the suite's own tests

	retained   map[string]*schema.Message
	checkpoint schema.Cursor
}

// NewModel gives an empty store at the time start.
func NewModel(start time.Time) *Model {
	return &Model{
		now: start, lease: make([]time.Time, 1),
		byID: map[schema.ID]*schema.Message{}, sessions: map[string]*session{},
		cursors: map[string]*cursor{}, subs: map[string]map[string]*schema.Subscription{},
		records: map[recordKey]*recordList{}, groups: map[string]*group{}, retained: map[string]*schema.Message{},
	}
}

// Now gives the store's clock.
func (m *Model) Now() time.Time { return m.now }

// SetNow sets the store's clock. It may jump, also back.
func (m *Model) SetNow(now time.Time) { m.now = now }

// NewID makes an ID that the model made for nobody else: the same ones in the
// same order in every run.
func (m *Model) NewID() schema.ID {
	m.ids++
	var id schema.ID
	binary.BigEndian.PutUint32(id[:4], uint32(m.now.Unix()))
	binary.BigEndian.PutUint32(id[8:], m.ids)
	return id
}

// StartNode gives a new node, with a lease from now on.
func (m *Model) StartNode() Node {
	m.lease = append(m.lease, m.now)
	return Node(len(m.lease) - 1)
}

// Beat renews the lease of n.
func (m *Model) Beat(n Node) { m.lease[n] = m.now }

// Kill ends the lease of n at once.
func (m *Model) Kill(n Node) { m.lease[n] = time.Time{} }

// Lapsed tells whether the lease of n is over.
func (m *Model) Lapsed(n Node) bool { return m.now.Sub(m.lease[n]) > Lease }

// rules are the rules that are switched off, as bits.
type rules uint32

// The rules of the store's side that a simulation can switch off, to see that
// its checkers notice. The texts are those of DESIGN.md, sections 5 to 7.
const (
	ruleWait rules = 1 << iota
	ruleGiveUp
	rulePast
	ruleClaimCAS
	ruleClaimToken
	ruleMark
	ruleFence
	ruleStopper
	ruleIDSettles
	ruleRetainedMarks
	ruleRunID
	ruleFlightStates
	ruleGuard
	ruleSubEpoch
	ruleSID
	ruleWillID
	ruleWillLate
	ruleWillGuard
	ruleWillKept
	ruleIdempotent
)

// Rules names the rules that Break knows, and says what each is.
func Rules() map[string]string {
	out := map[string]string{}
	for _, r := range ruleTable() {
		out[r.name] = r.text
	}
	return out
}

type ruleEntry struct {
	bit        rules
	name, text string
}

func ruleTable() []ruleEntry {
	return []ruleEntry{
		{ruleWait, "wait", "the claimer waits for `released` while the old owner's lease lives"},
		{ruleGiveUp, "giveup", "a claimer that gave up sets `released` only if the one before had"},
		{rulePast, "past", "the session keeps every owner since the last release"},
		{ruleClaimCAS, "claim-cas", "the epoch is raised only from the one just read"},
		{ruleClaimToken, "claim-token", "a claim sent again after a doubt is known by its token"},
		{ruleMark, "mark", "{sid, epoch} is set in the cursor before it is read"},
		{ruleFence, "fence", "not released: a fence at the next seq, read again on collision"},
		{ruleStopper, "stopper", "not released: a stopper in each lane of the old owners"},
		{ruleIDSettles, "id-settles", "a record settles whatever held its packet id before"},
		{ruleRetainedMarks, "retained-marks", "recovery: records with `retained` do not advance the vector"},
		{ruleRunID, "run-id", "`retained` names the run: a claimer moves its place by the records"},
		{ruleFlightStates, "flight-states", "recovery reads the records of the flight's QoS 2 entries"},
		{ruleGuard, "guard", "every write after the claim is guarded by {sid, epoch}"},
		{ruleSubEpoch, "sub-epoch", "every write of a subscription filters epoch <= the writer's"},
		{ruleSID, "sid", "a document with another sid counts as absent"},
		{ruleWillID, "will-id", "a will's ID is made of what identifies it: twice is once"},
		{ruleWillLate, "will-late", "a claim decides wills after the old owner was released"},
		{ruleWillGuard, "will-guard", "a will is decided under the epoch"},
		{ruleWillKept, "will-kept", "a session with a will is not deleted"},
		{ruleIdempotent, "idempotent", "appending the same ID again is one message"},
	}
}

// Break switches rules off, by name. It panics on a name that Rules lacks.
func (m *Model) Break(names ...string) {
next:
	for _, name := range names {
		for _, r := range ruleTable() {
			if r.name == name {
				m.off |= r.bit
				continue next
			}
		}
		panic(fmt.Sprintf("storetest: no rule %q", name))
	}
}

func (m *Model) on(r rules) bool { return m.off&r == 0 }

// client notes a key of sessions, in order.
func (m *Model) client(id string) {
	i := sort.SearchStrings(m.clients, id)
	m.clients = append(m.clients, "")
	copy(m.clients[i+1:], m.clients[i:])
	m.clients[i] = id
}

func (m *Model) forget(id string) {
	i := sort.SearchStrings(m.clients, id)
	m.clients = append(m.clients[:i], m.clients[i+1:]...)
	delete(m.sessions, id)
	m.endGroups()
}
