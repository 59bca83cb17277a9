package mongo

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"pgregory.net/rapid"

	"rewindmq/schema"
	"rewindmq/store"
)

// newTestInserter gives an inserter of messages, and a lane of the log to insert into:
// what is in none would be adopted.
func newTestInserter(t *testing.T) (context.Context, *Store, *inserter, laneID) {
	t.Helper()
	s := newRig(t, 1).start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	in, err := newInserter(s.client, s.c.message)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.end(patience) })
	return ctx, s, in, ownLane(t, s)
}

// L1: an attempt that was given up and lands late, behind another one, is refused by
// the server, and nothing of it is stored; the session of the driver's own writes is
// another.
func TestInserter_LateAttemptIsRefused(t *testing.T) {
	t.Parallel()
	ctx, s, in, l := newTestInserter(t)
	var docs []bson.Raw
	for n := range uint64(4) {
		docs = append(docs, form{}.encode(message(s, nobody(), "t", "x"), l, n+1))
	}
	insert := func(docs ...bson.Raw) error {
		return in.insert(ctx, len(docs), func(b []byte, i int) []byte { return append(b, docs[i]...) })
	}
	if err := insert(docs[0], docs[1]); err != nil {
		t.Fatal(err)
	}
	if op := in.sess.OperationTime(); op == nil {
		t.Error("no operation time: reads of this session would not see its writes")
	}
	in.txn -= 2 // the attempt before the first
	if err := insert(docs[2]); !hasCode(err, 225) {
		t.Errorf("the late attempt: %v, want 225", err)
	}
	in.txn++
	err := insert(docs[3], docs[0], docs[2])
	if errs := writeErrors(err); !driver.IsDuplicateKeyError(err) || len(errs) != 1 || errs[0].Index != 1 {
		t.Errorf("a duplicate in the middle: %v", err)
	}
	n, err := s.c.message.CountDocuments(ctx, fields("lane", int64(l)))
	if err != nil || n != 3 {
		t.Errorf("%d documents, want the first two and the fourth; %v", n, err)
	}
}

// What is too much for one command goes in several, and stops at the first document
// that does not go in.
func TestInserter_LargeBatch(t *testing.T) {
	t.Parallel()
	ctx, s, in, l := newTestInserter(t)
	size := 5 << 20
	insert := func(ns ...uint64) error {
		return in.insert(ctx, len(ns), func(b []byte, i int) []byte {
			m := message(s, nobody(), "t", "")
			m.Payload = make([]byte, size)
			return form{}.append(b, m, l, ns[i])
		})
	}
	before := in.txn
	if err := insert(1, 2, 3, 4, 5); err != nil || in.txn-before != 5 {
		t.Errorf("25 MiB by %d commands, want 5: %v", in.txn-before, err)
	}
	size, before = 3<<20, in.txn
	errs := writeErrors(insert(6, 7, 8, 2, 9))
	if in.txn-before != 2 {
		t.Errorf("15 MiB by %d commands, want 2 until the duplicate", in.txn-before)
	}
	if len(errs) != 1 || errs[0].Index != 3 || errs[0].Code != 11000 {
		t.Errorf("a duplicate in the second command: %v, want it at 3", errs)
	}
	n, err := s.c.message.CountDocuments(ctx, fields("lane", int64(l)))
	if err != nil || n != 8 {
		t.Errorf("%d documents, want 8; %v", n, err)
	}
	if cap(in.buf) > keepBytes {
		t.Errorf("a buffer of %d bytes is kept", cap(in.buf))
	}
}

// A message whose document would be too large, by properties that take more than their
// packet did, is refused, and holds nothing up; also where no validator is asked.
func TestAppend_LargeProperties(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.MaxPayload = 1 << 20
	s := r.start()
	if !s.bypass {
		t.Fatal("the validator is asked, without access control")
	}
	pairs := make([]schema.UserProperty, 600_000) // 4 MiB in a packet, 18 in a document
	for i := range pairs {
		pairs[i] = schema.UserProperty{Key: "k", Value: "v"}
	}
	p := &store.Publisher{Owner: schema.Owner{ClientID: "p"}}
	large, fits := message(s, p, "t", "large"), message(s, p, "t", "fits")
	large.Properties = &schema.Properties{User: pairs}
	fits.Properties = &schema.Properties{User: pairs[:40_000]}
	got := make(chan []store.Appended, 1)
	s.Append(t.Context(), p, []*schema.Message{large, fits}, func(a []store.Appended) { got <- a })
	a := <-got
	if a[0].Outcome != store.Refused || !errors.Is(a[0].Err, store.ErrTooLarge) {
		t.Errorf("the large one: %+v", a[0])
	}
	if a[1].Outcome != store.Stored {
		t.Errorf("the other one: %+v", a[1])
	}
}

// What a record is written as is what is read of it.
func TestRecordDocument(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := func(name string) schema.ID {
			if rapid.Bool().Draw(t, name) {
				return schema.ID(bson.NewObjectID())
			}
			return schema.ID{}
		}
		text := rapid.StringMatching(`[a-z/ü]{0,8}`)
		number := rapid.Uint64Range(0, 1<<40)
		d := schema.Delivery{
			ID:    schema.ID(bson.NewObjectID()),
			Owner: schema.Owner{ClientID: text.Draw(t, "client"), SID: number.Draw(t, "sid"), Epoch: number.Draw(t, "epoch")},
			Seq:   number.Draw(t, "seq"), Topic: text.Draw(t, "topic"), MessageID: id("message"),
			Mark:     schema.Mark{Lane: schema.Lane(rapid.Uint32().Draw(t, "lane")), N: number.Draw(t, "n")},
			PacketID: rapid.Uint16().Draw(t, "packet"), QoS: uint8(rapid.IntRange(0, 2).Draw(t, "qos")), Retained: id("retained"),
			Group: text.Draw(t, "group"), Dropped: rapid.Bool().Draw(t, "dropped"), Received: rapid.Bool().Draw(t, "received"),
			Host: text.Draw(t, "host"), Created: time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "created")).UTC(),
		}
		var doc recordDoc
		if err := bson.Unmarshal(appendRecord(nil, &d), &doc); err != nil {
			t.Fatal(err)
		}
		if got := doc.delivery(); got != d {
			t.Errorf("%+v, want %+v", got, d)
		}
	})
}
