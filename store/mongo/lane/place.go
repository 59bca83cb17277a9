package lane

import (
	"time"

	"rewindmq/schema"
)

// ID is what a message carries in `lane`: the number in the upper half, the lane's
// key in the lower. A copy from another database has another key. Zero is none.
type ID int64

// NewID puts number and key together.
func NewID(number schema.Lane, key uint32) ID { return ID(int64(number)<<32 | int64(key)) }

// Number gives the lane's number.
func (l ID) Number() schema.Lane { return schema.Lane(uint64(l) >> 32) }

// Key gives the lane's key.
func (l ID) Key() uint32 { return uint32(l) }

// Kinds of stoppers, as they stand in the document.
const (
	Stopper = "stop" // takes a place
	End     = "end"  // nobody writes behind it
)

// Doc is what a look shows of a document of the log.
type Doc struct {
	ID   schema.ID
	Lane ID
	N    uint64
	Stop string // Stopper, End, or empty: a message
	TS   uint64
	// Counts: it stands in the log, in a lane that there is or in history. What
	// somebody else has inserted does not, before it is adopted.
	Counts bool
}

// Mark gives the place of d.
func (d *Doc) Mark() schema.Mark { return schema.Mark{Lane: d.Lane.Number(), N: d.N} }

// Book knows the lanes that a majority read has shown. They never go, and of each
// only that it is retired changes, once. It is bounded by the lanes that there are.
type Book struct {
	by     map[schema.Lane]entry
	newest schema.Lane
}

type entry struct {
	key     uint32
	retired bool
}

// Note takes a lane in from a majority read; false: it is not news.
func (b *Book) Note(id ID, retired bool) bool {
	if b.by == nil {
		b.by = map[schema.Lane]entry{}
	}
	old, ok := b.by[id.Number()]
	if ok && (old.retired || !retired) {
		return false // an older read, or the same
	}
	b.by[id.Number()] = entry{id.Key(), retired}
	for {
		if _, ok := b.by[b.newest+1]; !ok {
			return true
		}
		b.newest++
	}
}

// Known tells whether a mark with this lane is one of the log's. unknown: nobody
// has read a lane of that number yet.
func (b *Book) Known(id ID) (mine, unknown bool) {
	e, ok := b.by[id.Number()]
	return ok && e.key == id.Key(), !ok
}

// Newest tells up to where all lanes are known.
func (b *Book) Newest() schema.Lane { return b.newest }

// firstRest is the pause before something is tried again, at first.
const firstRest = 10 * time.Millisecond

// maxRest bounds it.
const maxRest = time.Second

// backoff doubles a pause, up to a bound.
func backoff(d time.Duration) time.Duration { return min(2*d, maxRest) }

// since gives the larger of monotonic and wall time from t to now: a machine that
// slept shows it in the second only.
func since(now, t time.Time) time.Duration {
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}
