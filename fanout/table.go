package fanout

import "sync/atomic"

// A table of more than fanMax nodes is a fan of fanWidth shards, until it has
// shrunk to fanMin.
const (
	fanMax   = 256
	fanMin   = 64
	fanWidth = 256 // a power of two
)

// table maps names to nodes, for readers without locks and one writer at a time
// (the caller's lock). Readers write nothing, so they share no cache line that
// moves between processors.
//
// A table is one block of slots by the hash, with linear probing. A large one is
// a fan: a block that only leads to shards, by the upper bits of the hash. Each
// shard grows and shrinks alone, so no change costs more than one shard, however
// large the table is.
//
// A writer fills an empty slot, puts the mark of a removed node into a filled one,
// or puts a new block in the place of an old one, without the removed. A reader
// that has loaded a block finds in it each node that was in the table when it began
// and was not taken out since.
type table[T comparable] struct {
	// root is one pointer for both forms. With two, a reader could look into one
	// before and into the other after the nodes have moved.
	root atomic.Pointer[block[T]] // nil: empty
}

type block[T comparable] struct {
	// slots are a power of two. Invariant: one is empty, so a probe ends.
	slots []slot[T]
	fan   []atomic.Pointer[block[T]] // the shards; nil: none
	n     int                        // nodes, in the shards too; the writer's
	used  int                        // slots that are not empty; the writer's
}

// slot is empty while node is nil. The hash is written before the node, and
// never changes: who has seen the node may read it.
type slot[T comparable] struct {
	hash uint64
	node atomic.Pointer[node[T]]
}

// shard tells where a hash belongs. The slots go by the lower bits.
func shard(hash uint64) uint64 { return hash / (1 << 64 / fanWidth) }

// get gives the node called name, or nil.
func (t *table[T]) get(hash uint64, name string) *node[T] {
	b := t.root.Load()
	if b == nil {
		return nil
	}
	if b.fan != nil {
		if b = b.fan[shard(hash)].Load(); b == nil {
			return nil
		}
	}
	mask := uint64(len(b.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := &b.slots[i]
		n := s.node.Load()
		if n == nil || s.hash == hash && n.name == name && !n.removed {
			return n
		}
	}
}

// put adds a node. REQUIRES: none of its name is there.
func (t *table[T]) put(hash uint64, n *node[T]) {
	b := t.root.Load()
	if b != nil && b.fan == nil && b.n == fanMax {
		f := &block[T]{fan: make([]atomic.Pointer[block[T]], fanWidth), n: b.n}
		b.each(func(hash uint64, n *node[T]) { put(&f.fan[shard(hash)], hash, n) })
		t.root.Store(f)
		b = f
	}
	if b != nil && b.fan != nil {
		put(&b.fan[shard(hash)], hash, n)
		b.n++
		return
	}
	put(&t.root, hash, n)
}

// put adds a node to the block in p, in a larger one if need be.
func put[T comparable](p *atomic.Pointer[block[T]], hash uint64, n *node[T]) {
	b := p.Load()
	if b == nil {
		b = newBlock[T](1)
		b.put(hash, n)
		p.Store(b)
		return
	}
	if !fits(b.used+1, len(b.slots)) {
		// Room for a quarter more, so that the next block is not soon full of
		// the removed.
		b = b.moved(b.n + 1 + b.n/4)
		p.Store(b)
	}
	b.put(hash, n)
}

// del takes a node out. mark is the trie's mark of a removed node.
// REQUIRES: the node is there.
func (t *table[T]) del(hash uint64, n, mark *node[T]) {
	b := t.root.Load()
	if b.fan == nil {
		del(&t.root, hash, n, mark)
		return
	}
	del(&b.fan[shard(hash)], hash, n, mark)
	if b.n--; b.n > fanMin {
		return
	}
	one := newBlock[T](b.n)
	for i := range b.fan {
		if s := b.fan[i].Load(); s != nil {
			s.each(one.put)
		}
	}
	t.root.Store(one)
}

func del[T comparable](p *atomic.Pointer[block[T]], hash uint64, n, mark *node[T]) {
	b := p.Load()
	if b.n == 1 {
		p.Store(nil)
		return
	}
	mask := uint64(len(b.slots) - 1)
	i := hash & mask
	for b.slots[i].node.Load() != n {
		i = (i + 1) & mask
	}
	b.slots[i].node.Store(mark)
	if b.n--; b.n < len(b.slots)/8 {
		p.Store(b.moved(b.n + b.n/4))
	}
}

// fits tells whether slots are enough for n nodes: a quarter stays empty.
func fits(n, slots int) bool { return 4*n <= 3*slots }

// newBlock makes a block with room for n nodes.
func newBlock[T comparable](n int) *block[T] {
	slots := 2
	for !fits(n, slots) {
		slots *= 2
	}
	return &block[T]{slots: make([]slot[T], slots)}
}

// put fills a slot. REQUIRES: the node fits.
func (b *block[T]) put(hash uint64, n *node[T]) {
	mask := uint64(len(b.slots) - 1)
	i := hash & mask
	for b.slots[i].node.Load() != nil {
		i = (i + 1) & mask
	}
	b.slots[i].hash = hash
	b.slots[i].node.Store(n)
	b.n++
	b.used++
}

// moved copies the block into one with room for n nodes.
func (b *block[T]) moved(n int) *block[T] {
	c := newBlock[T](n)
	b.each(c.put)
	return c
}

func (b *block[T]) each(fn func(hash uint64, n *node[T])) {
	for i := range b.slots {
		if n := b.slots[i].node.Load(); n != nil && !n.removed {
			fn(b.slots[i].hash, n)
		}
	}
}
