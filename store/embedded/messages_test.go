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

// S-26: a call looks at a bounded number of messages; a page without any has a next, until
// the end. Days before the time asked for are not looked at.
func TestMessagesScan(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	const scan, days, each = readChunk, 3, 4 * readChunk
	r := start(t, Options{FS: vfs.NewCrashableMem(), Node: "n", Now: clock.Now, historyScan: scan})
	ids := schema.NewIDSource()
	p := &store.Publisher{Owner: schema.Owner{ClientID: "dev"}}
	var last time.Time
	for day := range days {
		last = clock.Now()
		var msgs []*schema.Message
		for i := range each {
			m := &schema.Message{ID: ids.Next(last), Topic: fmt.Sprint("t/", i%10), ClientID: "dev", Payload: []byte("1,2"), QoS: 1, Created: last}
			if i == each-1 {
				m.ClientID, m.Topic = "rare", "rare"
			}
			msgs = append(msgs, m)
		}
		done := make(chan []store.Appended, 1)
		r.Append(t.Context(), p, msgs, func(a []store.Appended) { done <- a })
		<-done
		if day+1 < days {
			clock.add(24 * time.Hour)
		}
	}
	walk := func(of history.MessageQuery) (found, calls int) {
		after := ""
		for {
			list, next, err := r.ListMessages(t.Context(), of, after, 0)
			if err != nil {
				t.Fatal(err)
			}
			found += len(list)
			if calls++; next == "" {
				return found, calls
			}
			after = next
		}
	}
	for _, q := range []struct {
		of                 history.MessageQuery
		found, least, most int
	}{
		{history.MessageQuery{}, days * each, days * each / scan, days*each/scan + days},
		{history.MessageQuery{ClientID: "rare"}, days, days * each / scan, days*each/scan + days},
		{history.MessageQuery{ClientID: "rare", From: last}, 1, each / scan, each/scan + 1},
		{history.MessageQuery{Filter: "rare"}, days, 1, days * 2}, // by the index of topics
	} {
		if found, calls := walk(q.of); found != q.found || calls < q.least || calls > q.most {
			t.Errorf("%+v: %d messages by %d calls, want %d by %d to %d", q.of, found, calls, q.found, q.least, q.most)
		}
	}
}
