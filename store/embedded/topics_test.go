package embedded

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"rewindmq/schema"
)

// The trie against a linear matcher, with topics that come and go.
func TestCatalogAgainstLinearMatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := newCatalog(1000)
		all := map[string]*topic{}
		for i := range rapid.IntRange(1, 60).Draw(rt, "changes") {
			name := drawTopic(rt)
			if old := all[name]; old != nil {
				if rapid.Bool().Draw(rt, "remove") {
					c.remove(old)
					delete(all, name)
				}
				continue
			}
			all[name] = &topic{id: uint32(i + 1), name: name}
			c.add(all[name])
		}
		filter := drawFilter(rt)
		got := map[uint32]string{}
		c.match(filter, got)
		want := map[uint32]string{}
		for name, tp := range all {
			if schema.Match(filter, name) {
				want[tp.id] = name
			}
		}
		if !maps.Equal(got, want) {
			rt.Fatalf("%q matches %v, want %v", filter, slices.Collect(maps.Values(got)), slices.Collect(maps.Values(want)))
		}
		for name, tp := range all {
			c.remove(tp)
			delete(all, name)
		}
		if len(c.byName)+len(c.byID)+len(c.root.below) != 0 {
			rt.Fatalf("left: %v, %d levels", c.byName, len(c.root.below))
		}
	})
}

// P2: the catalog has had no room, then retention makes some. A topic that comes then, is
// dropped and comes again is found by its name, by a wildcard, and after a start.
func TestTopicComesAgainAfterItsDrop(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	r := start(t, Options{Now: clock.Now, topicLimit: 2, RetainMessages: day})
	days := func(n int) {
		for range n {
			clock.add(day)
			r.inside(func(*committer) error { return nil })
		}
	}
	for _, name := range []string{"t1", "t2", "t3"} {
		r.put(name, name) // the third is beyond the limit
	}
	days(3)
	r.put("x", "x")
	r.housekeep()
	if n, complete := r.topics.size(); n == 2 || complete {
		t.Fatalf("%d topics in memory, complete %t: want room, and that some are missing", n, complete)
	}
	r.put("t4", "first")
	days(3)
	r.put("y", "y")
	r.housekeep()
	after := r.headN()
	r.put("t4", "second")
	head := r.headN()
	for range 2 {
		for _, filter := range []string{"t4", "+"} {
			if got, _ := r.read(after, head, filter); !slices.Equal(got, []string{"second"}) {
				t.Errorf("%s: %q, want the second", filter, got)
			}
		}
		r = r.again()
	}
}

// Invariant: the catalog holds no more levels than levelsPerTopic allows, counts them
// right, and says when names are missing.
func TestCatalogLevels(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newCatalog(rapid.IntRange(1, 20).Draw(t, "limit"))
		var in []*topic
		missing := false
		for i := range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(in) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				k := rapid.IntRange(0, len(in)-1).Draw(t, "which")
				c.remove(in[k])
				in = slices.Delete(in, k, k+1)
			} else {
				x := &topic{id: uint32(i + 1), name: rapid.StringMatching(`[ab](/[ab]?){0,9}`).Draw(t, "name")}
				if c.named(x.name) != nil {
					continue
				}
				c.add(x)
				if c.named(x.name) == x {
					in = append(in, x)
				} else {
					missing = true
				}
			}
			levels := map[string]bool{}
			for _, x := range in {
				parts := strings.Split(x.name, "/")
				for n := range parts {
					levels[strings.Join(parts[:n+1], "/")] = true
				}
			}
			if _, complete := c.size(); c.levels != len(levels) || c.levels > c.limit*levelsPerTopic || complete == missing {
				t.Fatalf("%d levels of %d, complete %t; want %d, missing %t", c.levels, c.limit*levelsPerTopic, complete, len(levels), missing)
			}
		}
	})
}

// What the catalog keeps of a topic is its name, not the packet that it came in.
func TestTopicDoesNotKeepItsPacket(t *testing.T) {
	t.Parallel()
	r := start(t, Options{})
	packet := strings.Repeat("x", 100) + "t/1"
	r.put(packet[100:], "m")
	kept := r.topics.named("t/1")
	if kept == nil || unsafe.StringData(kept.name) == unsafe.StringData(packet[100:]) {
		t.Errorf("the catalog has %+v, which holds the packet", kept)
	}
}
