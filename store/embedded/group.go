package embedded

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

// group is a group of shared subscriptions, as the batch will leave it. Its
// document, its claims and what was left are keys of their own: a claim costs one
// small key beside its record.
type group struct {
	// id numbers the group in the keys. It comes from the same count as those of
	// sessions, and is never given twice.
	id           uint64
	since, after schema.Cursor
	members      uint64
	// claims are the messages after `after` that a record has claimed, again those
	// that lost members left.
	claims, again map[schema.Mark]schema.ID
}

// maxGroups bounds the groups that the committer keeps in memory between two
// batches. Of one group it keeps what was claimed since the last SaveGroup, and
// what was left.
const maxGroups = 1024

var errMembers = errors.New("the group and its subscriptions do not agree")

func groupMarkKey(b []byte, prefix byte, id uint64, m schema.Mark) []byte {
	return appendU64(appendU32(sessionKey(b, prefix, id), uint32(m.Lane)), m.N)
}

func putGroup(b []byte, g *group) []byte {
	b = binary.AppendUvarint(append(b, encoding), g.id)
	return binary.AppendUvarint(putCursor(putCursor(b, g.since), g.after), g.members)
}

func readGroup(key, value []byte) (*group, error) {
	r := decode(value)
	g := &group{id: r.uvarint(), since: r.cursor(), after: r.cursor(), members: r.uvarint()}
	if r.err == nil && g.members == 0 {
		r.fail(errValue)
	}
	if err := r.end(); err != nil {
		return nil, corrupt(key, err)
	}
	return g, nil
}

// loadGroup reads a group; nil: there is none.
func loadGroup(from pebble.Reader, name string) (*group, error) {
	key := stringKey(nil, keyGroup, name)
	value, err := getFrom(from, key)
	if err != nil || value == nil {
		return nil, err
	}
	g, err := readGroup(key, value)
	if err != nil {
		return nil, err
	}
	if g.claims, err = loadMarks(from, keyClaimed, g.id); err != nil {
		return nil, err
	}
	g.again, err = loadMarks(from, keyAgain, g.id)
	return g, err
}

func loadMarks(from pebble.Reader, prefix byte, id uint64) (map[schema.Mark]schema.ID, error) {
	marks := make(map[schema.Mark]schema.ID)
	p := sessionKey(nil, prefix, id)
	err := scanIn(from, p, after(p), -1, func(key, value []byte) error {
		r := decode(value)
		messageID := r.id()
		if err := r.end(); err != nil || len(key) != len(p)+12 {
			return corrupt(key, errShort)
		}
		marks[schema.Mark{Lane: schema.Lane(beU32(key[len(p):])), N: beU64(key[len(p)+4:])}] = messageID
		return nil
	})
	return marks, err
}

// group gives a group as the batch will leave it; nil: there is none.
//
// Invariant: c.groups is emptied only right behind a commit. So of a group that is
// not there the batch holds nothing, and the engine tells all.
func (c *committer) group(name string) (*group, error) {
	if g, ok := c.groups[name]; ok {
		return g, nil
	}
	g, err := loadGroup(c.l.db, name)
	if err == nil {
		c.groups[name] = g
	}
	return g, err
}

// loadShared counts the shared subscriptions at the start.
func (c *committer) loadShared() error {
	return c.l.scan([]byte{keyGroup}, nil, func(key, value []byte) error {
		g, err := readGroup(key, value)
		if err == nil {
			c.shared += g.members
		}
		return err
	})
}

func isShared(filter string) bool {
	_, shared := schema.CutShare(filter)
	return shared
}

// share makes a session a member of a group.
func (c *committer) share(s *session, clientID string, sub *schema.Subscription) error {
	if !s.doc.shared {
		next := s.doc.clone()
		next.shared = true
		c.putDocument(clientID, s.doc, next)
		s.doc = next
	}
	return c.joinGroup(sub.Filter, sub.Since)
}

// joinGroup counts one more member in; the first begins the group (G3).
func (c *committer) joinGroup(name string, since schema.Cursor) error {
	g, err := c.group(name)
	if err != nil {
		return err
	}
	if g == nil {
		c.state.session++
		g = &group{
			id: c.state.session, since: since, after: since,
			claims: map[schema.Mark]schema.ID{}, again: map[schema.Mark]schema.ID{},
		}
		c.groups[name] = g
	}
	g.members++
	c.shared++
	c.set(stringKey(nil, keyGroup, name), putGroup(nil, g))
	return nil
}

// leaveGroup counts a member out; the group goes with the last (G3).
func (c *committer) leaveGroup(name string) error {
	g, err := c.group(name)
	if err != nil {
		return err
	}
	key := stringKey(nil, keyGroup, name)
	if g == nil {
		return corrupt(key, errMembers)
	}
	g.members--
	c.shared--
	if g.members > 0 {
		c.set(key, putGroup(nil, g))
		return nil
	}
	// One by one: a range would have the engine flush its memtable.
	for m := range g.claims {
		c.delete(groupMarkKey(nil, keyClaimed, g.id, m))
	}
	for m := range g.again {
		c.delete(groupMarkKey(nil, keyAgain, g.id, m))
	}
	c.delete(key)
	c.groups[name] = nil
	return nil
}

