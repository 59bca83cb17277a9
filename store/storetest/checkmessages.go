package storetest

import (
	"errors"
	"time"

	"rewindmq/schema"
	"rewindmq/store/history"
)

func messageChecks() []item {
	return []item{
		{"Messages/Query", 0, messagesQuery},
		{"Messages/Pages", 0, messagesPages},
		{"Messages/Bytes", 0, messagesBytes},
		{"Messages/Reopen", needsReopen, messagesReopen},
	}
}

// listed walks over all pages of a limit, and counts them.
func (c *check) listed(of history.MessageQuery, limit int) (all []*schema.Message, pages int) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	after := ""
	for range 10_000 {
		list, next, err := c.s.ListMessages(ctx, of, after, limit)
		c.must(err, "ListMessages(%+v, %q, %d)", of, after, limit)
		if limit > 0 && len(list) > limit || len(list) > history.MaxPage {
			c.Fatalf("a page of %d messages, asked for %d", len(list), limit)
		}
		all = append(all, list...)
		if pages++; next == "" {
			return all, pages
		}
		after = next
	}
	c.Fatalf("ListMessages(%+v) has no end", of)
	return nil, 0
}

// wantListed compares what is told with messages, in whatever order.
func (c *check) wantListed(what string, got []*schema.Message, want map[schema.ID]*schema.Message) {
	c.Helper()
	seen := map[schema.ID]bool{}
	for _, g := range got {
		switch w := want[g.ID]; {
		case seen[g.ID]:
			c.Errorf("%s: %v is told twice", what, g.ID)
		case w == nil:
			c.Errorf("%s: %v on %q of %q is told", what, g.ID, g.Topic, g.ClientID)
		default:
			c.wantMessage(what, g, w, w.Mark)
		}
		seen[g.ID] = true
	}
	for id, w := range want {
		if !seen[id] {
			c.Errorf("%s: %v on %q of %q is not told", what, id, w.Topic, w.ClientID)
		}
	}
}

// sixty stores messages of two clients on topics of all kinds, one each minute of an
// hour.
func (c *check) sixty() []*schema.Message {
	topics := []string{"a", "a/b", "a/b/c", "a/x/c", "ab", "a.b", "/a", "$x/a", "a/b)", "a/b\u2028"}
	var all []*schema.Message
	for i := range 60 {
		client := []string{"dev", "de"}[i/len(topics)%2]
		m := c.message(client, topics[i%len(topics)])
		at := created().Add(time.Duration(i) * time.Minute)
		m.ID, m.Created, m.QoS, m.Retain = c.ids.Next(at), at, uint8(i%3), i%7 == 0
		m.Mark = c.stored(publisher(client), m)[0]
		all = append(all, m)
	}
	return all
}

func matching(of history.MessageQuery, all []*schema.Message) map[schema.ID]*schema.Message {
	want := map[schema.ID]*schema.Message{}
	for _, m := range all {
		if of.Match(m) {
			want[m.ID] = m
		}
	}
	return want
}

// All of them, those of a topic, of a filter, of a client, of a time.
func messagesQuery(c *check) {
	if got, _ := c.listed(history.MessageQuery{}, 0); len(got) > 0 {
		c.Errorf("an empty log tells %+v", got)
	}
	all := c.sixty()
	minute := func(n int) time.Time { return created().Add(time.Duration(n) * time.Minute) }
	for _, q := range []struct {
		of history.MessageQuery
		n  int
	}{
		{history.MessageQuery{}, 60},
		{history.MessageQuery{Filter: "#"}, 54},
		{history.MessageQuery{Filter: "a"}, 6},
		{history.MessageQuery{Filter: "a/#"}, 36},
		{history.MessageQuery{Filter: "a/+"}, 18},
		{history.MessageQuery{Filter: "a/+/c"}, 12},
		{history.MessageQuery{Filter: "+"}, 18},
		{history.MessageQuery{Filter: "$x/#"}, 6},
		{history.MessageQuery{Filter: "none"}, 0},
		{history.MessageQuery{Filter: "none/#"}, 0},
		{history.MessageQuery{ClientID: "dev"}, 30},
		{history.MessageQuery{ClientID: "nobody"}, 0},
		{history.MessageQuery{Filter: "a/b", ClientID: "de"}, 3},
		{history.MessageQuery{From: minute(10)}, 50},
		{history.MessageQuery{To: minute(10)}, 10},
		{history.MessageQuery{From: minute(10), To: minute(20)}, 10},
		{history.MessageQuery{From: minute(20), To: minute(20)}, 0},
		{history.MessageQuery{From: minute(60)}, 0},
		{history.MessageQuery{To: time.Unix(-5, 0)}, 0},
		{history.MessageQuery{Filter: "a/#", ClientID: "dev", From: minute(5), To: minute(45)}, 12},
	} {
		want := matching(q.of, all)
		if len(want) != q.n {
			c.Errorf("%+v matches %d messages, want %d", q.of, len(want), q.n)
		}
		for _, limit := range []int{0, 1, 7} {
			got, _ := c.listed(q.of, limit)
			c.wantListed("messages", got, want)
		}
	}
}

// A page is as long as asked for, while there are more.
func messagesPages(c *check) {
	all := c.sixty()
	ctx, cancel := c.wait()
	defer cancel()
	for _, n := range []int{1, 7, 59} {
		list, next, err := c.s.ListMessages(ctx, history.MessageQuery{}, "", n)
		if err != nil || len(list) != n || next == "" {
			c.Errorf("%d of %d messages, next %q, %v; asked for %d", len(list), len(all), next, err, n)
		}
	}
	list, _, err := c.s.ListMessages(ctx, history.MessageQuery{}, "", history.MaxPage+1)
	if err != nil || len(list) != len(all) {
		c.Errorf("%d messages, %v, want all %d", len(list), err, len(all))
	}
	if _, _, err := c.s.ListMessages(ctx, history.MessageQuery{}, "never given", 1); !errors.Is(err, history.ErrPage) {
		c.Errorf("a page that was not given: %v, want ErrPage", err)
	}
}

// Large messages make short pages.
func messagesBytes(c *check) {
	each := 100 << 10
	if c.h.MaxPayload > 0 {
		each = min(each, c.h.MaxPayload)
	}
	many := 2*history.MaxPageBytes/each + 10
	for left := many; left > 0; left -= 10 {
		var batch []*schema.Message
		for range min(left, 10) {
			m := c.message("dev", "t")
			m.Payload = make([]byte, each)
			batch = append(batch, m)
		}
		c.stored(publisher("dev"), batch...)
	}
	if got, pages := c.listed(history.MessageQuery{}, 0); len(got) != many || pages < 3 {
		c.Errorf("%d messages of %d bytes in %d pages, want %d in 3 or more", len(got), each, pages, many)
	}
}

func messagesReopen(c *check) {
	all := c.sixty()
	c.reopen()
	of := history.MessageQuery{Filter: "a/#"}
	got, _ := c.listed(of, 5)
	c.wantListed("after a SIGKILL", got, matching(of, all))
}
