package embedded

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/schema"
	"rewindmq/store"
)

// More groups than the committer keeps in memory: each is read again, and knows its
// claims, also after a power loss; and nothing is left of one that has ended.
func TestManyGroups(t *testing.T) {
	t.Parallel()
	r := start(t, Options{FS: vfs.NewCrashableMem()})
	const n = maxGroups + 200
	name := func(i int) string { return fmt.Sprintf("$share/g%d/t", i) }
	got := r.claim(store.Claim{ClientID: "c", Expiry: schema.NoExpiry})
	r.put("t", "a", "b")
	subs := make([]schema.Subscription, n)
	for i := range subs {
		subs[i] = schema.Subscription{Filter: name(i), QoS: 1, Since: schema.At(1, 0)}
	}
	r.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: subs})
	seq := uint64(0)
	record := func(i int, mark uint64) error {
		seq++
		return r.Record(context.Background(), []schema.Delivery{{
			ID: r.ids.Next(time.Unix(1, 0)), Owner: got.Owner, Seq: seq, Topic: "t", MessageID: schema.ID{11: byte(mark)},
			Mark: schema.Mark{Lane: 1, N: mark}, PacketID: uint16(seq), QoS: 1, Group: name(i),
		}})[0]
	}
	for i := range subs {
		if err := record(i, 1); err != nil {
			t.Fatalf("group %d: %v", i, err)
		}
	}
	r.inside(func(c *committer) error {
		if len(c.groups) > maxGroups {
			t.Errorf("%d groups in memory", len(c.groups))
		}
		return nil
	})
	for _, i := range []int{0, 500, n - 1} {
		if err := record(i, 1); !errors.Is(err, store.ErrClaimed) {
			t.Errorf("a second claim in group %d: %v", i, err)
		}
	}
	r = r.crash(0, 1)
	for _, i := range []int{0, 500, n - 1} {
		g, err := r.OpenGroup(context.Background(), name(i))
		if err != nil || len(g.Claimed) != 1 || len(g.Again) != 1 {
			t.Errorf("group %d after the crash: %+v, %v", i, g, err)
		}
	}
	got = r.claim(store.Claim{ClientID: "c", CleanStart: true})
	for _, prefix := range []byte{keyGroup, keyClaimed, keyAgain} {
		err := r.scan([]byte{prefix}, nil, func(key, _ []byte) error {
			return fmt.Errorf("key %q is left", key)
		})
		if err != nil {
			t.Error(err)
		}
	}
}
