package storetest

import (
	"errors"
	"slices"
	"sort"

	"rewindmq/schema"
)

func retainedChecks() []item {
	return []item{
		{"Retained/Empty", 0, retainedEmpty},
		{"Retained/R4_AnyOrder", 0, retainedAnyOrder},
		{"Retained/Tombstone", 0, tombstone},
		{"Retained/Checkpoint", 0, checkpoint},
		{"Retained/Content", 0, retainedContent},
		{"Retained/CallerStops", 0, retainedCallerStops},
		{"Retained/Reopen", needsReopen, retainedReopen},
	}
}

// retained loads the projection, and wants it in topic order.
func (c *check) retained() (map[string]*schema.Message, schema.Cursor) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	out := map[string]*schema.Message{}
	last := ""
	at, err := c.s.LoadRetained(ctx, func(m *schema.Message) error {
		if m.Topic <= last {
			c.Errorf("retained: topic %q comes behind %q", m.Topic, last)
		}
		out[m.Topic], last = m, m.Topic
		return nil
	})
	c.must(err, "LoadRetained")
	return out, at
}

func (c *check) storeRetained(at schema.Cursor, msgs ...*schema.Message) {
	c.Helper()
	ctx, cancel := c.wait()
	defer cancel()
	c.must(c.s.StoreRetained(ctx, msgs, at), "StoreRetained")
}

// kept makes a retained message as it stands in the log.
func (c *check) kept(topic, payload string, ts uint64, lane schema.Lane, n uint64) *schema.Message {
	m := c.message("p", topic)
	m.Payload, m.Retain, m.TS, m.Mark = []byte(payload), true, ts, schema.Mark{Lane: lane, N: n}
	return m
}

func (c *check) wantRetained(want map[string]string) {
	c.Helper()
	got, _ := c.retained()
	for topic, payload := range want {
		if m := got[topic]; m == nil || string(m.Payload) != payload {
			c.Errorf("retained %q: %+v, want %q", topic, m, payload)
		}
	}
	for topic, m := range got {
		if _, ok := want[topic]; !ok && len(m.Payload) > 0 {
			c.Errorf("retained %q: %q, want none", topic, m.Payload)
		}
	}
}

func retainedEmpty(c *check) {
	if got, at := c.retained(); len(got) != 0 || !at.IsZero() {
		c.Errorf("an empty store retains %d messages up to %v", len(got), at)
	}
	c.storeRetained(schema.At(1, 4))
	if got, at := c.retained(); len(got) != 0 || !at.Equal(schema.At(1, 4)) {
		c.Errorf("%d messages up to %v", len(got), at)
	}
}

// R4: the larger (ts, lane, n, ID) wins, in whatever order they are stored, also
// a tombstone.
func retainedAnyOrder(c *check) {
	want := map[string]string{}
	for round := range 12 * c.h.Rounds {
		topic := topics[round%len(topics)] + string(rune('a'+round))
		list := []*schema.Message{
			c.kept(topic, "1", 5, 3, 9), c.kept(topic, "2", 6, 1, 1), c.kept(topic, "3", 6, 2, 1),
			c.kept(topic, "4", 6, 2, 2), c.kept(topic, "5", 6, 2, 2),
		}
		if round%3 == 0 {
			list = append(list, c.kept(topic, "", 6, 2, 1<<40)) // a late tombstone
		}
		if round%3 == 1 {
			list = append(list, c.kept(topic, "", 1, 9, 9)) // an early one
		}
		best := list[0]
		for _, m := range list {
			if m.Supersedes(best) {
				best = m
			}
		}
		if want[topic] = string(best.Payload); want[topic] == "" {
			delete(want, topic)
		}
		c.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for part := range slices.Chunk(list, 1+round%4) {
			c.storeRetained(schema.At(1, uint64(round+1)), part...)
		}
	}
	c.wantRetained(want)
	if c.h.Reopen != nil {
		c.reopen()
		c.wantRetained(want)
	}
}

// A cleared topic stays cleared for what was before.
func tombstone(c *check) {
	c.storeRetained(schema.At(1, 5), c.kept("a", "old", 3, 1, 3), c.kept("b", "kept", 4, 1, 4))
	c.storeRetained(schema.At(1, 7), c.kept("a", "", 7, 1, 7))
	c.wantRetained(map[string]string{"b": "kept"})
	c.storeRetained(schema.At(1, 8), c.kept("a", "older", 2, 1, 2)) // a late keeper
	c.wantRetained(map[string]string{"b": "kept"})
	c.storeRetained(schema.At(1, 9), c.kept("a", "new", 9, 1, 9))
	c.wantRetained(map[string]string{"a": "new", "b": "kept"})
}

// The checkpoint moves with the messages, and never promises what was not stored.
func checkpoint(c *check) {
	many := schema.NewCursor(4, []schema.Mark{{Lane: 2, N: 7}, {Lane: 4, N: 0}})
	c.storeRetained(schema.At(1, 3), c.kept("a", "1", 3, 1, 3))
	c.storeRetained(many, c.kept("a", "2", 4, 2, 7))
	got, at := c.retained()
	if !at.Equal(many) || string(got["a"].Payload) != "2" {
		c.Errorf("retained %+v up to %v, want %v", got["a"], at, many)
	}
	c.storeRetained(schema.At(1, 3)) // a late keeper
	if _, at := c.retained(); !many.Covers(at) {
		c.Errorf("the checkpoint %v is beyond %v", at, many)
	}
}

func retainedContent(c *check) {
	m := c.kept("a/ü", "x", 5, 2, 4)
	m.QoS, m.Expiry = 2, created().Add(1e9)
	m.Properties = &schema.Properties{ContentType: "c", User: []schema.UserProperty{{Key: "k", Value: "v"}}}
	want := *m
	c.storeRetained(schema.At(1, 1), m)
	got, _ := c.retained()
	c.wantMessage("retained", got["a/ü"], &want, want.Mark)
	if got["a/ü"].TS != want.TS {
		c.Errorf("ts %d, want %d", got["a/ü"].TS, want.TS)
	}
}

// An error of fn ends the walk and is returned.
func retainedCallerStops(c *check) {
	c.storeRetained(schema.At(1, 1), c.kept("a", "x", 1, 1, 1), c.kept("b", "x", 2, 1, 2), c.kept("c", "x", 3, 1, 3))
	stop, calls := errors.New("stop"), 0
	ctx, cancel := c.wait()
	defer cancel()
	if _, err := c.s.LoadRetained(ctx, func(*schema.Message) error {
		calls++
		return stop
	}); !errors.Is(err, stop) || calls != 1 {
		c.Errorf("fn was called %d times, and LoadRetained gives %v", calls, err)
	}
}

func retainedReopen(c *check) {
	var names []string
	want := map[string]string{}
	for i, t := range topics {
		names = append(names, t)
		want[t] = t
		c.storeRetained(schema.At(1, uint64(i+1)), c.kept(t, t, uint64(i+1), 1, uint64(i+1)))
	}
	sort.Strings(names)
	c.storeRetained(schema.At(1, 20), c.kept(names[0], "", 20, 1, 20))
	delete(want, names[0])
	c.reopen()
	c.wantRetained(want)
	if _, at := c.retained(); !at.Equal(schema.At(1, 20)) {
		c.Errorf("checkpoint %v after Reopen, want %v", at, schema.At(1, 20))
	}
	c.storeRetained(schema.At(1, 21), c.kept(names[0], "old", 5, 1, 5)) // the tombstone is kept too
	c.wantRetained(want)
}