// claimMessage stages a record's claim, if the group has the message to give; else
// nothing is staged.
func (c *committer) claimMessage(d *schema.Delivery) error {
	g, err := c.group(d.Group)
	if err != nil {
		return err
	}
	claimed := fmt.Errorf("%w: client %q, message %s", store.ErrClaimed, d.ClientID, d.MessageID)
	if g == nil {
		return claimed
	}
	ahead := g.after.After(d.Mark)
	if id, left := g.again[d.Mark]; left && id == d.MessageID {
		delete(g.again, d.Mark)
		c.delete(groupMarkKey(nil, keyAgain, g.id, d.Mark))
	} else if _, taken := g.claims[d.Mark]; taken || !ahead {
		return claimed
	}
	if ahead {
		g.claims[d.Mark] = d.MessageID
		c.set(groupMarkKey(nil, keyClaimed, g.id, d.Mark), append([]byte{encoding}, d.MessageID[:]...))
	}
	return nil
}

// handBack gives to their groups what a session that is let go, or ends, has not
// acknowledged at QoS 1, and takes it out of the flight.
//
// Invariant: both are in one batch (G4). QoS 2 stays with the session
// [MQTT-4.8.2-4].
func (c *committer) handBack(clientID string, s *session) error {
	if !s.doc.shared {
		return nil
	}
	var p *place
	if s.read.Load() && s.saved == s.last {
		p = s.place
	}
	if p == nil {
		// Nothing was saved by this connection, or there are records above.
		var err error
		if p, err = c.settleSession(clientID, s.id); err != nil {
			return err
		}
	}
	return c.handBackFlight(s.id, p)
}

func (c *committer) handBackFlight(session uint64, p *place) error {
	var rest []schema.Flight
	for i := range p.Flight {
		f := &p.Flight[i]
		left := false
		if f.Group != "" && f.QoS == 1 {
			var err error
			if left, err = c.leave(f); err != nil {
				return err
			}
		}
		if !left {
			rest = append(rest, *f)
		}
	}
	if len(rest) < len(p.Flight) {
		next := *p
		next.Flight = rest
		c.touch(session)
		c.set(sessionKey(nil, keyCursor, session), putPlace(nil, &next))
	}
	return nil
}

// leave puts a delivery into its group's Again; false: the group has ended since,
// and this session is the only one that may still get it.
func (c *committer) leave(f *schema.Flight) (bool, error) {
	g, err := c.group(f.Group)
	if err != nil || g == nil || !g.since.After(f.Mark) {
		return false, err
	}
	g.again[f.Mark] = f.MessageID
	c.set(groupMarkKey(nil, keyAgain, g.id, f.Mark), append([]byte{encoding}, f.MessageID[:]...))
	return true, nil
}

// OpenGroup implements store.Groups.
func (l *Log) OpenGroup(ctx context.Context, name string) (store.Group, error) {
	if err := l.wait(ctx); err != nil {
		return store.Group{}, err
	}
	if err := l.enter(); err != nil {
		return store.Group{}, err
	}
	defer l.leave()
	start := time.Now()
	// One snapshot: between two reads a claim might move.
	snapshot := l.db.NewSnapshot()
	defer func() { _ = snapshot.Close() }()
	g, err := loadGroup(snapshot, name)
	l.observe("open_group", start, err)
	switch {
	case err != nil:
		return store.Group{}, err
	case g == nil:
		return store.Group{}, fmt.Errorf("%w: %q", store.ErrNoGroup, name)
	}
	return store.Group{After: g.after, Again: refsOf(g.again), Claimed: refsOf(g.claims)}, nil
}

func refsOf(marks map[schema.Mark]schema.ID) []store.Ref {
	refs := make([]store.Ref, 0, len(marks))
	for m, id := range marks {
		refs = append(refs, store.Ref{ID: id, Mark: m})
	}
	slices.SortFunc(refs, func(a, b store.Ref) int {
		return cmp.Or(cmp.Compare(a.Mark.Lane, b.Mark.Lane), cmp.Compare(a.Mark.N, b.Mark.N))
	})
	return refs
}

// SaveGroup implements store.Groups.
func (l *Log) SaveGroup(ctx context.Context, name string, after schema.Cursor, passed []schema.ID) error {
	return l.do(ctx, "save_group", &call{stage: func(c *committer) error { return c.saveGroup(name, after, passed) }})
}

func (c *committer) saveGroup(name string, after schema.Cursor, passed []schema.ID) error {
	g, err := c.group(name)
	if err != nil || g == nil {
		return err
	}
	for m, id := range g.again {
		if slices.Contains(passed, id) {
			delete(g.again, m)
			c.delete(groupMarkKey(nil, keyAgain, g.id, m))
		}
	}
	if g.after.Covers(after) {
		return nil
	}
	g.after = g.after.Clone()
	g.after.Merge(after)
	for m := range g.claims {
		if !g.after.After(m) {
			delete(g.claims, m)
			c.delete(groupMarkKey(nil, keyClaimed, g.id, m))
		}
	}
	c.set(stringKey(nil, keyGroup, name), putGroup(nil, g))
	return nil
}
