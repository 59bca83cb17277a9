package mongo

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"rewindmq/schema"
	"rewindmq/store"
)

// With SweepRecords a saved cursor takes the records below it along, but not those
// of QoS 2 messages in flight, whose state a claimer reads, nor what lies behind
// them; not the newer ones; not a group's claim; not a fence.
func TestSweepRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.SweepRecords = true
	r.o.Lease = 10 * time.Second
	s := r.start()
	ctx := context.Background()
	at, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Claim(ctx, []store.Claim{{ClientID: "c", Expiry: schema.NoExpiry, Protocol: 5, At: at}})[0]
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	batch := make([]schema.Delivery, 10)
	for i := range batch {
		batch[i] = schema.Delivery{
			ID: s.ids.Next(time.Now()), Owner: got.Owner, Seq: uint64(i + 1), Topic: "t", MessageID: s.ids.Next(time.Now()),
			Mark: schema.Mark{Lane: 1, N: uint64(i + 1)}, PacketID: uint16(i + 1), QoS: 1, Host: "h", Created: time.Now(),
		}
	}
	batch[6].QoS = 2
	for _, err := range s.Record(ctx, batch) {
		if err != nil {
			t.Fatal(err)
		}
	}
	records := r.db.Collection("publishedMessage")
	for seq, change := range map[int]bson.D{
		2: {{Key: "$set", Value: fields("group", "$share/g/t")}},
		3: {{Key: "$unset", Value: fields("messageId", 1, "packetId", 1)}},
	} {
		if _, err := records.UpdateOne(ctx, fields("seq", seq), change); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (seqs []int64) {
		cur, err := records.Find(ctx, bson.D{}, options.Find().SetSort(fields("seq", 1)))
		if err != nil {
			t.Fatal(err)
		}
		for cur.Next(ctx) {
			n, _ := cur.Current.Lookup("seq").AsInt64OK()
			seqs = append(seqs, n)
		}
		return seqs
	}
	save := func(c schema.SessionCursor) {
		t.Helper()
		c.After = at
		if err := s.Write(ctx, []store.Write{store.SaveCursor{Owner: got.Owner, Cursor: c}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	flight := schema.Flight{MessageID: batch[6].MessageID, Mark: batch[6].Mark, Seq: 7, PacketID: 7, QoS: 2}
	save(schema.SessionCursor{Seq: 9, Flight: []schema.Flight{flight}})
	r.until("the sweep below the QoS 2 message in flight", func(context.Context) bool {
		return slices.Equal(left(), []int64{2, 3, 7, 8, 9, 10})
	})
	save(schema.SessionCursor{Seq: 9})
	r.until("the sweep below the cursor", func(context.Context) bool { return slices.Equal(left(), []int64{2, 3, 10}) })
}
