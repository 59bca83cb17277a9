package embedded

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

// A call looks at a bounded number of records; a page without any has a next, until the
// end. Deliveries of days before the message was made are not looked at.
func TestHistoryScan(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{FS: vfs.NewCrashableMem(), Node: "n", Now: clock.Now, historyScan: 10, claimWait: time.Millisecond})
	ids := schema.NewIDSource()
	var made []schema.ID
	const days, sessions = 3, 25
	for day := range days {
		m := ids.Next(clock.Now())
		made = append(made, m)
		for i := range sessions {
			got := r.Claim(t.Context(), []store.Claim{{ClientID: fmt.Sprintf("c%02d", i), Protocol: 5, Expiry: schema.NoExpiry}})[0]
			if got.Err != nil {
				t.Fatal(got.Err)
			}
			d := schema.Delivery{ID: ids.Next(clock.Now()), Owner: got.Owner, Seq: got.Cursor.Seq + 1, MessageID: m, Mark: schema.Mark{Lane: 1, N: 1}, PacketID: 1, QoS: 1, Created: clock.Now()}
			if err := r.Record(t.Context(), []schema.Delivery{d})[0]; err != nil {
				t.Fatal(err)
			}
		}
		if day+1 < days {
			clock.add(24 * time.Hour)
		}
	}
	walk := func(of history.Query) (found, calls int) {
		after := ""
		for {
			list, next, err := r.ListDeliveries(t.Context(), of, after, 5)
			if err != nil || len(list) > 5 {
				t.Fatalf("%d, %v", len(list), err)
			}
			found += len(list)
			if calls++; next == "" {
				return found, calls
			}
			after = next
		}
	}
	if found, calls := walk(history.Query{ClientID: "c13"}); found != days || calls < days*sessions/10 {
		t.Errorf("%d deliveries to a client by %d calls, want %d by as many as ten records a call make", found, calls, days)
	}
	of := history.Query{MessageID: made[days-1], ClientID: "c24"}
	if found, calls := walk(of); found != 1 || calls > sessions/10+2 {
		t.Errorf("%d deliveries of today's message by %d calls: the days before were looked at", found, calls)
	}
	if found, _ := walk(history.Query{MessageID: made[0]}); found != sessions {
		t.Errorf("%d deliveries of the first message, want %d", found, sessions)
	}
}
