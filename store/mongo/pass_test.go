package mongo

import (
	"bytes"
	"context"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
)

// A pass takes in with one query what is little; of much, or of large messages, it has
// a cursor for each lane, and holds one batch of each.
func TestPassOfLargeMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, tt := range []struct {
		name    string
		payload int
		small   bool
	}{{"little", 100, true}, {"large", 1 << 20, false}} {
		l := ownLane(t, s)
		const n = smallPassBytes>>20 + 2
		var docs []any
		for i := range uint64(n) {
			m := message(s, nobody(), "t", "")
			m.Payload = bytes.Repeat([]byte{'x'}, tt.payload)
			docs = append(docs, form{}.encode(m, l, i+1))
		}
		if _, err := s.c.message.InsertMany(ctx, docs); err != nil {
			t.Fatal(err)
		}
		err := s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
			m, err := s.mergeRanges(ctx, []laneRange{{lane: l}})
			if err != nil {
				return err
			}
			defer m.close()
			if small := len(m.small) > 0; small != tt.small {
				t.Errorf("%s: by one query: %v", tt.name, small)
			}
			got := uint64(0)
			for {
				doc, at, err := m.next(ctx)
				if err != nil || doc == nil {
					if got != n {
						t.Errorf("%s: %d of %d", tt.name, got, n)
					}
					return err
				}
				if got++; at.mark() != (schema.Mark{Lane: l.number(), N: got}) || len(doc.Payload) != tt.payload {
					t.Errorf("%s: %v, %d bytes", tt.name, at, len(doc.Payload))
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
