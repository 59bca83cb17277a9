package mongo

import (
	"context"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
)

// A session that was woken for its will, which has been taken out since, does not
// end before its own time: neither where wake is stale, nor behind TakeOutWill.
func TestWokenForAWillIsNotExpired(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx := context.Background()
	got := s.Claim(ctx, []store.Claim{{ClientID: "c", Protocol: 5, Expiry: 300, Will: &schema.Will{Topic: "w", QoS: 1}}})
	if got[0].Err != nil {
		t.Fatal(got[0].Err)
	}
	if err := s.Write(ctx, []store.Write{store.Release{Owner: got[0].Owner}})[0]; err != nil {
		t.Fatal(err)
	}
	var due []store.DueWill
	r.until("the will", func(ctx context.Context) bool {
		var err error
		due, err = s.DueWills(ctx, 10)
		return err == nil && len(due) == 1
	})
	for _, stale := range []bool{true, false} {
		if stale {
			_, err := r.db.Collection("session").UpdateOne(ctx, fields("_id", "c"), fields("$set", fields("wills", bson.A{})))
			if err != nil {
				t.Fatal(err)
			}
		} else if err := s.Write(ctx, []store.Write{store.TakeOutWill{Owner: got[0].Owner, Key: due[0].Will.Key}})[0]; err != nil {
			t.Fatal(err)
		}
		ended, err := s.EndExpired(ctx, 10)
		if err != nil || len(ended) > 0 {
			t.Fatalf("stale %t: ended %v, %v", stale, ended, err)
		}
	}
	d, err := s.readSession(ctx, "c")
	if err != nil || d == nil || d.Wake == nil || d.Wake.Sub(*d.Disconnected).Seconds() != 300 {
		t.Errorf("session %+v, %v; want to be woken in 300 s", d, err)
	}
}
