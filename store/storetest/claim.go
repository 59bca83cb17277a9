package storetest

import (
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// Claim is the walk of one claim (DESIGN.md section 6, "A reconnect", steps 1 to
// 5) as a plain state machine: Next takes the answer to the last step and gives
// the next one. Between any two steps a caller can crash, be overtaken, or lose
// an answer: it then does the same step again, before anything else.
//
//	c := NewClaim(node, claim, m.NewID(), time.Second)
//	var a Answer
//	for step, more := c.Next(a); more; step, more = c.Next(a) {
//		a = step.Do(m)
//	}
//	claimed := c.Claimed()
type Claim struct {
	ask      raise
	patience time.Duration
	hurry    bool
	off      rules

	state    claimState
	mine     raised
	deadline time.Time
	waiting  []past // not released
	cur      schema.SessionCursor
	records  []schema.Delivery
	fence    schema.Delivery
	fences   byte
	subs     []schema.Subscription
	wills    []schema.Will
	moved    []schema.Subscription // whose run the records moved
	out      store.Claimed
}

type claimState uint8

const (
	claimStart   claimState = iota
	claimRead               // the session before step 1 was read
	claimRaised             // step 1 answered
	claimWait               // step 2: the session was read
	claimMarked             // step 3
	claimRecords            // step 4: the records were read
	claimFenced
	claimStopped
	claimWills  // step 5
	claimLoaded // subscriptions and QoS 2 states
	claimMoved
	claimLast // the session was read again
	claimGaveUp
	claimDone
)

// NewClaim begins a claim by a node. token names this claim: random, or made by
// Model.NewID. patience bounds the wait for the former owner, by the store's
// clock; DESIGN.md: 1 s.
func NewClaim(n Node, ask store.Claim, token schema.ID, patience time.Duration) *Claim {
	return &Claim{ask: raise{Claim: ask, node: n, token: token}, patience: patience}
}

// NewFinish begins the claim with which a keeper finishes the session of a node
// whose lease is over: nobody connects, and delays of wills begin. Who carries it
// out saves Claimed.Cursor and releases.
func NewFinish(n Node, clientID string, at schema.Cursor, token schema.ID) *Claim {
	return &Claim{ask: raise{Claim: store.Claim{ClientID: clientID, At: at}, node: n, token: token, keeper: true}}
}

// Step is one operation of a claim.
type Step struct {
	// Name says what it does: read, raise, wait, mark, records, fence, stop,
	// wills, load, runs, release.
	Name string
	do   func(*Model) Answer
}

// Waits tells that there is nothing to do but look again: a Do gives the fresh
// look. The caller does it when the store has changed, or a while later.
func (s Step) Waits() bool { return s.Name == "wait" }

// Do carries the step out on m. Doing it twice is doing it once.
func (s Step) Do(m *Model) Answer { return s.do(m) }

// Answer is what a step answered. The zero Answer begins a claim.
type Answer struct {
	ok       bool
	now      time.Time
	epoch    uint64 // of the session as read; 0: there is none
	token    schema.ID
	released uint64
	lapsed   bool // nobody that is waited for lives
	raised   raised
	cursor   schema.SessionCursor
	records  []schema.Delivery
	existing *schema.Delivery
	wills    []schema.Will
	subs     []schema.Subscription
	received map[uint64]bool
	off      rules
}

// Hurry ends the waiting for the former owner.
func (c *Claim) Hurry() { c.hurry = true }

// Raised tells, once step 1 is answered, the new owner, and which nodes were
// owners and not released: their session is claimed elsewhere now.
func (c *Claim) Raised() (schema.Owner, []Node, bool) {
	if c.mine.epoch == 0 {
		return schema.Owner{}, nil, false
	}
	nodes := make([]Node, len(c.mine.past))
	for i, p := range c.mine.past {
		nodes[i] = p.owner
	}
	return c.owner(), nodes, true
}

// Claimed gives the outcome, after Next has returned false. Its Err is
// store.ErrSuperseded where a newer claim was met; and where NewFinish found
// nothing to finish.
func (c *Claim) Claimed() store.Claimed { return c.out }

func (c *Claim) on(r rules) bool { return c.off&r == 0 }

func (c *Claim) owner() schema.Owner {
	return schema.Owner{ClientID: c.ask.ClientID, SID: c.mine.sid, Epoch: c.mine.epoch}
}

// Next takes the answer of the last step and gives the next step; false: the
// claim is over, see Claimed.
func (c *Claim) Next(a Answer) (Step, bool) {
	c.off = a.off
	switch c.state {
	case claimStart:
		return c.read("read", claimRead)
	case claimRead:
		if a.token == c.ask.token && c.on(ruleClaimToken) {
			return c.onRaised(a.raised) // the answer had been lost
		}
		return c.raise(a.epoch)
	case claimRaised:
		switch {
		case a.ok:
			return c.onRaised(a.raised)
		case c.ask.keeper:
			return c.superseded(false, false)
		}
		return c.read("read", claimRead)
	case claimWait:
		return c.onWait(a)
	case claimMarked:
		if !a.ok {
			return c.superseded(len(c.waiting) == 0, true)
		}
		c.cur = a.cursor
		if len(c.waiting) > 0 {
			return c.readRecords()
		}
		return c.decideWills()
	default:
		return c.afterMark(a)
	}
}

// afterMark goes through steps 4 and 5 and to the end.
func (c *Claim) afterMark(a Answer) (Step, bool) {
	switch c.state {
	case claimRecords:
		c.records = a.records
		if c.on(ruleFence) {
			return c.putFence()
		}
		return c.stop()
	case claimFenced:
		if e := a.existing; e != nil && e.ID != c.fence.ID {
			if e.Epoch > c.mine.epoch {
				return c.superseded(false, true)
			}
			return c.readRecords()
		}
		c.records = append(c.records, c.fence)
		return c.stop()
	case claimStopped:
		return c.decideWills()
	case claimWills:
		c.wills = a.wills
		return c.load()
	case claimLoaded:
		c.recover(a)
		if len(c.moved) > 0 {
			return c.putRuns()
		}
		return c.read("read", claimLast)
	case claimMoved:
		return c.read("read", claimLast)
	case claimLast:
		if a.epoch != c.mine.epoch {
			// A released epoch says that nothing lies above the cursor's seq:
			// after a fence that would not be true.
			return c.superseded(len(c.waiting) == 0, true)
		}
		c.out = store.Claimed{
			Owner: c.owner(), Present: c.mine.present, Released: len(c.waiting) == 0,
			Subscriptions: c.subs, Cursor: c.cur, Wills: c.wills,
		}
	}
	c.state = claimDone
	return Step{}, false
}

// read reads the session document.
func (c *Claim) read(name string, then claimState) (Step, bool) {
	c.state = then
	id, waiting := c.ask.ClientID, c.mine.past
	return Step{name, func(m *Model) Answer {
		a := Answer{now: m.now, off: m.off, lapsed: true}
		if d := m.sessions[id]; d != nil {
			a.ok, a.epoch, a.token, a.released, a.raised = true, d.epoch, d.token, d.released, d.raised
		}
		for _, p := range waiting {
			if p.epoch > a.released && !m.Lapsed(p.owner) {
				a.lapsed = false
			}
		}
		return a
	}}, true
}

func (c *Claim) raise(was uint64) (Step, bool) {
	c.state = claimRaised
	ask := c.ask
	ask.was = was
	var did *raised // what it answered when it landed
	return Step{"raise", func(m *Model) Answer {
		if did != nil && m.on(ruleClaimToken) {
			// Done again after its answer was lost, it meets itself, even where
			// somebody has overtaken it: a retryable write answers as it did the
			// first time. Claiming anew would add its will a second time.
			return Answer{ok: true, raised: *did, off: m.off}
		}
		r, ok := m.raise(&ask)
		if ok {
			did = &r
		}
		return Answer{ok: ok, raised: r, off: m.off}
	}}, true
}

func (c *Claim) onRaised(r raised) (Step, bool) {
	c.mine = r
	return c.read("read", claimWait)
}

// onWait judges step 2: go on when the epochs before are released, or when
// waiting is over.
func (c *Claim) onWait(a Answer) (Step, bool) {
	c.waiting = c.waiting[:0]
	for _, p := range c.mine.past {
		if p.epoch > a.released {
			c.waiting = append(c.waiting, p)
		}
	}
	if a.epoch != c.mine.epoch {
		// A session that is not there any more was ended: nobody waits for it.
		return c.superseded(len(c.waiting) == 0 || a.epoch == 0, true)
	}
	if c.deadline.IsZero() {
		c.deadline = a.now.Add(c.patience)
	}
	if len(c.waiting) == 0 || a.lapsed || c.hurry || !a.now.Before(c.deadline) || !c.on(ruleWait) {
		return c.mark()
	}
	return c.read("wait", claimWait)
}

func (c *Claim) mark() (Step, bool) {
	c.state = claimMarked
	o, at := c.owner(), c.ask.At
	return Step{"mark", func(m *Model) Answer {
		cur, ok := m.markCursor(o, at)
		return Answer{ok: ok, cursor: cur, off: m.off}
	}}, true
}

func (c *Claim) readRecords() (Step, bool) {
	c.state = claimRecords
	o, above := c.owner(), c.cur.Seq
	return Step{"records", func(m *Model) Answer {
		return Answer{records: append([]schema.Delivery(nil), m.Records(o.ClientID, o.SID, above)...), off: m.off}
	}}, true
}

// putFence inserts a record with neither message nor packet id at the next seq:
// if it goes in, the reading was complete, and what the old owner still has on
// its way collides with it.
func (c *Claim) putFence() (Step, bool) {
	c.state = claimFenced
	seq := c.cur.Seq
	if n := len(c.records); n > 0 {
		seq = c.records[n-1].Seq
	}
	c.fences++
	id := c.ask.token // each fence has an ID of its own, made of the claim's
	id[4] += c.fences
	fence := schema.Delivery{ID: id, Owner: c.owner(), Seq: seq + 1}
	c.fence = fence
	return Step{"fence", func(m *Model) Answer {
		return Answer{existing: m.Record(&fence), off: m.off}
	}}, true
}

func (c *Claim) stop() (Step, bool) {
	c.state = claimStopped
	var nodes []Node
	if c.on(ruleStopper) {
		for _, p := range c.waiting {
			nodes = append(nodes, p.owner)
		}
	}
	return Step{"stop", func(m *Model) Answer {
		m.Stop(nodes...)
		return Answer{off: m.off}
	}}, true
}

func (c *Claim) decideWills() (Step, bool) {
	c.state = claimWills
	id, epoch, at, keeper := c.ask.ClientID, c.mine.epoch, c.mine.at, c.ask.keeper
	return Step{"wills", func(m *Model) Answer {
		return Answer{wills: m.decideWills(id, epoch, at, keeper), off: m.off}
	}}, true
}

func (c *Claim) load() (Step, bool) {
	c.state = claimLoaded
	o, flight := c.owner(), c.cur.Flight
	return Step{"load", func(m *Model) Answer {
		a := Answer{subs: m.Subscriptions(o.ClientID, o.SID), off: m.off}
		for _, f := range flight {
			if f.QoS != 2 || f.Received {
				continue
			}
			if r := m.record(o.ClientID, o.SID, f.Seq); r != nil && r.Received {
				if a.received == nil {
					a.received = map[uint64]bool{}
				}
				a.received[f.Seq] = true
			}
		}
		return a
	}}, true
}

// recover brings the cursor up to the records, and the runs of subscriptions up
// to theirs.
func (c *Claim) recover(a Answer) {
	c.subs = a.subs
	received := func(f schema.Flight) bool { return a.received[f.Seq] && c.on(ruleFlightStates) }
	runs := map[schema.ID]string{}
	records := c.records
	if !c.on(ruleRetainedMarks) || !c.on(ruleIDSettles) {
		records = append([]schema.Delivery(nil), records...)
	}
	kept := map[uint64]schema.Delivery{}
	for i := range records {
		r := &records[i]
		kept[r.Seq] = *r
		if !c.on(ruleRetainedMarks) {
			r.Retained = schema.ID{}
		}
		if !c.on(ruleIDSettles) && r.PacketID != 0 {
			r.PacketID = ^uint16(i)
		}
	}
	c.cur.Recover(records, received, runs)
	for i := range c.cur.Flight {
		if r, ok := kept[c.cur.Flight[i].Seq]; ok && c.off != 0 {
			c.cur.Flight[i] = r.Flight()
		}
	}
	for i := range c.subs {
		run := c.subs[i].Run
		if run == nil || !c.on(ruleRunID) {
			continue
		}
		if next := runs[run.ID]; next > run.Next {
			run.Next = next
			c.moved = append(c.moved, c.subs[i])
		}
	}
}

// putRuns stores runs that the records moved, so that no cursor beyond those
// records can be saved before.
func (c *Claim) putRuns() (Step, bool) {
	c.state = claimMoved
	w := store.PutSubscriptions{Owner: c.owner(), Subscriptions: c.moved}
	return Step{"runs", func(m *Model) Answer {
		_ = m.Write(w) // overtaken: the next step sees it
		return Answer{off: m.off}
	}}, true
}

// superseded gives up; it lets go of its own epoch where nothing before it can
// still be on its way.
func (c *Claim) superseded(release, raised bool) (Step, bool) {
	c.out = store.Claimed{Err: store.ErrSuperseded}
	c.state = claimGaveUp
	if !raised || !release && c.on(ruleGiveUp) {
		c.state = claimDone
		return Step{}, false
	}
	w := store.Release{Owner: c.owner()}
	return Step{"release", func(m *Model) Answer {
		_ = m.Write(w)
		return Answer{off: m.off}
	}}, true
}
