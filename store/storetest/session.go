package storetest

import (
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// session is the document of a session.
type session struct {
	sid, epoch uint64
	released   uint64 // the epoch let go last
	owner      Node   // 0: no connection
	token      schema.ID
	past       []past // every owner since the last release
	expiry     uint32
	gone       time.Time // when the connection ended; zero: it has one
	wills      []will
	raised     raised // the answer to the claim with token
}

type past struct {
	epoch uint64
	owner Node
}

type will struct {
	schema.Will
	end time.Time // when its session ended; zero: it goes on
}

// over tells when the session's time is over, if it is.
func (d *session) over(now time.Time) (time.Time, bool) {
	if d.gone.IsZero() || d.expiry == schema.NoExpiry {
		return time.Time{}, false
	}
	end := d.gone.Add(time.Duration(d.expiry) * time.Second)
	return end, !end.After(now)
}

// raise is step 1 of a claim: one operation that raises the epoch, only from the
// one just read.
type raise struct {
	store.Claim
	node   Node
	token  schema.ID
	was    uint64 // the epoch just read; 0: no session
	keeper bool   // the session of a dead node is finished: nobody connects
}

// raised is what it answers.
type raised struct {
	epoch, sid uint64
	present    bool
	past       []past // who was not released
	at         time.Time
}

func (m *Model) raise(o *raise) (raised, bool) {
	d := m.sessions[o.ClientID]
	var was uint64
	if d != nil {
		was = d.epoch
	}
	if m.on(ruleClaimCAS) && was != o.was {
		return raised{}, false
	}
	if o.keeper && (d == nil || d.owner == 0 || !m.Lapsed(d.owner)) {
		return raised{}, false
	}
	a := raised{epoch: max(m.floor+1, uint64(max(m.now.UnixMilli(), 0))), at: m.now}
	n := &session{owner: o.node, token: o.token, expiry: o.Expiry}
	if d == nil {
		m.client(o.ClientID)
		a.sid = a.epoch
	} else {
		a.epoch = max(d.epoch+1, uint64(max(m.now.UnixMilli(), 0)))
		end, ended := d.over(m.now)
		fresh := !o.keeper && (o.CleanStart || d.expiry == 0 || ended)
		if !ended {
			end = m.now
		}
		a.sid, a.present = d.sid, !fresh
		if fresh {
			a.sid = a.epoch
			if !m.faulty(cleanStartsQuiet) {
				m.handBack(o.ClientID, d.sid)
			}
		}
		a.past, n.released = m.unreleased(d), d.released
		n.wills = make([]will, 0, len(d.wills)+1)
		for _, w := range d.wills {
			if fresh && w.end.IsZero() {
				w.end = end
			}
			n.wills = append(n.wills, w)
		}
		if o.keeper {
			n.expiry, n.gone = d.expiry, d.gone
			if n.gone.IsZero() {
				n.gone = m.now
			}
		}
	}
	n.sid, n.epoch, n.past, n.raised = a.sid, a.epoch, a.past, a
	if !m.on(ruleWillLate) && !o.keeper {
		m.decide(n, a.at)
	}
	if o.Will != nil && !o.keeper {
		w := will{Will: *o.Will}
		w.Key, w.Epoch, w.At, w.Due = o.token, a.epoch, time.Time{}, false
		n.wills = append(n.wills, w)
	}
	n.raised = a
	m.sessions[o.ClientID] = n
	m.endGroups()
	return a, true
}

// unreleased gives every owner since the last release, the present one too.
func (m *Model) unreleased(d *session) []past {
	if d.epoch <= d.released {
		return nil
	}
	var out []past
	if m.on(rulePast) {
		for _, p := range d.past {
			if p.epoch > d.released {
				out = append(out, p)
			}
		}
	}
	return append(out, past{d.epoch, d.owner})
}

// release lets go of a session: what is up to the epoch has nothing on its way any
// more. It counts also after a claim raised the epoch, which waits for it; once
// that claim has marked the cursor the answer is that the session is lost.
func (m *Model) release(o *store.Release) error {
	d := m.sessions[o.ClientID]
	if d == nil || d.epoch < o.Epoch || d.epoch == o.Epoch && d.sid != o.SID {
		return store.ErrSessionLost
	}
	mine := m.mine(o.Owner) != nil
	if mine {
		m.handBack(o.ClientID, o.SID)
	}
	again := d.released >= o.Epoch
	d.released = max(d.released, o.Epoch)
	if d.epoch == o.Epoch {
		d.owner = 0
		if d.gone.IsZero() {
			d.gone = m.now
		}
		if o.SetExpiry && !again {
			d.expiry = o.Expiry
		}
	}
	kept := d.wills[:0]
	for _, w := range d.wills {
		if w.Epoch == o.Epoch && o.Normal && !w.Due {
			continue // [MQTT-3.14.4-3]
		}
		if w.Epoch <= o.Epoch && w.At.IsZero() {
			w.At = m.now.Add(time.Duration(w.Delay) * time.Second)
		}
		kept = append(kept, w)
	}
	d.wills = kept
	if d.epoch == o.Epoch && d.expiry == 0 && len(d.wills) == 0 {
		m.EndSession(o.Owner)
	}
	if !mine {
		return store.ErrSessionLost
	}
	return nil
}

// decide judges the wills of former connections: due, or removed by a return
// before the delay while the session lives. at is when the client came back. The
// time of a due will is fixed here, so that whoever makes its message makes the
// same.
func (m *Model) decide(d *session, at time.Time) {
	kept := d.wills[:0]
	for _, w := range d.wills {
		if w.Epoch < d.epoch && !w.Due {
			switch {
			case !w.end.IsZero():
				w.due(w.end)
			case w.Delay == 0 || !w.At.IsZero() && !w.At.After(at):
				w.due(at)
			default:
				continue
			}
		}
		kept = append(kept, w)
	}
	d.wills = kept
}

// due decides a will; it fell due at its own time, or at the time given if that
// was earlier.
func (w *will) due(at time.Time) {
	w.Due = true
	if w.At.IsZero() || at.Before(w.At) {
		w.At = at
	}
}

// decideWills is step 5 of a claim. The keeper (nobody connects) has only just
// found the connection gone: delays begin.
func (m *Model) decideWills(clientID string, epoch uint64, at time.Time, keeper bool) []schema.Will {
	d := m.sessions[clientID]
	if d == nil || d.epoch != epoch {
		return nil
	}
	if keeper {
		for i := range d.wills {
			if w := &d.wills[i]; w.At.IsZero() {
				w.At = m.now.Add(time.Duration(w.Delay) * time.Second)
			}
		}
		return nil
	}
	m.decide(d, at)
	var out []schema.Will
	for _, w := range d.wills {
		if w.Due {
			out = append(out, w.Will)
		}
	}
	return out
}

// DecideWill decides, for a session without a connection and under its epoch,
// which wills are due: the delay is over, or the session has ended, whichever is
// first. It returns those that are due now.
func (m *Model) DecideWill(clientID string, epoch uint64) []schema.Will {
	d := m.sessions[clientID]
	if d == nil || m.on(ruleWillGuard) && (d.epoch != epoch || d.owner != 0) {
		return nil
	}
	var out []schema.Will
	end, ended := d.over(m.now)
	for i := range d.wills {
		w := &d.wills[i]
		switch {
		case w.Due || w.At.IsZero():
		case !w.end.IsZero():
			w.due(w.end)
		case ended:
			w.due(end)
		case !w.At.After(m.now):
			w.due(w.At)
		}
		if w.Due {
			out = append(out, w.Will)
		}
	}
	return out
}

// takeOutWill removes a will that was appended.
func (m *Model) takeOutWill(clientID string, key schema.ID) {
	d := m.sessions[clientID]
	if d == nil {
		return
	}
	kept := d.wills[:0]
	for _, w := range d.wills {
		if w.Key != key {
			kept = append(kept, w)
		}
	}
	d.wills = kept
}

// EndSession deletes the session of o, if it has no connection and no will. What
// else is stored of it is garbage from now on: its sid is nobody's.
func (m *Model) EndSession(o schema.Owner) bool {
	d := m.sessions[o.ClientID]
	if d == nil || d.sid != o.SID || d.epoch != o.Epoch || d.owner != 0 || len(d.wills) > 0 && m.on(ruleWillKept) {
		return false
	}
	m.floor = max(m.floor, d.epoch)
	m.forget(o.ClientID)
	return true
}

// DueWills decides and gives due wills, see store.Keeper.
func (m *Model) DueWills(limit int) []store.DueWill {
	var out []store.DueWill
	for _, id := range m.clients {
		d := m.sessions[id]
		if d.owner != 0 || len(d.wills) == 0 {
			continue
		}
		for _, w := range m.DecideWill(id, d.epoch) {
			if len(out) == limit {
				return out
			}
			out = append(out, store.DueWill{ClientID: id, Will: w})
		}
	}
	return out
}

// EndExpired ends sessions, see store.Keeper.
func (m *Model) EndExpired(limit int) []schema.Owner {
	var out []schema.Owner
	for _, id := range append([]string(nil), m.clients...) {
		d := m.sessions[id]
		if _, over := d.over(m.now); !over || len(out) == limit {
			continue
		}
		if o := (schema.Owner{ClientID: id, SID: d.sid, Epoch: d.epoch}); m.EndSession(o) {
			out = append(out, o)
		}
	}
	return out
}

// Orphans gives the sessions whose owner's lease is over: the keeper finishes
// them (see NewFinish).
func (m *Model) Orphans() []string {
	var out []string
	for _, id := range m.clients {
		if d := m.sessions[id]; d.owner != 0 && m.Lapsed(d.owner) {
			out = append(out, id)
		}
	}
	return out
}

// Owner gives the present owner of a session and its node; node 0: it has no
// connection. false: there is no session.
func (m *Model) Owner(clientID string) (schema.Owner, Node, bool) {
	d := m.sessions[clientID]
	if d == nil {
		return schema.Owner{}, 0, false
	}
	return schema.Owner{ClientID: clientID, SID: d.sid, Epoch: d.epoch}, d.owner, true
}

// Clients gives the clients that have a session, sorted.
func (m *Model) Clients() []string { return append([]string(nil), m.clients...) }

// Counts counts, see store.Keeper.
func (m *Model) Counts() store.Counts {
	c := store.Counts{Sessions: len(m.sessions)}
	for id, subs := range m.subs {
		if d := m.sessions[id]; d != nil {
			for _, s := range subs {
				if s.SID == d.sid {
					c.Subscriptions++
					if isShared(s.Filter) {
						c.Shared++
					}
				}
			}
		}
	}
	return c
}
