package mongo

import (
	"context"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/store"
	"rewindmq/store/mongo/lane"
)

// L11: the answer to a claimer's stopper is lost, and the writer has gone on behind
// it. The claimer finds that it stands, and does not go on until its time is over.
func TestL11_StopperStandsWhereTheWriterWentOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p := &store.Publisher{}
	p.ClientID = "c"
	before := appendOne(t, s, p, "t")
	var d laneDoc
	if err := s.c.lane.FindOne(ctx, fields("_id", int64(before.Mark.Lane))).Decode(&d); err != nil {
		t.Fatal(err)
	}
	doc := bson.NewObjectID()
	if _, err := s.c.message.InsertOne(ctx, s.stopper(doc, d.id(), before.Mark.N+1, lane.Stopper)); err != nil {
		t.Fatal(err)
	}
	if behind := appendOne(t, s, p, "t"); behind.Mark.N != before.Mark.N+2 {
		t.Fatalf("appended at %v, want it behind the stopper", behind.Mark)
	}
	err := s.inSession(ctx, bson.Timestamp{}, func(ctx context.Context) error {
		return s.putStopper(ctx, doc, d.id(), lane.Stopper)
	})
	if err != nil {
		t.Error(err)
	}
	if n, err := s.c.message.CountDocuments(ctx, fields("lane", int64(d.id()), "stop", lane.Stopper)); err != nil || n != 1 {
		t.Errorf("%d stoppers, want 1: %v", n, err)
	}
}
