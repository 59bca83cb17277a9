package storetest

import (
	"bytes"
	"context"
	"reflect"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

func logChecks() []item {
	return []item{
		{"Log/TailUnderLoad", 0, tailUnderLoad},
		{"Log/TailResumes", 0, tailResumes},
		{"Log/Content", 0, content},
		{"Log/HeadUnderLoad", 0, headUnderLoad},
		{"Log/AnswersInOrder", 0, answersInOrder},
		{"Log/IdempotentTwice", 0, idempotentTwice},
		{"Log/IdempotentAtOnce", 0, idempotentAtOnce},
		{"Log/IdempotentReopen", needsReopen, idempotentReopen},
		{"Log/FailedPublisher", 0, failedPublisher},
		{"Log/FailWhileWaiting", 0, failWhileWaiting},
		{"Log/TooLarge", needsMaxPayload, tooLarge},
		{"Log/L5_StrictFailsBehind", needsMaxPayload, strictFailsBehind},
		{"Log/AppendContextEnds", 0, appendContextEnds},
		{"Log/CallContextEnds", 0, callContextEnds},
		{"Log/DurableUnderLoad", needsReopen, durableUnderLoad},
		{"Log/T14_NumberingGoesOn", needsReopen, numberingGoesOn},
	}
}

// Promises 1 to 3 with appenders at once and a tail that follows them, and a tail
// that reads it all later.
func tailUnderLoad(c *check) {
	l, from := newLoad(), c.head()
	ctx, cancel := c.wait()
	defer cancel()
	t, err := c.s.Tail(ctx, from)
	c.must(err, "Tail")
	c.stored(publisher("first"), c.message("first", "t/1")) // the tail has something to begin with
	names := clients(6)
	each := 60 * c.h.Rounds
	total := len(names)*each + 1
	got := make(chan []store.Event, 1)
	go func() {
		var events []store.Event
		for n := 0; n < total; {
			batch, err := t.Next(ctx)
			if err != nil {
				c.Errorf("Next of a tail after %d of %d messages: %v", n, total, err)
				break
			}
			events = append(events, batch...)
			n += len(messages(batch))
		}
		got <- events
	}()
	c.publish(l, names, each, nil)
	live := <-got
	c.must(t.Close(), "Close of a tail")
	c.wantLog(l, from, live)
	c.wantLog(l, from, c.events(from, c.head()))
	for _, s := range l.all() {
		if s.outcome != store.Stored {
			c.Fatalf("%s was not stored", s.msg.Payload)
		}
	}
}

// A tail opened behind an event yields exactly what comes after it.
func tailResumes(c *check) {
	l, from := newLoad(), c.head()
	c.publish(l, clients(4), 25, nil)
	whole := c.events(from, c.head())
	end := whole[len(whole)-1].H
	for i := range whole {
		if i%7 != 0 && i != len(whole)-1 {
			continue
		}
		rest := messages(c.events(whole[i].H, end))
		want := map[schema.ID]bool{}
		for _, m := range messages(whole[i+1:]) {
			want[m.ID] = true
		}
		for _, m := range rest {
			if !want[m.ID] {
				c.Fatalf("resumed behind event %d: %v again, or unknown", i, m.Mark)
			}
			delete(want, m.ID)
		}
		if len(want) > 0 {
			c.Fatalf("resumed behind event %d: %d messages are missing", i, len(want))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	t, err := c.s.Tail(ctx, end)
	c.must(err, "Tail")
	if got, err := t.Next(ctx); err == nil && len(messages(got)) > 0 {
		c.Errorf("a tail at the end yields %v", got[0].Message.Mark)
	}
	c.must(t.Close(), "Close of a tail")
}

// What comes out is what went in.
func content(c *check) {
	at := c.head()
	msgs := []*schema.Message{
		c.message("p", "t/1"),
		{ID: c.newID(), Topic: "a", ClientID: "p", QoS: 2, Retain: true, Created: created(), Host: "host-1"},
		{ID: c.newID(), Topic: "$x/ü/漢/ /", Payload: bytes.Repeat([]byte{0, 255, 10}, 3000), ClientID: "", Created: created()},
		{
			ID: c.newID(), Topic: "b", Payload: []byte("x"), ClientID: "p", QoS: 1, Created: created(),
			Expiry: created().Add(1500 * time.Millisecond), Host: "h",
			Properties: &schema.Properties{
				PayloadFormat: 1, HasPayloadFormat: true, ContentType: "text/ü", ResponseTopic: "r/1",
				CorrelationData: []byte{0, 1, 255},
				User:            []schema.UserProperty{{Key: "k", Value: "v"}, {Key: "k", Value: "v"}, {Key: "", Value: ""}, {Key: "a", Value: "b"}},
			},
		},
		{ID: c.newID(), Topic: "b", Payload: []byte("{}"), Created: created(), Properties: &schema.Properties{HasPayloadFormat: true}},
		{ID: c.newID(), Topic: "b", Payload: []byte("empty"), Created: created(), Properties: &schema.Properties{EmptyContentType: true, CorrelationData: []byte{}}},
	}
	want := make([]schema.Message, len(msgs))
	for i, m := range msgs {
		want[i] = *again(m)
	}
	marks := c.stored(publisher("p"), msgs...)
	for i, m := range msgs {
		if m.Mark != marks[i] || m.TS == 0 {
			c.Errorf("message %d has mark %v and ts %d after it was stored at %v", i, m.Mark, m.TS, marks[i])
		}
	}
	check := func(from string, got []*schema.Message) {
		c.Helper()
		if len(got) != len(want) {
			c.Fatalf("%s: %d messages, want %d", from, len(got), len(want))
		}
		last := uint64(0)
		for i, m := range got {
			c.wantMessage(from, m, &want[i], marks[i])
			if m.TS <= last {
				c.Errorf("%s: ts %d behind %d", from, m.TS, last)
			}
			last = m.TS
		}
	}
	check("tail", messages(c.events(at, c.head())))
	check("read", c.read(at, c.head(), "#", "$x/#"))
	refs := make([]store.Ref, len(msgs))
	for i := range refs {
		refs[i] = store.Ref{ID: want[i].ID, Mark: marks[i]}
	}
	check("look-up", c.lookup(refs...))
	if c.h.Reopen != nil {
		c.reopen()
		check("read after Reopen", c.read(at, c.head(), "#", "$x/#"))
	}
}

func (c *check) wantMessage(from string, got, want *schema.Message, mark schema.Mark) {
	c.Helper()
	if got == nil {
		c.Fatalf("%s: no message, want %v", from, want.ID)
		return
	}
	g, w := *got, *want
	if g.Mark != mark {
		c.Errorf("%s: %v stands at %v, want %v", from, g.ID, g.Mark, mark)
	}
	if !bytes.Equal(g.Payload, w.Payload) || !g.Created.Equal(w.Created) || !g.Expiry.Equal(w.Expiry) || g.Expiry.IsZero() != w.Expiry.IsZero() {
		c.Errorf("%s: payload %q, created %v, expiry %v; want %q, %v, %v", from, g.Payload, g.Created, g.Expiry, w.Payload, w.Created, w.Expiry)
	}
	g.Mark, g.TS, g.Payload, g.Created, g.Expiry = w.Mark, w.TS, w.Payload, w.Created, w.Expiry
	if !reflect.DeepEqual(g, w) {
		c.Errorf("%s: got %+v (%+v), want %+v (%+v)", from, g, g.Properties, w, w.Properties)
	}
}

// Promise 5: every append that returned before the call is not after it, every
// append that starts after the return is.
func headUnderLoad(c *check) {
	type look struct {
		call, back int64
		at         schema.Cursor
	}
	l := newLoad()
	var looks []look
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case <-quit:
				return
			default:
			}
			ctx, cancel := c.wait()
			k := look{call: l.clock.Add(1)}
			var err error
			k.at, err = c.s.Head(ctx)
			k.back = l.clock.Add(1)
			cancel()
			if err != nil {
				c.Errorf("Head: %v", err)
				return
			}
			if len(looks) < 2000 {
				looks = append(looks, k)
			}
		}
	}()
	c.publish(l, clients(4), 50*c.h.Rounds, nil)
	close(quit)
	<-gone
	one := look{call: l.clock.Add(1), at: c.head()}
	one.back = l.clock.Add(1)
	looks = append(looks, one)
	c.publish(l, clients(1), 3, nil)
	for _, k := range looks {
		for _, s := range l.all() {
			switch {
			case s.outcome != store.Stored:
				c.Fatalf("%s was not stored", s.msg.Payload)
			case s.after < k.call && k.at.After(s.mark):
				c.Fatalf("%v was answered before Head was called, and is after %v", s.mark, k.at)
			case s.before > k.back && !k.at.After(s.mark):
				c.Fatalf("%v was appended after Head had returned, and is not after %v", s.mark, k.at)
			}
		}
	}
}

