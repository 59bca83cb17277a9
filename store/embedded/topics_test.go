package embedded

import (
	"maps"
	"slices"
	"testing"

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
