package fanout

import (
	"slices"
	"sync/atomic"
)

const (
	chunkLen = 256 // values in a chunk: what a change copies at most
	indexMax = 16  // more values than this are found by an index
)

// values is the set of values of one filter, for readers without locks and one
// writer at a time.
//
// Readers load one list, which never changes within its length. A writer appends
// into the spare room behind the newest list, which no older list reaches, or
// copies one chunk. So a filter of 100,000 subscribers costs neither side a walk
// over all of them to add one.
type values[T comparable] struct {
	list atomic.Pointer[list[T]] // nil: none
}

// list is full chunks and then a tail. Invariant: the tail is not empty.
type list[T comparable] struct {
	tail []T
	many *many[T] // nil while there are few, all in the tail
	one  [4]T     // room for the first tail: most filters have few subscribers
}

// many is what a long list has beside its tail.
type many[T comparable] struct {
	full  []*[chunkLen]T
	index map[T]int // where each value stands; the writer's
}

func (l *list[T]) full() []*[chunkLen]T {
	if l.many == nil {
		return nil
	}
	return l.many.full
}

func (l *list[T]) len() int { return len(l.full())*chunkLen + len(l.tail) }

// find gives the place of v, or -1.
func (l *list[T]) find(v T) int {
	if l == nil {
		return -1
	}
	if l.many == nil {
		return slices.Index(l.tail, v)
	}
	if i, ok := l.many.index[v]; ok {
		return i
	}
	return -1
}

// appendTo appends the values to dst.
func (s *values[T]) appendTo(dst []T) []T {
	l := s.list.Load()
	if l == nil {
		return dst
	}
	if l.many != nil {
		for _, c := range l.many.full {
			dst = append(dst, c[:]...)
		}
	}
	if len(l.tail) == 1 {
		return append(dst, l.tail[0])
	}
	return append(dst, l.tail...)
}

func (s *values[T]) empty() bool { return s.list.Load() == nil }

// add tells whether v is new.
func (s *values[T]) add(v T) bool {
	l := s.list.Load()
	if l.find(v) >= 0 {
		return false
	}
	n := &list[T]{}
	switch {
	case l == nil:
		n.tail = append(n.one[:0], v)
	case len(l.tail) == chunkLen:
		n.many = &many[T]{append(l.full(), (*[chunkLen]T)(l.tail)), l.many.index}
		n.tail = append(n.one[:0], v)
	default:
		n.many, n.tail = l.many, append(l.tail, v)
	}
	if n.many != nil {
		n.many.index[v] = n.len() - 1
	} else if len(n.tail) > indexMax {
		n.many = &many[T]{index: make(map[T]int, 2*indexMax)}
		for i, o := range n.tail {
			n.many.index[o] = i
		}
	}
	s.list.Store(n)
	return true
}

// remove tells whether v was there. The last value takes its place.
func (s *values[T]) remove(v T) bool {
	l := s.list.Load()
	i := l.find(v)
	if i < 0 {
		return false
	}
	if l.len() == 1 {
		s.list.Store(nil)
		return true
	}
	end := len(l.tail) - 1
	last := l.tail[end]
	full := l.full()
	n := &list[T]{}
	if c := i / chunkLen; c < len(full) {
		chunk := *full[c]
		chunk[i%chunkLen] = last
		full = slices.Clone(full)
		full[c] = &chunk
		// No room behind it may be written: older lists read there.
		n.tail = l.tail[:end:end]
	} else {
		n.tail = append(n.one[:0], l.tail[:end]...)
		if j := i % chunkLen; j < end {
			n.tail[j] = last
		}
	}
	if len(n.tail) == 0 {
		k := len(full) - 1
		n.tail = full[k][:]
		full = full[:k:k]
	}
	if l.many != nil && (len(full) > 0 || len(n.tail) > indexMax/2) {
		n.many = &many[T]{full, l.many.index}
		n.many.index[last] = i
		delete(n.many.index, v)
	}
	s.list.Store(n)
	return true
}
