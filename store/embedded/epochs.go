package embedded

import (
	"slices"
	"sync"
)

// epochs lists the epochs that are kept, by number. The committer changes it;
// readers look.
type epochs struct {
	mu  sync.RWMutex
	all []epoch
}

// list gives a copy.
func (e *epochs) list() []epoch {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return slices.Clone(e.all)
}

func (e *epochs) add(n epoch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, n)
}

func (e *epochs) update(n epoch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.all {
		if e.all[i].id == n.id {
			e.all[i] = n
		}
	}
}

func (e *epochs) remove(id uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = slices.DeleteFunc(e.all, func(x epoch) bool { return x.id == id })
}

// span is the part of an epoch that a read goes through.
type span struct {
	id          uint32
	first, last uint64 // positions, both included
}

// spans cuts the positions above `after` and up to upTo into epochs.
func (e *epochs) spans(after, upTo uint64) []span {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []span
	for i, x := range e.all {
		if x.messagesGone {
			continue
		}
		s := span{x.id, max(x.first, after+1), upTo}
		if i+1 < len(e.all) {
			s.last = min(s.last, e.all[i+1].first-1)
		}
		if s.first <= s.last {
			out = append(out, s)
		}
	}
	return out
}
