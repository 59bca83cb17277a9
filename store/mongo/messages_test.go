package mongo

import (
	"context"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

// S-26: messages of this log, what was there before the first start and what other
// programs insert are found alike, and no call looks at more than so many documents.
func TestListMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.messageScan = 10
	ctx := context.Background()
	const old = 30
	var docs []any
	for i := range old {
		docs = append(docs, fields("_id", bson.NewObjectIDFromTimestamp(time.Unix(1_550_000_000+int64(i), 0)), "topic", "/coordinates",
			"data", "1,2", "clientId", "old", "qos", int32(0), "retain", i == old-1, "created", time.Unix(1_550_000_000+int64(i), 0), "host", "h"))
	}
	if _, err := r.db.Collection("message").InsertMany(ctx, docs); err != nil {
		t.Fatal(err)
	}
	s := r.start()
	own := &store.Publisher{Owner: schema.Owner{ClientID: "own"}}
	for range 25 {
		if a := answer(t, later(s, own, "/own", "m")); a.Outcome != store.Stored {
			t.Fatalf("%+v", a)
		}
	}
	foreigners(t, r, 0, 20)
	for _, q := range []struct {
		what string
		of   history.MessageQuery
		n    int
	}{
		{"all", history.MessageQuery{}, old + 25 + 20},
		{"history", history.MessageQuery{Filter: "/coordinates"}, old},
		{"history by a wildcard", history.MessageQuery{Filter: "/+"}, old + 25},
		{"a client's", history.MessageQuery{ClientID: "own"}, 25},
		{"an old client's", history.MessageQuery{ClientID: "old", From: time.Unix(1_550_000_005, 0), To: time.Unix(1_550_000_010, 0)}, 5},
	} {
		found, after := 0, ""
		for calls := 1; ; calls++ {
			list, next, err := s.ListMessages(ctx, q.of, after, 3)
			if err != nil {
				t.Fatal(err)
			}
			found += len(list)
			if next == "" {
				break
			}
			if calls > 200 {
				t.Fatalf("%s: no end", q.what)
			}
			after = next
		}
		if found != q.n {
			t.Errorf("%s: %d messages, want %d", q.what, found, q.n)
		}
	}
	// The 30 old ones lie before the others.
	list, next, err := s.ListMessages(ctx, history.MessageQuery{ClientID: "own"}, "", 0)
	if err != nil || len(list) != 0 || next == "" {
		t.Errorf("the first call gives %d messages, next %q, %v: it looked at more than 10", len(list), next, err)
	}
}

// What the server lets through is what matches.
func TestTopicPattern(t *testing.T) {
	t.Parallel()
	for filter, want := range map[string]string{
		"#": "^", "a/#": `^a(/|$)`, "+": `^[^/]*$`, "a/+/b": `^a/[^/]*/b$`, "/+": `^/[^/]*$`, "a.b/+": `^a\.b/[^/]*$`, "+/#": `^[^/]*(/|$)`, "/#": `^(/|$)`,
	} {
		if got := topicPattern(filter); got != want {
			t.Errorf("%q makes %q, want %q", filter, got, want)
		}
	}
}
