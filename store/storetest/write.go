package storetest

import (
	"fmt"
	"slices"
	"sort"

	"rewindmq/schema"
	"rewindmq/store"
)

// cursor is the cursor document of a session. A claim marks it before it reads
// it: an older owner's writes then match nothing.
type cursor struct {
	sid, epoch uint64
	schema.SessionCursor
}

// copySession gives a cursor that shares no slice with c. Vectors are shared:
// they are read only.
func copySession(c schema.SessionCursor) schema.SessionCursor {
	c.Flight, c.Inbound = slices.Clone(c.Flight), slices.Clone(c.Inbound)
	return c
}

// markCursor is step 3 of a claim: it sets {sid, epoch}, only where the epoch is
// lower, and reads.
func (m *Model) markCursor(o schema.Owner, at schema.Cursor) (schema.SessionCursor, bool) {
	c := m.cursors[o.ClientID]
	if c != nil && c.epoch > o.Epoch {
		return schema.SessionCursor{}, false
	}
	if c == nil || c.sid != o.SID && m.on(ruleSID) {
		c = &cursor{sid: o.SID, epoch: o.Epoch, SessionCursor: schema.SessionCursor{After: at.Clone()}}
		m.cursors[o.ClientID] = c
	}
	c.sid = o.SID
	if m.on(ruleMark) {
		c.epoch = o.Epoch
	}
	return copySession(c.SessionCursor), true
}

// mine gives the cursor document if o may write it.
func (m *Model) mine(o schema.Owner) *cursor {
	c := m.cursors[o.ClientID]
	if c == nil || c.sid != o.SID {
		return nil
	}
	if !m.on(ruleMark) && c.epoch < o.Epoch {
		c.epoch = o.Epoch
	}
	if c.epoch != o.Epoch && m.on(ruleGuard) {
		return nil
	}
	return c
}

// Owns tells whether o counts: no newer claim has marked the cursor, it was not
// released, and the session is there.
func (m *Model) Owns(o schema.Owner) bool {
	d := m.sessions[o.ClientID]
	return d != nil && d.sid == o.SID && d.released < o.Epoch && m.mine(o) != nil
}

// Write carries out one write of a session, as one operation. It is guarded as
// the write itself is guarded in the store: by the cursor document, which a claim
// marks in its step 3; MarkReceived goes by the record and is not guarded, so
// that one of an older owner may land late. Memory asks Owns before.
func (m *Model) Write(w store.Write) error {
	switch w := w.(type) {
	case store.SaveCursor:
		c := m.mine(w.Owner)
		if c == nil || w.Cursor.Seq < c.Seq {
			return store.ErrSessionLost
		}
		c.After, c.Seq, c.Flight = w.Cursor.After.Clone(), w.Cursor.Seq, slices.Clone(w.Cursor.Flight)
	case store.PutInbound:
		c := m.mine(w.Owner)
		if c == nil {
			return store.ErrSessionLost
		}
		c.Inbound = append(dropInbound(c.Inbound, w.Inbound.PacketID), w.Inbound)
	case store.DeleteInbound:
		c := m.mine(w.Owner)
		if c == nil {
			return store.ErrSessionLost
		}
		c.Inbound = dropInbound(c.Inbound, w.PacketID)
	case store.MarkReceived:
		return m.markReceived(w)
	case store.PutSubscriptions:
		return m.putSubscriptions(w)
	case store.DeleteSubscriptions:
		return m.deleteSubscriptions(w)
	case store.Release:
		return m.release(&w)
	case store.TakeOutWill:
		m.takeOutWill(w.ClientID, w.Key)
	default:
		panic(fmt.Sprintf("storetest: write %T", w))
	}
	return nil
}

func dropInbound(list []schema.Inbound, id uint16) []schema.Inbound {
	return slices.DeleteFunc(list, func(i schema.Inbound) bool { return i.PacketID == id })
}

// markReceived notes PUBREC in the record, or in the cursor where the record is
// gone. The state never goes back.
func (m *Model) markReceived(w store.MarkReceived) error {
	if r := m.record(w.ClientID, w.SID, w.Flight.Seq); r != nil {
		if r.MessageID == w.Flight.MessageID {
			r.Received = true
		}
		return nil
	}
	c := m.mine(w.Owner)
	if c == nil {
		return store.ErrSessionLost
	}
	for i := range c.Flight {
		if f := &c.Flight[i]; f.Seq == w.Flight.Seq {
			f.Received = true
			return nil
		}
	}
	f := w.Flight
	f.Received = true
	c.Flight = append(c.Flight, f)
	sort.Slice(c.Flight, func(i, j int) bool { return c.Flight[i].Seq < c.Flight[j].Seq })
	return nil
}

func (m *Model) putSubscriptions(w store.PutSubscriptions) error {
	if m.mine(w.Owner) == nil {
		return store.ErrSessionLost
	}
	subs := m.subs[w.ClientID]
	if subs == nil {
		subs = map[string]*schema.Subscription{}
		m.subs[w.ClientID] = subs
	}
	for i := range w.Subscriptions {
		if old := subs[w.Subscriptions[i].Filter]; old != nil && old.Epoch > w.Epoch && m.on(ruleSubEpoch) {
			return store.ErrSessionLost
		}
	}
	for i := range w.Subscriptions {
		s := w.Subscriptions[i]
		s.Owner = w.Owner
		if old := subs[s.Filter]; old != nil && old.SID == s.SID {
			s.ID, s.Created = old.ID, old.Created
		}
		subs[s.Filter] = copySubscription(&s)
		m.beginGroup(&s)
	}
	return nil
}

func (m *Model) deleteSubscriptions(w store.DeleteSubscriptions) error {
	if m.mine(w.Owner) == nil {
		return store.ErrSessionLost
	}
	subs := m.subs[w.ClientID]
	for _, f := range w.Filters {
		if old := subs[f]; old != nil && old.Epoch > w.Epoch && m.on(ruleSubEpoch) {
			return store.ErrSessionLost
		}
	}
	for _, f := range w.Filters {
		delete(subs, f)
	}
	m.endGroups()
	return nil
}

// copySubscription shares nothing with s that anybody changes.
func copySubscription(s *schema.Subscription) *schema.Subscription {
	c := *s
	if s.Before != nil {
		b := *s.Before
		c.Before = &b
	}
	if s.Run != nil {
		r := *s.Run
		c.Run = &r
	}
	return &c
}

// Subscriptions gives those of a session, by filter.
func (m *Model) Subscriptions(clientID string, sid uint64) []schema.Subscription {
	var out []schema.Subscription
	for _, s := range m.subs[clientID] {
		if s.SID == sid || !m.on(ruleSID) {
			out = append(out, *copySubscription(s))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Filter < out[j].Filter })
	return out
}

// Cursor gives the saved cursor of a session; false: there is none.
func (m *Model) Cursor(clientID string, sid uint64) (schema.SessionCursor, bool) {
	c := m.cursors[clientID]
	if c == nil || c.sid != sid {
		return schema.SessionCursor{}, false
	}
	return copySession(c.SessionCursor), true
}
