package mongo

import (
	"context"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"pgregory.net/rapid"

	"rewindmq/schema"
)

// L1: an attempt that was given up and lands late, behind another one, is refused by
// the server, and nothing of it is stored; the session of the driver's own writes is
// another.
func TestInserter_LateAttemptIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	in, err := newInserter(s.client, s.c.message)
	if err != nil {
		t.Fatal(err)
	}
	defer in.end(patience)
	l := newLaneID(7000, 1)
	var docs []bson.Raw
	for n := range uint64(4) {
		docs = append(docs, encodeMessage(message(s, nobody(), "t", "x"), l, n+1))
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
	err = insert(docs[3], docs[0], docs[2])
	if errs := writeErrors(err); !driver.IsDuplicateKeyError(err) || len(errs) != 1 || errs[0].Index != 1 {
		t.Errorf("a duplicate in the middle: %v", err)
	}
	n, err := s.c.message.CountDocuments(ctx, fields("lane", int64(l)))
	if err != nil || n != 3 {
		t.Errorf("%d documents, want the first two and the fourth; %v", n, err)
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