// Promise 1 under SIGKILL: what was answered as stored, and what a tail had
// yielded, is in the log afterwards, once, where it was said to be.
func durableUnderLoad(c *check) {
	from := c.head()
	ledger := map[string][]*sent{}
	for range 2 * c.h.Rounds {
		l, quit := newLoad(), make(chan struct{})
		ctx, cancel := c.wait()
		t, err := c.s.Tail(ctx, c.head())
		c.must(err, "Tail")
		var seen []*schema.Message
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for {
				batch, err := t.Next(ctx)
				if err != nil {
					return
				}
				for _, m := range messages(batch) {
					seen = append(seen, again(m))
					seen[len(seen)-1].Mark = m.Mark
				}
			}
		}()
		loaded := make(chan struct{})
		go func() {
			defer close(loaded)
			c.publish(l, clients(4), 200*c.h.Rounds, quit)
		}()
		for len(l.all()) < 60+c.rng.IntN(300) {
			select {
			case <-loaded:
			default:
				c.stored(publisher("k"), c.message("k", "t/1")) // some time passes
				continue
			}
			break
		}
		close(quit)
		<-loaded
		next := c.h.Reopen()
		cancel()
		<-gone
		c.s = next
		l.mu.Lock() // a late done of the store that was killed does not write any more
		for name, list := range l.by {
			for _, s := range list {
				k := *s
				ledger[name] = append(ledger[name], &k)
			}
		}
		l.mu.Unlock()
		c.wantDurable(from, ledger, seen)
	}
}

