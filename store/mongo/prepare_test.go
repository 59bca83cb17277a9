package mongo

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rewindmq/store"
)

// S-27, S-39: TTLs are changed in place; a wrong index is refused with its name; a
// newer format is refused.
func TestPrepareInPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.o.RetainMessages, r.o.RetainRecords = 0, 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	open := func() error {
		s, err := Open(ctx, r.o)
		if err == nil {
			s.disconnect()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	verify := func(want ...string) {
		t.Helper()
		got, err := Verify(ctx, r.o, 0)
		if err != nil || len(got) != len(want) {
			t.Errorf("verify: %q, %v; want %q", got, err, want)
			return
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("verify: %q, want %q", got[i], want[i])
			}
		}
	}
	verify()
	r.o.RetainMessages = 48 * time.Hour
	verify("message.ttl: TTL differs")
	if err := open(); err != nil {
		t.Fatal(err)
	}
	verify()
	r.o.RetainMessages = -1
	if err := open(); err != nil {
		t.Fatal(err)
	}
	verify()
	if err := r.db.Collection("subscription").Indexes().DropOne(ctx, "topic"); err != nil {
		t.Fatal(err)
	}
	verify("subscription.topic: missing")
	if err := r.db.Collection("session").Indexes().DropOne(ctx, "owner"); err != nil {
		t.Fatal(err)
	}
	err := r.db.RunCommand(ctx, fields("createIndexes", "session", "indexes", bson.A{fields("name", "owner", "key", fields("token", 1))})).Err()
	if err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil || !strings.Contains(err.Error(), "owner of "+r.name+".session") {
		t.Errorf("with a wrong index: %v", err)
	}
	if err := r.db.Collection("session").Indexes().DropOne(ctx, "owner"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.db.Collection("meta").UpdateOne(ctx, fields("_id", "format"), fields("$set", fields("version", 99))); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, store.ErrFormat) {
		t.Errorf("a newer format: %v", err)
	}
}

// Options in the connection string do not weaken a promise.
func TestURIDoesNotWeaken(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	core, logs := observer.New(zap.WarnLevel)
	r.o.Log = zap.New(core)
	r.o.URI += "&w=1&journal=false&readPreference=secondaryPreferred&retryWrites=false&timeoutMS=5000&readConcernLevel=local"
	s := r.start()
	warned := map[string]bool{}
	for _, e := range logs.All() {
		if name, ok := e.ContextMap()["option"].(string); ok {
			warned[name] = true
		}
	}
	for _, name := range []string{"w", "journal", "readPreference", "retryWrites", "timeoutMS", "readConcernLevel"} {
		if !warned[name] {
			t.Errorf("no warning about %s", name)
		}
	}
	if got := appendOne(t, s, &store.Publisher{}, "t"); got.Outcome != store.Stored {
		t.Errorf("append: %+v", got)
	}
}
