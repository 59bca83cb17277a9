package session

import "rewindmq/schema"

// step is what after has to follow, in the order in which taken moved.
type step struct {
	kind stepKind
	mark schema.Mark
	e    *entry
	h    schema.Cursor
	sub  *subscription
	run  *schema.Run
	next string
}

type stepKind uint8

const (
	stepMark   stepKind = iota // a message that needs no record was passed
	stepRecord                 // a message stands in a record
	stepMerge                  // everything up to h had been offered
	stepRunAt                  // a retained run has passed a topic
	stepRunEnd                 // a retained run has passed its last topic
)

// follow lets after follow by one step, as soon as every record before it is
// committed. Of messages in a row that need no record the last one of each lane
// speaks for all, and of merges and of a run's topics the last: so the line grows with
// the records that are under way and the runs that end, and not with what passes behind
// them.
func (s *Session) follow(st step) {
	for i := len(s.line) - 1; i >= 0 && s.line[i].kind == st.kind; i-- {
		switch {
		case st.kind == stepMerge:
			s.line[i].h = st.h
			return
		case st.kind == stepMark && s.line[i].mark.Lane == st.mark.Lane:
			s.line[i].mark = st.mark
			return
		case st.kind == stepRunAt && s.line[i].run == st.run:
			s.line[i].next = st.next
			return
		}
		if st.kind >= stepRunAt {
			break // runs go one after the other: what is not the last stands for another
		}
	}
	s.line = append(s.line, st)
	s.drainLine()
}

// drainLine moves after up to the first record that is not committed.
//
// Invariant: after never covers a message whose record is under way; a message
// that needs no record, behind such a one, waits with it (S17).
func (s *Session) drainLine() {
	if !s.on(ruleTakenAfter) {
		s.after = s.taken.Clone()
	}
	n := 0
	for ; n < len(s.line); n++ {
		st := &s.line[n]
		switch st.kind {
		case stepRecord:
			if !st.e.committed && s.on(ruleTakenAfter) {
				s.line = s.line[n:]
				return
			}
			if st.e.Retained.IsZero() {
				s.after.Advance(st.e.Mark)
			}
		case stepMark:
			s.after.Advance(st.mark)
		case stepMerge:
			s.after.Merge(st.h)
		case stepRunAt, stepRunEnd:
			if st.sub.Run == st.run { // else it was replaced
				s.passRun(st)
			}
		}
		*st = step{}
	}
	s.line = nil
}

// Merge moves the session, if it is live and has nothing waiting, to H as it
// stood when everything up to it had been offered.
func (s *Session) Merge(h schema.Cursor) {
	if s.closing || s.mode != live || len(s.queue) > 0 && s.on(ruleMergeEmpty) || s.taken.Covers(h) {
		return
	}
	s.merge(h)
}

func (s *Session) merge(h schema.Cursor) {
	s.taken.Merge(h)
	s.merged = true
	s.follow(step{kind: stepMerge, h: h})
}

// Offer takes a message from the hub. false: the session is full, the hub lets go
// of it, and it becomes a reader of the log.
func (s *Session) Offer(m *schema.Message) bool {
	switch {
	case s.closing:
		return false
	case s.mode == live:
		if len(s.queue) >= s.o.Queue {
			s.mode, s.queue = replaying, nil
			s.do(Action{Do: DoReplay})
			return false
		}
		s.queue = append(s.queue, m)
		if len(s.queue) == 1 {
			s.Pump()
		}
		return true
	case s.mode == attached:
		if len(s.buffer) >= s.o.Queue {
			s.mode, s.buffer = replaying, nil // stay a reader, take a new H
			return false
		}
		s.buffer = append(s.buffer, m)
		return true
	}
	return false
}

// OnAttach tells that the hub, at h, offers from now on; what lies between the
// session's place and h is read from the log. from is where to read.
func (s *Session) OnAttach() (from schema.Cursor, filters []string, ok bool) {
	if s.closing || s.mode == live {
		return schema.Cursor{}, nil, false
	}
	s.mode, s.buffer = attached, nil
	from, filters = s.Position()
	return from, filters, true
}

// Position tells from where, and for which filters, the log is to be read.
func (s *Session) Position() (schema.Cursor, []string) {
	return s.taken.Clone(), s.Filters()
}

// Feed takes messages read from the log, in order, and tells how many; the rest
// is to be offered again when there is room (after an input that made some).
func (s *Session) Feed(msgs []*schema.Message) int {
	if s.closing {
		return 0
	}
	for i, m := range msgs {
		if len(s.again) > 0 || !s.take(m, false) {
			return i
		}
	}
	return len(msgs)
}

// OnCaughtUp tells that everything up to upTo has been fed. true: the session is
// live. false: the buffer overflowed (or the session closes): attach again.
func (s *Session) OnCaughtUp(upTo schema.Cursor) bool {
	if s.closing {
		return false
	}
	s.merge(upTo)
	if s.mode != attached {
		return false
	}
	s.mode, s.queue, s.buffer = live, s.buffer, nil
	s.Pump()
	return true
}
