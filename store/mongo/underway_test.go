package mongo

import (
	"context"
	"errors"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// claiming starts a claim and gives the channel of its answer.
func claiming(s *Store, c store.Claim) <-chan store.Claimed {
	out := make(chan store.Claimed, 1)
	c.Protocol, c.Expiry = 5, schema.NoExpiry
	go func() { out <- s.Claim(context.Background(), []store.Claim{c})[0] }()
	return out
}

// F-24: a claim that waits for the former owner is let come to its end by the next:
// else two devices with one client id, at two nodes, would overtake each other before
// either is served.
func TestF24_ClaimUnderWayEnds(t *testing.T) {
	t.Parallel()
	r, _, a, b := pair(t, func(o *Options) { o.ClaimWait = 20 * time.Second })
	c := r.start()
	first := claim(t, a, "c")
	second := claiming(b, store.Claim{ClientID: "c", At: headOf(t, b)})
	r.until("the claim of B", func(context.Context) bool { return sessionOf(t, b, "c").Epoch > int64(first.Epoch) })
	under := sessionOf(t, b, "c")
	if !under.underWay() {
		t.Fatalf("B is not under way: %+v", under)
	}
	third := claiming(c, store.Claim{ClientID: "c", At: headOf(t, c)})
	if err := rest(context.Background(), 10*waitRest); err != nil {
		t.Fatal(err)
	}
	if d := sessionOf(t, b, "c"); d.Epoch != under.Epoch {
		t.Errorf("C has overtaken B: epoch %d, then %d", under.Epoch, d.Epoch)
	}
	mustWrite(t, a, store.Release{Owner: first.Owner})
	got := answer(t, second)
	if got.Err != nil || !got.Present || !got.Released {
		t.Errorf("B: %+v", got)
	}
	r.until("the claim of C", func(context.Context) bool { return sessionOf(t, b, "c").Epoch > int64(got.Epoch) })
	mustWrite(t, b, store.Release{Owner: got.Owner})
	if got := answer(t, third); got.Err != nil || !got.Present || !got.Released {
		t.Errorf("C: %+v", got)
	}
}

// S13, [MQTT-3.1.2-7]: a claim that does not come to its end is overtaken after a
// while. Its client was never let in, and its will is never published; that of a
// client that was let in is.
func TestClaimUnderWayOvertaken(t *testing.T) {
	t.Parallel()
	_, g, a, b := pair(t, func(o *Options) { o.ClaimWait = 200 * time.Millisecond })
	will := func(topic string) *schema.Will { return &schema.Will{Topic: topic, QoS: 1} }
	first := answer(t, claiming(b, store.Claim{ClientID: "c", At: headOf(t, b), Will: will("first")}))
	if first.Err != nil {
		t.Fatal(first.Err)
	}
	fence := g.hold(command("insert", "publishedMessage"))
	second := claiming(a, store.Claim{ClientID: "c", At: headOf(t, a), Will: will("second")})
	fence.come()
	third := answer(t, claiming(b, store.Claim{ClientID: "c", At: headOf(t, b), Will: will("third")}))
	if third.Err != nil || !third.Present {
		t.Fatalf("%+v", third)
	}
	fence.release()
	if got := answer(t, second); !errors.Is(got.Err, store.ErrSuperseded) {
		t.Errorf("the overtaken one: %+v", got)
	}
	fourth := answer(t, claiming(a, store.Claim{ClientID: "c", At: headOf(t, a)}))
	if fourth.Err != nil {
		t.Fatal(fourth.Err)
	}
	due := map[string]int{}
	for _, wills := range [][]schema.Will{third.Wills, fourth.Wills} {
		for _, w := range wills {
			due[w.Topic]++
		}
	}
	if due["first"] == 0 || due["second"] > 0 || due["third"] == 0 {
		t.Errorf("wills that are due: %v, want first and third", due)
	}
}
