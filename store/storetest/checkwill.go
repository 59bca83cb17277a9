package storetest

import (
	"fmt"
	"reflect"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

func willChecks() []item {
	return []item{
		{"Will/NormalReleaseRemoves", 0, normalReleaseRemoves},
		{"Will/DueAtOnce", 0, willDueAtOnce},
		{"Will/Delay", needsClock, willDelay},
		{"Will/ReturnBeforeDelay", needsClock, returnBeforeDelay},
		{"Will/ReturnAfterDelay", needsClock, returnAfterDelay},
		{"Will/CleanStartPublishesOld", 0, cleanStartPublishesOld},
		{"Will/TakeOver", 0, willAtTakeOver},
		{"Will/SessionEndsBeforeDelay", needsClock, sessionEndsBeforeDelay},
		{"Will/KeepsTheSession", needsClock, willKeepsTheSession},
		{"Will/ConnectedIsNotDue", 0, connectedIsNotDue},
		{"Will/Fields", 0, willFields},
		{"Will/Limit", 0, willLimit},
		{"Will/F14_Reopen", needsReopen, willReopen},
		{"Will/W1_SameMessageReopen", needsReopen, sameMessageReopen},
	}
}

func aWill(topic string, delay uint32) *schema.Will {
	return &schema.Will{Topic: topic, Payload: []byte("gone"), QoS: 1, Delay: delay}
}

// willing claims a session with a will.
func (c *check) willing(id string, expiry, delay uint32) store.Claimed {
	c.Helper()
	return c.ask(store.Claim{ClientID: id, Expiry: expiry, At: c.head(), Will: aWill("will/"+id, delay)})
}

// due gives the due wills by client, and wants each once.
func (c *check) due() map[string]schema.Will {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	list, err := c.s.DueWills(ctx, 1000)
	c.must(err, "DueWills")
	out := map[string]schema.Will{}
	for _, w := range list {
		if _, twice := out[w.ClientID]; twice {
			c.Errorf("%q has two due wills", w.ClientID)
		}
		if !w.Will.Due || w.Will.At.IsZero() || w.Will.Key.IsZero() {
			c.Errorf("a due will of %q: %+v", w.ClientID, w.Will)
		}
		out[w.ClientID] = w.Will
	}
	return out
}

func (c *check) wantDue(what string, ids ...string) {
	c.Helper()
	got := c.due()
	for _, id := range ids {
		if _, ok := got[id]; !ok {
			c.Errorf("%s: the will of %q is not due", what, id)
		}
		delete(got, id)
	}
	for id := range got {
		c.Errorf("%s: the will of %q is due", what, id)
	}
}

// sameWill wants two to make the same message of a will.
func (c *check) sameWill(what string, a, b schema.Will) {
	c.Helper()
	ma, mb := store.WillMessage("c", "h", &a), store.WillMessage("c", "h", &b)
	if ma.ID != mb.ID || !ma.Created.Equal(mb.Created) {
		c.Errorf("%s: %v at %v, and %v at %v", what, ma.ID, ma.Created, mb.ID, mb.Created)
	}
}

// A DISCONNECT 0x00 removes the will [MQTT-3.14.4-3].
func normalReleaseRemoves(c *check) {
	for i, delay := range []uint32{0, 100} {
		id := fmt.Sprint("c", i)
		got := c.willing(id, forever, delay)
		c.write(store.Release{Owner: got.Owner, Normal: true})
		c.wantDue("after a normal release")
		if again := c.ask(store.Claim{ClientID: id, CleanStart: true, At: c.head()}); len(again.Wills) != 0 {
			c.Errorf("after a normal release: %+v", again.Wills)
		}
	}
	if c.h.Clock != nil {
		c.h.Clock(time.Hour)
		c.wantDue("an hour after a normal release")
	}
}

// Without a delay it is due at once, and stays due until it is taken out; each
// time it makes the same message.
func willDueAtOnce(c *check) {
	got := c.willing("c", forever, 0)
	c.release(got.Owner)
	first := c.due()["c"]
	if !first.Due {
		c.Fatalf("the will of c is not due")
	}
	if c.h.Clock != nil {
		c.h.Clock(17 * time.Second)
	}
	c.sameWill("asked again", first, c.due()["c"])
	c.write(store.TakeOutWill{Owner: schema.Owner{ClientID: "c"}, Key: first.Key})
	c.wantDue("taken out")
	c.write(store.TakeOutWill{Owner: schema.Owner{ClientID: "c"}, Key: first.Key}) // again
	next := c.willing("c", forever, 0)
	if len(next.Wills) != 0 {
		c.Errorf("taken out, and given to a claim: %+v", next.Wills)
	}
	c.release(next.Owner)
	if second := c.due()["c"]; second.Key == first.Key {
		c.Errorf("two connections' wills have one key")
	}
}

// Will delay [MQTT-3.1.3-9].
func willDelay(c *check) {
	got := c.willing("c", forever, 100)
	c.h.Clock(time.Hour) // the delay begins with the end of the connection
	c.wantDue("while connected")
	c.release(got.Owner)
	c.h.Clock(99 * time.Second)
	c.wantDue("before the delay is over")
	c.h.Clock(2 * time.Second)
	first := c.due()["c"]
	if !first.Due {
		c.Fatalf("not due after the delay")
	}
	c.h.Clock(time.Hour)
	c.sameWill("an hour later", first, c.due()["c"])
}

// W1: who is back before the delay is over has no will published
// [MQTT-3.1.3-9].
func returnBeforeDelay(c *check) {
	got := c.willing("c", forever, 100)
	c.release(got.Owner)
	c.h.Clock(98 * time.Second)
	next := c.claim("c")
	if len(next.Wills) != 0 {
		c.Errorf("back in time: %+v", next.Wills)
	}
	c.h.Clock(time.Hour)
	c.wantDue("back in time, connected")
	c.release(next.Owner)
	c.h.Clock(time.Hour)
	c.wantDue("back in time, released")
}

func returnAfterDelay(c *check) {
	got := c.willing("c", forever, 100)
	c.release(got.Owner)
	c.h.Clock(101 * time.Second)
	next := c.claim("c")
	if len(next.Wills) != 1 || !next.Present {
		c.Fatalf("back too late: %+v", next)
	}
	c.write(store.TakeOutWill{Owner: next.Owner, Key: next.Wills[0].Key})
	c.release(next.Owner)
	c.wantDue("taken out")
}

// A clean start ends the session: its will is published, delay or not
// [MQTT-3.1.3-9]; so does one that had expiry 0.
func cleanStartPublishesOld(c *check) {
	for i, tt := range []struct {
		expiry, delay   uint32
		released, clean bool
	}{
		{forever, 0, true, true},
		{forever, 1000, true, true},
		{forever, 1000, false, true},
		{0, 1000, false, false},
		{0, 1000, true, false},
	} {
		id := fmt.Sprint("c", i)
		old := c.willing(id, tt.expiry, tt.delay)
		if tt.released {
			c.release(old.Owner)
		}
		next := c.ask(store.Claim{ClientID: id, CleanStart: tt.clean, Expiry: forever, At: c.head(), Will: aWill("new", 0)})
		if len(next.Wills) != 1 || next.Wills[0].Topic != "will/"+id || !next.Wills[0].Due || next.Wills[0].At.IsZero() {
			c.Errorf("%+v: the claim has wills %+v", tt, next.Wills)
			continue
		}
		c.write(store.TakeOutWill{Owner: next.Owner, Key: next.Wills[0].Key})
		c.write(store.Release{Owner: next.Owner, Normal: true})
		c.wantDue("taken out")
	}
}

// A client that comes again while its old connection is there: the old will
// without a delay is published, one with a delay is not [MQTT-3.1.4-3].
func willAtTakeOver(c *check) {
	c.willing("c", forever, 0)
	next := c.willing("c", forever, 50)
	if len(next.Wills) != 1 || next.Wills[0].Topic != "will/c" || next.Wills[0].Delay != 0 || next.Wills[0].At.IsZero() {
		c.Fatalf("taken over: %+v", next.Wills)
	}
	// The claimer is gone before it appended it: whoever comes next finds it.
	third := c.claim("c")
	if len(third.Wills) != 1 {
		c.Fatalf("taken over again: %+v", third.Wills)
	}
	c.sameWill("given to two claims", next.Wills[0], third.Wills[0])
	c.write(store.TakeOutWill{Owner: third.Owner, Key: third.Wills[0].Key})
	if fourth := c.claim("c"); len(fourth.Wills) != 0 {
		c.Errorf("taken out, and one with a delay: %+v", fourth.Wills)
	}
}

// A will is due when the delay is over or the session ends, whichever is first
// [MQTT-3.1.2-8].
func sessionEndsBeforeDelay(c *check) {
	got := c.willing("c", 50, 1000)
	ended := c.willing("zero", 0, 1000)
	back := c.willing("back", 50, 1000)
	c.release(got.Owner)
	c.release(ended.Owner)
	c.release(back.Owner)
	c.wantDue("with expiry 0", "zero")
	c.h.Clock(51 * time.Second)
	c.wantDue("when the session's time is over", "zero", "c", "back")
	next := c.ask(store.Claim{ClientID: "back", Expiry: forever, At: c.head()})
	if next.Present || len(next.Wills) != 1 {
		c.Errorf("back after the end of the session: %+v", next)
	}
}

// A session whose will is not out does not end.
func willKeepsTheSession(c *check) {
	got := c.willing("c", 50, 10)
	c.release(got.Owner)
	c.h.Clock(100 * time.Second)
	c.endAll("before its will is out")
	w := c.due()["c"]
	if !w.Due {
		c.Fatalf("the will is gone")
	}
	c.endAll("before its will is out")
	c.write(store.TakeOutWill{Owner: schema.Owner{ClientID: "c"}, Key: w.Key})
	if ended := c.endAll(); len(ended) != 1 || ended[0].ClientID != "c" {
		c.Errorf("its will is out: %+v", ended)
	}
}

func connectedIsNotDue(c *check) {
	c.willing("c", forever, 0)
	c.wantDue("while connected")
	got := c.claim("c")
	c.wantDue("claimed: the claimer has it")
	c.release(got.Owner)
	c.wantDue("the claimer has let go and not published it", "c")
}

func willFields(c *check) {
	want := schema.Will{
		Topic: "a/b", Payload: []byte{0, 1, 255}, QoS: 2, Retain: true, Delay: 0, Expiry: 77, HasExpiry: true,
		Properties: &schema.Properties{ContentType: "x", CorrelationData: []byte{1}, User: []schema.UserProperty{{Key: "k", Value: "v"}}},
	}
	given := want
	given.Key, given.Epoch, given.Due, given.At = c.newID(), 99, true, created() // set by the store
	got := c.ask(store.Claim{ClientID: "c", Expiry: forever, At: c.head(), Will: &given})
	c.wantDue("while connected")
	c.release(got.Owner)
	w := c.due()["c"]
	if w.Epoch != got.Epoch || w.Key == given.Key {
		c.Errorf("key %v, epoch %d of claim %+v", w.Key, w.Epoch, got.Owner)
	}
	w.Key, w.Epoch, w.At, w.Due = schema.ID{}, 0, time.Time{}, false
	if !reflect.DeepEqual(w, want) {
		c.Errorf("will %+v (%+v), want %+v", w, w.Properties, want)
	}
}

func willLimit(c *check) {
	for i := range 7 {
		c.release(c.willing(fmt.Sprint("c", i), forever, 0).Owner)
	}
	ctx, cancel := c.wait()
	defer cancel()
	for left := 7; left > 0; {
		got, err := c.s.DueWills(ctx, 3)
		c.must(err, "DueWills")
		if len(got) == 0 || len(got) > 3 {
			c.Fatalf("DueWills with limit 3 gives %d, with %d to go", len(got), left)
		}
		for _, w := range got {
			c.write(store.TakeOutWill{Owner: schema.Owner{ClientID: w.ClientID}, Key: w.Will.Key})
		}
		left -= len(got)
	}
	c.wantDue("all are out")
}

// F-14: the wills of connections that SIGKILL cut are published by the next run.
func willReopen(c *check) {
	c.willing("kept", forever, 0)
	c.willing("clean", 0, 0)
	c.willing("delayed", forever, 1000)
	normal := c.willing("normal", forever, 0)
	c.write(store.Release{Owner: normal.Owner, Normal: true})
	c.release(c.willing("released", forever, 0).Owner)
	c.ask(store.Claim{ClientID: "none", Expiry: forever, At: c.head()})
	c.reopen()
	c.wantDue("after Reopen", "kept", "clean", "released")
	w := c.due()["kept"]
	c.write(store.TakeOutWill{Owner: schema.Owner{ClientID: "kept"}, Key: w.Key})
	c.reopen()
	c.wantDue("after another Reopen", "clean", "released")
	if c.h.Clock != nil {
		c.h.Clock(1001 * time.Second)
		c.wantDue("after the delay", "clean", "released", "delayed")
	}
}

// W1: a will that was found due and perhaps appended makes the same message in
// the next run, for the keeper and for a claimer: so it is one in the log.
func sameMessageReopen(c *check) {
	c.release(c.willing("c", forever, 0).Owner)
	first := c.due()["c"]
	c.stored(publisher("c"), store.WillMessage("c", "h", &first))
	from := c.head()
	c.reopen()
	second := c.due()["c"]
	c.sameWill("before and after Reopen", first, second)
	got := c.claim("c")
	if len(got.Wills) != 1 {
		c.Fatalf("claimed with wills %+v", got.Wills)
	}
	c.sameWill("the keeper and a claimer", first, got.Wills[0])
	c.stored(publisher("c"), store.WillMessage("c", "h", &got.Wills[0]))
	if n := len(messages(c.events(from, c.head()))); n != 0 {
		c.Errorf("the will was appended again and is in the log %d times more", n)
	}
}
