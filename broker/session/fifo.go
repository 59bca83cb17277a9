package session

// keepFifo is the capacity that an empty fifo keeps: for what clients usually have in
// flight, 20, a ring that grows anew with each burst costs more than its few KiB.
const keepFifo = 32

// fifo is a queue that uses its memory again and, once it is empty, lets go of
// what a burst took. Its bound is its user's.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) {
	if f.head > 0 && len(f.items) == cap(f.items) {
		// Room at the front is used before the memory grows.
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	f.items = append(f.items, v)
}

// pop takes the oldest. REQUIRES: len() > 0.
func (f *fifo[T]) pop() T {
	var zero T
	v := f.items[f.head]
	f.items[f.head] = zero
	if f.head++; f.head == len(f.items) {
		f.items, f.head = f.items[:0], 0
		if cap(f.items) >= 2*keepFifo { // append rounds up
			f.items = nil
		}
	}
	return v
}
