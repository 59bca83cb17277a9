package storetest

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// group is a group of shared subscriptions, see store.Groups.
type group struct {
	since, after schema.Cursor
	claims       map[schema.ID]schema.Mark // by the records of the group
	again        []store.Ref               // sorted by mark
}

// groupFault is one way in which groups can be wrong, for the suite's own tests.
type groupFault uint16

const (
	groupEternal     groupFault = 1 << iota // it outlives its last member
	groupAtZero                             // it begins before everything
	keepsAll                                // nothing goes back
	keepsFlight                             // what goes back stays in the flight too
	handsBack2                              // QoS 2 goes back
	handsBackBefore                         // also what lies before the beginning
	claimsTwice                             // the second claim is stored too
	claimsBefore                            // also what is not after After
	staysAgain                              // what was claimed from Again stays there
	forgetsClaims                           // Claimed is empty
	savesBack                               // After goes back
	savesNothing                            // After stands still
	keepsPassed                             // what is passed stays in Again
	cleanStartsQuiet                        // a clean start hands nothing back
	retryIsClaim                            // a record sent again is a second claim
)

func (m *Model) faulty(f groupFault) bool { return m.groupFaults&f != 0 }

func isShared(filter string) bool {
	_, shared := schema.CutShare(filter)
	return shared
}

// beginGroup lets a group begin with its first member (G3).
func (m *Model) beginGroup(s *schema.Subscription) {
	if !isShared(s.Filter) || m.groups[s.Filter] != nil {
		return
	}
	g := &group{since: s.Since.Clone(), after: s.Since.Clone(), claims: map[schema.ID]schema.Mark{}}
	if m.faulty(groupAtZero) {
		g.since, g.after = schema.Cursor{}, schema.Cursor{}
	}
	m.groups[s.Filter] = g
}

// endGroups ends the groups that have no member any more (G3).
func (m *Model) endGroups() {
	for name := range m.groups {
		if !m.hasMember(name) && !m.faulty(groupEternal) {
			delete(m.groups, name)
		}
	}
}

func (m *Model) hasMember(name string) bool {
	for id, subs := range m.subs {
		if s := subs[name]; s != nil {
			if d := m.sessions[id]; d != nil && d.sid == s.SID {
				return true
			}
		}
	}
	return false
}

// handBack gives to their groups what the flight of a session has at QoS 1, and
// takes it out of the flight, in one step (G2, G4).
func (m *Model) handBack(clientID string, sid uint64) {
	c := m.cursors[clientID]
	if c == nil || c.sid != sid || m.faulty(keepsAll) {
		return
	}
	cur := copySession(c.SessionCursor)
	cur.Recover(m.Records(clientID, sid, cur.Seq), func(f schema.Flight) bool {
		r := m.record(clientID, sid, f.Seq)
		return r != nil && r.Received
	}, nil)
	n := len(cur.Flight)
	cur.Flight = slices.DeleteFunc(cur.Flight, func(f schema.Flight) bool { return m.leave(&f) })
	if len(cur.Flight) < n {
		c.SessionCursor = cur
	}
}

// leave puts a delivery into its group's Again; false: it stays in the flight.
func (m *Model) leave(f *schema.Flight) bool {
	g := m.groups[f.Group]
	if g == nil || f.QoS != 1 && !m.faulty(handsBack2) || !g.since.After(f.Mark) && !m.faulty(handsBackBefore) {
		return false
	}
	g.again = append(g.again, store.Ref{ID: f.MessageID, Mark: f.Mark})
	sortRefs(g.again)
	return !m.faulty(keepsFlight)
}

func sortRefs(refs []store.Ref) {
	slices.SortFunc(refs, func(a, b store.Ref) int {
		return cmp.Or(cmp.Compare(a.Mark.Lane, b.Mark.Lane), cmp.Compare(a.Mark.N, b.Mark.N))
	})
}

// claimMessage judges the record of a group's message: the record is the claim.
func (m *Model) claimMessage(d *schema.Delivery) error {
	if old := m.record(d.ClientID, d.SID, d.Seq); old != nil && old.ID == d.ID && !m.faulty(retryIsClaim) {
		return nil
	}
	g := m.groups[d.Group]
	if g == nil {
		return fmt.Errorf("%w: no group %q", store.ErrClaimed, d.Group)
	}
	i := slices.IndexFunc(g.again, func(r store.Ref) bool { return r.ID == d.MessageID })
	_, taken := g.claims[d.MessageID]
	switch {
	case i >= 0:
		if !m.faulty(staysAgain) {
			g.again = slices.Delete(g.again, i, i+1)
		}
	case taken && !m.faulty(claimsTwice), !g.after.After(d.Mark) && !m.faulty(claimsBefore):
		return fmt.Errorf("%w: %v", store.ErrClaimed, d.MessageID)
	}
	g.claims[d.MessageID] = d.Mark
	return nil
}

// OpenGroup tells where a group stands, see store.Groups.
func (m *Model) OpenGroup(name string) (store.Group, error) {
	g := m.groups[name]
	if g == nil {
		return store.Group{}, fmt.Errorf("%w: %q", store.ErrNoGroup, name)
	}
	out := store.Group{After: g.after.Clone(), Again: slices.Clone(g.again)}
	for id, mark := range g.claims {
		if g.after.After(mark) && !m.faulty(forgetsClaims) {
			out.Claimed = append(out.Claimed, store.Ref{ID: id, Mark: mark})
		}
	}
	sortRefs(out.Claimed)
	return out, nil
}

// SaveGroup moves a group forward, see store.Groups.
func (m *Model) SaveGroup(name string, after schema.Cursor, passed []schema.ID) {
	g := m.groups[name]
	if g == nil {
		return
	}
	next := g.after.Clone()
	next.Merge(after)
	switch {
	case m.faulty(savesBack):
		next = after.Clone()
	case m.faulty(savesNothing):
		next = g.after
	}
	g.after = next
	if !m.faulty(keepsPassed) {
		g.again = slices.DeleteFunc(g.again, func(r store.Ref) bool { return slices.Contains(passed, r.ID) })
	}
}

// OpenGroup tells where a group stands, see store.Groups.
func (s *Memory) OpenGroup(ctx context.Context, name string) (store.Group, error) {
	if err := s.enter(ctx); err != nil {
		return store.Group{}, err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return store.Group{}, s.fail
	}
	g, err := s.m.OpenGroup(name)
	if err == nil {
		g.Self, g.Nodes = nodeID(s.node), s.m.groupNodes(name)
	}
	return g, err
}

// groupNodes gives the nodes on which members of a group are connected.
func (m *Model) groupNodes(name string) []schema.ID {
	var ids []schema.ID
	for _, client := range m.clients {
		d, sub := m.sessions[client], m.subs[client][name]
		if sub != nil && sub.SID == d.sid && d.owner != 0 && !slices.Contains(ids, nodeID(d.owner)) {
			ids = append(ids, nodeID(d.owner))
		}
	}
	return ids
}

func nodeID(n Node) schema.ID {
	var id schema.ID
	binary.BigEndian.PutUint32(id[8:], uint32(n))
	return id
}

// SaveGroup moves a group forward, see store.Groups.
func (s *Memory) SaveGroup(ctx context.Context, name string, after schema.Cursor, passed []schema.ID) error {
	if err := s.enterWrite(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.m.SaveGroup(name, after, passed)
	s.changed.Broadcast()
	return nil
}
