package mongo

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	driver "go.mongodb.org/mongo-driver/v2/mongo"

	"rewindmq/schema"
	"rewindmq/store"
)

// adopted follows the log until n messages have come.
func adopted(t *testing.T, s *Store, from schema.Cursor, n int) []*schema.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tl, err := s.Tail(ctx, from)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.Close()
	var out []*schema.Message
	for len(out) < n {
		got, err := tl.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d (%v): %v", len(out), n, topicsOf(out), err)
		}
		for _, e := range got {
			if e.Message != nil {
				out = append(out, e.Message)
			}
		}
	}
	return out
}

// P7: a document inserted into `message` by any client is a publish: once, in
// order, whatever marks and times it carries.
func TestP7_InsertIsPublish(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	s := r.start()
	ctx := context.Background()
	from, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := r.db.Collection("message")
	docs := []any{
		bson.D{{Key: "topic", Value: "a"}, {Key: "data", Value: "plain"}},
		bson.D{
			{Key: "topic", Value: "b"},
			{Key: "data", Value: "article"},
			{Key: "clientId", Value: "x"},
			{Key: "qos", Value: 0},
			{Key: "retain", Value: true},
			{Key: "created", Value: time.Now()},
			{Key: "host", Value: "elsewhere"},
		},
		bson.D{{Key: "topic", Value: "c"}, {Key: "data", Value: bson.Binary{Data: []byte{0, 255}}}, {Key: "created", Value: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)}},
		bson.D{{Key: "topic", Value: "d"}, {Key: "data", Value: "copied"}, {Key: "lane", Value: int64(1)<<32 | 77}, {Key: "n", Value: int64(9)}, {Key: "created", Value: time.Now()}},
		bson.D{{Key: "topic", Value: "e"}, {Key: "data", Value: "silly"}, {Key: "ts", Value: bson.Timestamp{T: 1 << 31, I: 1}}, {Key: "created", Value: time.Now()}},
	}
	for _, d := range docs {
		if _, err := c.InsertOne(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]*schema.Message{}
	for _, m := range adopted(t, s, from, len(docs)) {
		if seen[m.Topic] != nil {
			t.Errorf("%q twice", m.Topic)
		}
		seen[m.Topic] = m
	}
	if m := seen["a"]; m == nil || m.QoS != 1 || m.Retain || time.Since(m.Created).Abs() > time.Hour || m.Mark.N == 0 {
		t.Errorf("adopted: %+v", m)
	}
	if m := seen["b"]; m == nil || m.QoS != 0 || !m.Retain || m.ClientID != "x" {
		t.Errorf("adopted: %+v", m)
	}
	if m := seen["c"]; m == nil || time.Since(m.Created).Abs() > time.Hour || len(m.Payload) != 2 {
		t.Errorf("adopted: %+v", m)
	}
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	read, err := s.Read(ctx, from, head, []string{"#"})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	n := 0
	for ; ; n++ {
		if _, err := read.Next(ctx); err != nil {
			break
		}
	}
	if n != len(docs) {
		t.Errorf("%d of %d read back", n, len(docs))
	}
}

// A malformed insert is refused by the database.
func TestValidatorRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.start()
	for name, d := range map[string]bson.D{
		"no topic":     {{Key: "data", Value: "x"}},
		"wildcard":     {{Key: "topic", Value: "a/#"}, {Key: "data", Value: "x"}},
		"zero":         {{Key: "topic", Value: "a\x00b"}, {Key: "data", Value: "x"}},
		"empty":        {{Key: "topic", Value: ""}, {Key: "data", Value: "x"}},
		"no data":      {{Key: "topic", Value: "a"}},
		"number":       {{Key: "topic", Value: "a"}, {Key: "data", Value: 5}},
		"id":           {{Key: "_id", Value: "x"}, {Key: "topic", Value: "a"}, {Key: "data", Value: "x"}},
		"qos":          {{Key: "topic", Value: "a"}, {Key: "data", Value: "x"}, {Key: "qos", Value: 3}},
		"history lane": {{Key: "topic", Value: "a"}, {Key: "data", Value: "x"}, {Key: "lane", Value: int64(0)}, {Key: "n", Value: int64(1)}},
		"too large":    {{Key: "topic", Value: "a"}, {Key: "data", Value: bson.Binary{Data: make([]byte, 9<<20)}}},
	} {
		_, err := r.db.Collection("message").InsertOne(context.Background(), d)
		if !hasCode(err, codeDocumentValidation) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// F-02, P2: ten thousand at once, and a transaction, while the keeper changes.
func TestP2_AdoptionByTwoKeepers(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	a := r.start()
	b := r.start()
	ctx := context.Background()
	from, err := b.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const n = 6000
	var docs []any
	for i := range n {
		docs = append(docs, bson.D{{Key: "topic", Value: "t"}, {Key: "data", Value: fmt.Sprint(i)}})
	}
	c := r.db.Collection("message")
	err = r.db.Client().UseSession(ctx, func(ctx context.Context) error {
		_, err := driver.SessionFromContext(ctx).WithTransaction(ctx, func(ctx context.Context) (any, error) {
			return c.InsertMany(ctx, docs[:500])
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.InsertMany(ctx, docs[500:]); err != nil {
		t.Fatal(err)
	}
	a.kill() // in the middle, with luck
	seen := map[string]bool{}
	marks := map[schema.Mark]bool{}
	for _, m := range adopted(t, b, from, n) {
		if seen[string(m.Payload)] || marks[m.Mark] {
			t.Fatalf("%s at %v twice", m.Payload, m.Mark)
		}
		seen[string(m.Payload)], marks[m.Mark] = true, true
	}
}

// What is there at the first start is history: readable, counted as retained, and
// before every cursor. The sample documents of the original are such.
func TestP4_History(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ctx := context.Background()
	old := time.Date(2020, 5, 1, 10, 0, 0, 0, time.UTC)
	for i := range 3 {
		_, err := r.db.Collection("message").InsertOne(ctx, bson.D{
			{Key: "topic", Value: "/coordinates"},
			{Key: "data", Value: fmt.Sprint(i)},
			{Key: "clientId", Value: "listener:db:local"},
			{Key: "qos", Value: 0},
			{Key: "retain", Value: true},
			{Key: "created", Value: old.Add(time.Duration(i) * time.Second)},
			{Key: "host", Value: "h"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.db.Collection("subscription").InsertOne(ctx, bson.D{
		{Key: "topic", Value: "/local/+/message"}, {Key: "clientId", Value: "c"}, {Key: "wildcard", Value: "+"}, {Key: "qos", Value: 1}, {Key: "created", Value: old},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := r.start()
	var got []string
	if _, err := s.LoadRetained(ctx, func(m *schema.Message) error {
		got = append(got, m.Topic+"="+string(m.Payload))
		return nil
	}); err != nil || len(got) != 1 || got[0] != "/coordinates=2" {
		t.Errorf("retained %q, %v", got, err)
	}
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range follow(ctx, t, s, schema.Cursor{}, head) {
		if e.Message != nil {
			t.Errorf("history is delivered: %+v", e.Message)
		}
	}
	claimed := s.Claim(ctx, []store.Claim{{ClientID: "c", Protocol: 4, Expiry: schema.NoExpiry, At: head}})[0]
	if claimed.Err != nil || !claimed.Present || len(claimed.Subscriptions) != 1 || claimed.Subscriptions[0].Filter != "/local/+/message" {
		t.Errorf("the session of an old subscription: %+v", claimed)
	}
}

func topicsOf(list []*schema.Message) []string {
	var out []string
	for _, m := range list {
		out = append(out, m.Topic)
	}
	return out
}
