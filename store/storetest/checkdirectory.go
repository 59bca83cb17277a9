package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rewindmq/schema"
	"rewindmq/store"
)

func directoryChecks() []item {
	return []item{
		{"Directory/Pages", 0, directoryPages},
		{"Directory/State", 0, directoryState},
		{"Directory/None", 0, directoryNone},
		{"Directory/Reopen", needsReopen, directoryReopen},
	}
}

func (c *check) list(after string, limit int) []store.SessionInfo {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	got, err := c.s.ListSessions(ctx, after, limit)
	c.must(err, "ListSessions(%q, %d)", after, limit)
	return got
}

func (c *check) look(id string) store.SessionInfo {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	got, err := c.s.LookSession(ctx, id)
	c.must(err, "LookSession(%q)", id)
	return got
}

// odd are client ids that a walk by keys may trip over.
func odd() []string {
	return []string{
		"a", "a b", "a/b", "a\x01", "A", "#", "+", "$SYS", ".", "50%2F", "x.y$z", `"q'`, "line\u2028", "温度-1", "\U0001f321", "caf\u00e9", "cafe\u0301",
		strings.Repeat("x", 300), "$owner", "{}", "0", "zz",
	}
}

// Every session is met once, in the order of the bytes, whatever the pages.
func directoryPages(c *check) {
	if got := c.list("", 0); len(got) != 0 {
		c.Errorf("an empty store lists %+v", got)
	}
	want := odd()
	for i, id := range want {
		got := c.claim(id)
		if i%2 == 0 {
			c.release(got.Owner)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1, 3, len(want), 0, store.MaxSessionPage + 1} {
		var got []string
		after := ""
		for range len(want) + 1 {
			page := c.list(after, limit)
			if limit > 0 && len(page) > limit {
				c.Fatalf("a page of %d sessions, asked for %d", len(page), limit)
			}
			if len(page) == 0 {
				break
			}
			for _, i := range page {
				got = append(got, i.ClientID)
			}
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			c.Errorf("by pages of %d: %.1000q, want %.1000q", limit, got, want)
		}
	}
	// What begins behind a client id that is not there.
	if got := c.list("a0", 1); len(got) != 1 || got[0].ClientID != want[slices.IndexFunc(want, func(id string) bool { return id > "a0" })] {
		c.Errorf("behind %q comes %+v", "a0", got)
	}
}

// What is told of a session is what was claimed and written.
func directoryState(c *check) {
	got := c.ask(store.Claim{ClientID: "c", Expiry: 77, At: c.head()})
	other := c.claim("other")
	c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{c.subscription("b/#", 1), c.subscription("$share/g/a", 2), c.subscription("a", 0)}},
		store.PutSubscriptions{Owner: other.Owner, Subscriptions: []schema.Subscription{c.subscription("o", 1)}},
		store.SaveCursor{Owner: got.Owner, Cursor: schema.SessionCursor{After: c.head(), Seq: 5, Flight: []schema.Flight{
			{Seq: 4, MessageID: c.newID(), Mark: schema.Mark{Lane: 1, N: 1}, PacketID: 1, QoS: 2, Created: created()},
			{Seq: 5, MessageID: c.newID(), Mark: schema.Mark{Lane: 1, N: 2}, PacketID: 2, QoS: 1, Created: created()},
		}}})
	is := func(what string, i store.SessionInfo, o schema.Owner, connected bool, expiry uint32) {
		c.Helper()
		if i.Owner != o || i.Connected != connected || i.Here != connected || i.Expiry != expiry || i.Gone.IsZero() != connected {
			c.Errorf("%s: %+v, want %+v, connected %v, expiry %d", what, i, o, connected, expiry)
		}
	}
	info := c.look("c")
	is("claimed", info, got.Owner, true, 77)
	c.wantFilters("looked at", info.Subscriptions, "$share/g/a", "a", "b/#")
	if info.InFlight != 2 || info.Subscriptions[0].QoS != 2 {
		c.Errorf("%+v, want 2 in flight", info)
	}
	c.write(store.DeleteSubscriptions{Owner: got.Owner, Filters: []string{"a", "$share/g/a"}},
		store.Release{Owner: got.Owner, Expiry: 99, SetExpiry: true})
	info = c.look("c")
	is("released", info, got.Owner, false, 99)
	c.wantFilters("released", info.Subscriptions, "b/#")
	list := c.list("", 10)
	if len(list) != 2 || list[0].ClientID != "c" || list[1].ClientID != "other" {
		c.Fatalf("listed %+v", list)
	}
	is("listed", list[0], got.Owner, false, 99)
	is("listed", list[1], other.Owner, true, forever)
	fresh := c.ask(store.Claim{ClientID: "c", CleanStart: true, Expiry: forever, At: c.head()})
	info = c.look("c")
	is("begun anew", info, fresh.Owner, true, forever)
	if len(info.Subscriptions) > 0 || info.InFlight > 0 {
		c.Errorf("begun anew: %+v has something of the former session", info)
	}
}

// A session that was never there, or has ended, is not.
func directoryNone(c *check) {
	none := func(id string) {
		c.Helper()
		ctx, cancel := c.wait()
		defer cancel()
		if got, err := c.s.LookSession(ctx, id); !errors.Is(err, store.ErrNoSession) {
			c.Errorf("LookSession(%q): %+v, %v; want ErrNoSession", id, got, err)
		}
	}
	none("never")
	clean := c.ask(store.Claim{ClientID: "clean", CleanStart: true, At: c.head()})
	c.claim("clean2")
	if i := c.look("clean"); !i.Connected {
		c.Errorf("a clean session with a connection: %+v", i)
	}
	c.release(clean.Owner)
	none("clean")
	none("clean1")
	if got := c.list("", 0); len(got) != 1 || got[0].ClientID != "clean2" {
		c.Errorf("listed %+v, want the one that goes on", got)
	}
}

// After a SIGKILL the sessions are there, and none is connected here before its client
// is back.
func directoryReopen(c *check) {
	for i := range 3 {
		got := c.claim(fmt.Sprint("c-", i))
		c.write(store.PutSubscriptions{Owner: got.Owner, Subscriptions: []schema.Subscription{c.subscription("a", 1)}})
	}
	c.reopen()
	back := c.claim("c-1")
	for _, i := range c.list("", 0) {
		if i.Here != (i.ClientID == "c-1") {
			c.Errorf("after Reopen: %+v", i)
		}
	}
	if got := c.look("c-1"); got.Owner != back.Owner || len(got.Subscriptions) != 1 {
		c.Errorf("after Reopen: %+v, want %+v", got, back.Owner)
	}
	if n := len(c.list("", 0)); n != 3 {
		c.Errorf("%d sessions after Reopen, want 3", n)
	}
}
