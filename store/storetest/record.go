package storetest

import (
	"sort"

	"rewindmq/schema"
	"rewindmq/store"
)

type recordKey struct {
	client string
	sid    uint64
}

// recordList holds the records of a session, seq ascending.
type recordList struct{ list []schema.Delivery }

func (l *recordList) find(seq uint64) (int, bool) {
	if n := len(l.list); n == 0 || l.list[n-1].Seq < seq {
		return n, false
	}
	i := sort.Search(len(l.list), func(i int) bool { return l.list[i].Seq >= seq })
	return i, l.list[i].Seq == seq
}

// Record stores one delivery record. What is there already under its seq is
// returned: with the same ID it counts as stored, with another one it is a
// collision, and nothing was stored. It is guarded by nothing else: see the fence.
func (m *Model) Record(d *schema.Delivery) (existing *schema.Delivery) {
	k := recordKey{d.ClientID, d.SID}
	l := m.records[k]
	if l == nil {
		l = &recordList{}
		m.records[k] = l
	}
	i, there := l.find(d.Seq)
	if there {
		return &l.list[i]
	}
	l.list = append(l.list, schema.Delivery{})
	copy(l.list[i+1:], l.list[i:])
	l.list[i] = *d
	return nil
}

// RecordBatch stores records in order, as a record lane does, up to the first
// collision; it answers as store.Deliveries does.
func (m *Model) RecordBatch(batch []schema.Delivery) []error {
	errs := make([]error, len(batch))
	var failed map[schema.Owner]bool
	for i := range batch {
		d := &batch[i]
		if failed[d.Owner] {
			errs[i] = store.ErrSessionLost
			continue
		}
		if d.Group != "" {
			if errs[i] = m.claimMessage(d); errs[i] != nil {
				continue
			}
		}
		if old := m.Record(d); old != nil && old.ID != d.ID {
			errs[i] = store.ErrSessionLost
			if failed == nil {
				failed = map[schema.Owner]bool{}
			}
			failed[d.Owner] = true
		}
	}
	return errs
}

// Records gives the records of a session above a seq, in order. The slice is the
// model's: read only, valid until the next operation.
func (m *Model) Records(clientID string, sid, above uint64) []schema.Delivery {
	l := m.records[recordKey{clientID, sid}]
	if l == nil {
		return nil
	}
	i, _ := l.find(above + 1)
	return l.list[i:]
}

func (m *Model) record(clientID string, sid, seq uint64) *schema.Delivery {
	if l := m.records[recordKey{clientID, sid}]; l != nil {
		if i, ok := l.find(seq); ok {
			return &l.list[i]
		}
	}
	return nil
}

// ForgetRecords removes the records of a session up to a seq, as their retention
// does: what is in flight is in the cursor (S8).
func (m *Model) ForgetRecords(clientID string, sid, upTo uint64) {
	if l := m.records[recordKey{clientID, sid}]; l != nil {
		i, _ := l.find(upTo + 1)
		l.list = append([]schema.Delivery(nil), l.list[i:]...)
	}
}
