package integration

import (
	"context"
	"testing"
	"time"

	"rewindmq/integration/mongod"
)

// Item 4, on three members, with two nodes under load: what TestFaultsOfThreeMembers
// and TestFaultsOfTheNetwork do not show. The members' processes are stopped, so
// their sockets stay open and say nothing, for longer than the tail's watchdog, an
// election and an attempt wait: first the primary, which then finds itself deposed;
// then a secondary; then two, so that there is no majority. And the cursors of both
// tails are killed. After each: complete, once, in order.
func TestSilenceOfMembers(t *testing.T) {
	t.Parallel()
	for name, with := range streamings() {
		if name == "lanes" && !soak && !noStreams {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set := ownSet(t, 3)
			a := startOn(t, set.URI(), with)
			b := a.another("n2", with)
			c := faultCrowd(t, a, a.addr, b.addr)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			for range rounds(5) {
				for _, f := range []struct {
					name string
					who  func(primary *mongod.Member) []*mongod.Member
					long time.Duration
				}{
					{"the primary", func(p *mongod.Member) []*mongod.Member { return []*mongod.Member{p} }, 12 * time.Second},
					{"a secondary", func(p *mongod.Member) []*mongod.Member { return others(set, p)[:1] }, 3 * time.Second},
					{"both secondaries", func(p *mongod.Member) []*mongod.Member { return others(set, p) }, 7 * time.Second},
				} {
					c.flows(20)
					p, err := set.Primary(ctx)
					if err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					for _, m := range f.who(p) {
						m.Pause()
					}
					elapse(t, f.long)
					for _, m := range f.who(p) {
						m.Resume()
					}
					c.flows(20)
					t.Logf("%s: 20 acknowledgements %v after it went on", f.name, (time.Since(began) - f.long).Round(time.Millisecond))
				}
				if name == "streams" {
					a.eventually("a cursor of a tail is killed", func() bool { return killCursors(t, a.place.db) > 0 })
					c.flows(20)
				}
			}
			c.finish()
			c.auditShared(a, b)
		})
	}
}

// others gives the members but one.
func others(set *mongod.Set, p *mongod.Member) []*mongod.Member {
	var out []*mongod.Member
	for _, m := range set.Members() {
		if m != p {
			out = append(out, m)
		}
	}
	return out
}
