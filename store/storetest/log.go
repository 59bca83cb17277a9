package storetest

import (
	"math/rand/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

// entry is one place in the commit order: a message, or a lane that opened or
// ended.
type entry struct {
	msg  *schema.Message
	lane schema.Lane
	end  bool
}

type lane struct {
	owner   Node
	gen     uint32 // stoppers so far
	ended   bool
	at      []int32 // places of its messages in the order; n is the index + 1
	trimmed uint64  // n up to which retention removed them
}

// OpenLane opens a lane of node n. Lanes become visible in order.
func (m *Model) OpenLane(n Node) schema.Lane {
	m.lanes = append(m.lanes, lane{owner: n})
	k := schema.Lane(len(m.lanes))
	m.order = append(m.order, entry{lane: k})
	return k
}

// RetireLane puts an end into a lane: its writer's appends on the way fail, no
// later one is taken, and readers drop its entry behind its last message.
func (m *Model) RetireLane(k schema.Lane) {
	if l := &m.lanes[k-1]; !l.ended {
		l.gen++
		l.ended = true
		m.order = append(m.order, entry{lane: k, end: true})
	}
}

// Stop puts a stopper into each lane of the nodes: what is on its way to them
// fails from now on.
func (m *Model) Stop(nodes ...Node) {
	for i := range m.lanes {
		for _, n := range nodes {
			if l := &m.lanes[i]; l.owner == n && !l.ended {
				l.gen++
			}
		}
	}
}

// Lane tells the generation of a lane, by which its writer appends, and whether
// it is open. A writer takes the generation anew after it met a stopper, and
// before that it looks who was claimed elsewhere.
func (m *Model) Lane(k schema.Lane) (gen uint32, open bool) {
	l := &m.lanes[k-1]
	return l.gen, !l.ended
}

// LanesOf gives the open lanes of node n.
func (m *Model) LanesOf(n Node) []schema.Lane {
	var out []schema.Lane
	for i := range m.lanes {
		if m.lanes[i].owner == n && !m.lanes[i].ended {
			out = append(out, schema.Lane(i+1))
		}
	}
	return out
}

// Land appends msg to lane k, whose generation the writer knows as gen, and sets
// its Mark and TS. A message whose ID is stored already is not stored again, and
// not touched: the answer is the mark of the first. false: it met a stopper, or
// the end of the lane; nothing was stored by this attempt.
func (m *Model) Land(k schema.Lane, gen uint32, msg *schema.Message) (schema.Mark, bool) {
	l := &m.lanes[k-1]
	if l.gen != gen || l.ended {
		return schema.Mark{}, false
	}
	if old := m.byID[msg.ID]; old != nil && m.on(ruleIdempotent) {
		return old.Mark, true
	}
	if !msg.Mark.IsZero() {
		c := *msg // it is in the log: what readers hold is not changed
		msg = &c
	}
	m.ts++
	msg.TS = m.ts
	msg.Mark = schema.Mark{Lane: k, N: uint64(len(l.at) + 1)}
	l.at = append(l.at, int32(len(m.order)))
	m.order = append(m.order, entry{msg: msg, lane: k})
	m.byID[msg.ID] = msg
	return msg.Mark, true
}

// Message gives the stored message of an ID, or nil.
func (m *Model) Message(id schema.ID) *schema.Message {
	msg := m.byID[id]
	if msg != nil && msg.Mark.N <= m.lanes[msg.Mark.Lane-1].trimmed {
		return nil
	}
	return msg
}

// Messages calls fn for every message ever stored, in commit order, until it
// returns false.
func (m *Model) Messages(fn func(*schema.Message) bool) {
	for i := range m.order {
		if msg := m.order[i].msg; msg != nil && !fn(msg) {
			return
		}
	}
}

// Length counts the places of the commit order; one that grows only.
func (m *Model) Length() int { return len(m.order) }

// Head gives the cursor of all that is committed.
func (m *Model) Head() schema.Cursor {
	marks := make([]schema.Mark, 0, len(m.lanes))
	for i := range m.lanes {
		if l := &m.lanes[i]; !l.ended {
			marks = append(marks, schema.Mark{Lane: schema.Lane(i + 1), N: uint64(len(l.at))})
		}
	}
	return schema.NewCursor(schema.Lane(len(m.lanes)), marks)
}

// Trim removes what is not after upTo, as retention does. Positions stay.
func (m *Model) Trim(upTo schema.Cursor) {
	for i := range m.lanes {
		l := &m.lanes[i]
		l.trimmed = max(l.trimmed, l.upTo(schema.Lane(i+1), upTo))
	}
}

// upTo gives the greatest n of the lane that is not after c.
func (l *lane) upTo(k schema.Lane, c schema.Cursor) uint64 {
	if k > c.Newest() {
		return 0
	}
	if n, ok := c.N(k); ok {
		return min(n, uint64(len(l.at)))
	}
	return uint64(len(l.at))
}

// Tailing follows the commit order of a Model. It stays valid while the model
// grows.
type Tailing struct {
	m   *Model
	pos int
	h   schema.Cursor
}

// Tail starts behind `after`.
func (m *Model) Tail(after schema.Cursor) *Tailing { return &Tailing{m: m, h: after} }

// H gives the cursor that it has reached. Read only.
func (t *Tailing) H() schema.Cursor { return t.h }

// Next gives the next event; false: there is none now.
func (t *Tailing) Next() (store.Event, bool) {
	for t.pos < len(t.m.order) {
		e := t.m.order[t.pos]
		t.pos++
		switch {
		case e.msg != nil:
			if !t.h.After(e.msg.Mark) {
				continue
			}
			t.h = t.h.Clone()
			t.h.Advance(e.msg.Mark)
		case e.end:
			if _, open := t.h.N(e.lane); !open && e.lane <= t.h.Newest() {
				continue
			}
			t.h = t.h.Clone()
			t.h.Retire(e.lane)
		default:
			if e.lane <= t.h.Newest() {
				continue
			}
			t.h = t.h.Clone()
			t.h.Advance(schema.Mark{Lane: e.lane})
		}
		return store.Event{Message: e.msg, H: t.h}, true
	}
	return store.Event{}, false
}

// Reading is an open read of a Model. It stays valid while the model grows.
type Reading struct {
	m       *Model
	filters []string
	from    []span // what is left, by lane
	trimmed uint64
	rng     *rand.Rand
	window  []*schema.Message // read ahead, in commit order
}

type span struct {
	lane   int
	n, end uint64 // the next is n + 1, the last is end
}

// lookahead bounds how far a Reading departs from the commit order.
const lookahead = 12

// Read opens a read of the messages after `after`, not after upTo, that match
// one of the filters: all of them, none else, n ascending in each lane and each
// publisher's in publishing order. Between lanes the order is free: rng draws it;
// nil gives the commit order.
func (m *Model) Read(after, upTo schema.Cursor, filters []string, rng *rand.Rand) *Reading {
	r := &Reading{m: m, filters: filters, rng: rng}
	for i := range m.lanes {
		l, k := &m.lanes[i], schema.Lane(i+1)
		from, end := l.upTo(k, after), l.upTo(k, upTo)
		if from < end && from < l.trimmed {
			cut := min(end, l.trimmed)
			r.trimmed += cut - from
			from = cut
		}
		if from < end {
			r.from = append(r.from, span{lane: i, n: from, end: end})
		}
	}
	return r
}

// Trimmed counts what retention had removed of the range.
func (r *Reading) Trimmed() uint64 { return r.trimmed }

// Next gives the next message, nil after the last.
func (r *Reading) Next() *schema.Message {
	if r.rng == nil {
		return r.pull()
	}
	for len(r.window) < lookahead {
		msg := r.pull()
		if msg == nil {
			break
		}
		r.window = append(r.window, msg)
	}
	if len(r.window) == 0 {
		return nil
	}
	// One that is neither behind another of its lane nor behind another of its
	// publisher can be next.
	can := make([]int, 0, lookahead)
	for i, msg := range r.window {
		free := true
		for _, b := range r.window[:i] {
			if b.Mark.Lane == msg.Mark.Lane || b.ClientID == msg.ClientID {
				free = false
				break
			}
		}
		if free {
			can = append(can, i)
		}
	}
	i := can[r.rng.IntN(len(can))]
	msg := r.window[i]
	r.window = append(r.window[:i], r.window[i+1:]...)
	return msg
}

// pull gives the next match in commit order.
func (r *Reading) pull() *schema.Message {
	for len(r.from) > 0 {
		first, at := 0, int32(-1)
		for i, s := range r.from {
			if p := r.m.lanes[s.lane].at[s.n]; at < 0 || p < at {
				first, at = i, p
			}
		}
		s := &r.from[first]
		if s.n++; s.n == s.end {
			r.from = append(r.from[:first], r.from[first+1:]...)
		}
		msg := r.m.order[at].msg
		for _, f := range r.filters {
			if schema.Match(f, msg.Topic) {
				return msg
			}
		}
	}
	return nil
}
