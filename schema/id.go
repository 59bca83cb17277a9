package schema

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync/atomic"
	"time"
)

// ID names a document: 4 bytes of seconds, 5 of the process, 3 of a counter, as
// a MongoDB ObjectId has them. The zero ID names nothing.
type ID [12]byte

// IsZero tells whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String gives the 24 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Seconds gives the Unix time in the ID.
func (id ID) Seconds() int64 { return int64(binary.BigEndian.Uint32(id[:4])) }

// ParseID reads the 24 hexadecimal digits of an ID.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 24 {
		return id, fmt.Errorf("schema: id %q: want 24 hexadecimal digits", s)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("schema: id %q: %w", s, err)
	}
	return id, nil
}

// IDSource makes IDs that no other source makes. Safe for concurrent use.
type IDSource struct {
	process [5]byte
	counter atomic.Uint32
}

// NewIDSource draws the random part of its IDs from the operating system.
func NewIDSource() *IDSource {
	s := &IDSource{}
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // crypto/rand.Read never fails: it ends the process instead
	copy(s.process[:], seed[:5])
	s.counter.Store(binary.BigEndian.Uint32(seed[4:]))
	return s
}

// Next makes an ID whose seconds are those of at.
func (s *IDSource) Next(at time.Time) ID {
	var id ID
	binary.BigEndian.PutUint32(id[:4], uint32(at.Unix()))
	copy(id[4:9], s.process[:])
	n := s.counter.Add(1)
	id[9], id[10], id[11] = byte(n>>16), byte(n>>8), byte(n)
	return id
}