func (c *check) wantDurable(from schema.Cursor, ledger map[string][]*sent, seen []*schema.Message) {
	c.Helper()
	events := c.events(from, c.head())
	byID := map[schema.ID]*schema.Message{}
	for _, m := range messages(events) {
		if byID[m.ID] != nil {
			c.Fatalf("%v is twice in the log, at %v and %v", m.ID, byID[m.ID].Mark, m.Mark)
		}
		byID[m.ID] = m
	}
	for name, list := range ledger {
		c.wantPublisher(name, list, messages(events), byID)
	}
	for _, m := range seen {
		if got := byID[m.ID]; got == nil || got.Mark != m.Mark {
			c.Fatalf("the tail had yielded %v at %v; after SIGKILL the log has %+v", m.ID, m.Mark, got)
		}
	}
}

// T14: after SIGKILL n goes on above every n ever yielded; cursors stay valid.
func numberingGoesOn(c *check) {
	from := c.head()
	c.stored(publisher("p"), c.message("p", "t/1"), c.message("p", "t/2"))
	old := c.head()
	c.reopen()
	now := c.head()
	if !now.Covers(old) {
		c.Errorf("Head went back from %v to %v", old, now)
	}
	m := c.message("p", "t/1")
	mark := c.stored(publisher("p"), m)[0]
	if !old.After(mark) || !now.After(mark) {
		c.Fatalf("a new message at %v is not after %v and %v", mark, old, now)
	}
	if got := messages(c.events(old, c.head())); len(got) != 1 || got[0].ID != m.ID {
		c.Errorf("after the old Head: %d messages", len(got))
	}
	if got := messages(c.events(from, c.head())); len(got) != 3 {
		c.Errorf("after the first Head: %d messages, want 3", len(got))
	}
}
