package fanout

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"rewindmq/schema"
)

func TestTrieMatch(t *testing.T) {
	t.Parallel()
	filters := []string{
		"sport", "sport/#", "sport/+", "sport/tennis/player1", "sport/tennis/player1/#", "sport/tennis/+", "sport/+/player1",
		"+", "#", "+/+", "/+", "/#", "/", "+/tennis/#", "$SYS/#", "$SYS/monitor/+", "+/monitor/Clients", "$SYS", "a//b", "a/+/b", "a//#",
	}
	for topic, want := range map[string][]string{
		"sport":                        {"sport", "sport/#", "+", "#"}, // the parent level too
		"sport/":                       {"sport/#", "sport/+", "#", "+/+"},
		"sport/tennis/player1":         {"sport/#", "sport/tennis/player1", "sport/tennis/player1/#", "sport/tennis/+", "sport/+/player1", "#", "+/tennis/#"},
		"sport/tennis/player1/ranking": {"sport/#", "sport/tennis/player1/#", "#", "+/tennis/#"},
		"/":                            {"+/+", "/+", "/#", "/", "#"},
		"/finance":                     {"+/+", "/+", "/#", "#"},
		"finance":                      {"+", "#"},
		"Sport":                        {"+", "#"}, // [MQTT-4.7.3-4]: nothing is normalized, case counts
		"$SYS":                         {"$SYS/#", "$SYS"},
		"$SYS/monitor/Clients":         {"$SYS/#", "$SYS/monitor/+"}, // [MQTT-4.7.2-1]: not "#", not "+/monitor/Clients"
		"a//b":                         {"a//b", "a/+/b", "a//#", "#"},
		"a/":                           {"+/+", "#", "a//#"},
		"a/$SYS/b":                     {"a/+/b", "#"},
	} {
		tr := NewTrie[string]()
		for _, f := range filters {
			tr.Add(f, f)
			if schema.Match(f, topic) != slices.Contains(want, f) {
				t.Errorf("the table is wrong: %q, %q", f, topic)
			}
		}
		got := tr.Match(topic, nil)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("Match(%q) = %q, want %q", topic, got, want)
		}
	}
}

// pair is what the linear matcher keeps.
type pair struct {
	filter string
	value  int
}

// linear is the stupid matcher.
type linear map[pair]struct{}

func (l linear) match(topic string) []int {
	var out []int
	for p := range l {
		if schema.Match(p.filter, topic) {
			out = append(out, p.value)
		}
	}
	slices.Sort(out)
	return out
}

// check compares a trie with the linear matcher, and looks at its inside.
func check(t rapid.TB, tr *Trie[int], l linear, topics ...string) {
	for _, topic := range topics {
		got := tr.Match(topic, nil)
		slices.Sort(got)
		if want := l.match(topic); !slices.Equal(got, want) {
			t.Fatalf("Match(%q) = %v, want %v", topic, got, want)
		}
	}
	if tr.Len() != len(l) {
		t.Fatalf("Len() = %d, want %d", tr.Len(), len(l))
	}
	if len(l) == 0 && (tr.exact.root.Load() != nil || !tr.root.empty()) {
		t.Fatal("an empty trie holds nodes")
	}
	n := checkTable(t, tr, &tr.exact, true)
	n += checkNode(t, tr, &tr.root)
	if n != len(l) {
		t.Fatalf("%d pairs stand in the trie, want %d", n, len(l))
	}
}

func checkNode(t rapid.TB, tr *Trie[int], n *node[int]) int {
	sum := checkValues(t, &n.here) + checkValues(t, &n.below)
	if p := n.plus.Load(); p != nil {
		if p.empty() {
			t.Fatal("an empty node is left")
		}
		sum += checkNode(t, tr, p)
	}
	return sum + checkTable(t, tr, &n.kids, false)
}

func checkTable(t rapid.TB, tr *Trie[int], tb *table[int], exact bool) (sum int) {
	each(tb, func(n *node[int]) {
		if n.empty() {
			t.Fatalf("the empty node %q is left", n.name)
		}
		if exact && (n.plus.Load() != nil || n.kids.root.Load() != nil || !n.below.empty()) {
			t.Fatalf("the exact filter %q has more than values", n.name)
		}
		sum += checkNode(t, tr, n)
	})
	return sum
}

// each visits a table and checks its counts.
func each(tb *table[int], fn func(*node[int])) {
	b := tb.root.Load()
	if b == nil {
		return
	}
	blocks := []*block[int]{b}
	if b.fan != nil {
		blocks = nil
		for i := range b.fan {
			if s := b.fan[i].Load(); s != nil {
				blocks = append(blocks, s)
			}
		}
	}
	sum := 0
	for _, s := range blocks {
		n, used := 0, 0
		s.each(func(_ uint64, o *node[int]) { n++; fn(o) })
		for i := range s.slots {
			if s.slots[i].node.Load() != nil {
				used++
			}
		}
		if n != s.n || n == 0 || used != s.used || used >= len(s.slots) || len(s.slots) > 16 && n < len(s.slots)/8 {
			panic(fmt.Sprintf("block of %d slots: n %d, want %d; used %d, want %d", len(s.slots), s.n, n, s.used, used))
		}
		sum += n
	}
	if sum != b.n {
		panic(fmt.Sprintf("table: n %d, want %d", b.n, sum))
	}
}

func checkValues(t rapid.TB, s *values[int]) int {
	l := s.list.Load()
	if l == nil {
		return 0
	}
	all := s.appendTo(nil)
	if len(all) != l.len() || len(l.tail) == 0 || len(l.tail) > chunkLen {
		t.Fatalf("list of %d values, %d of them in the tail; len() = %d", len(all), len(l.tail), l.len())
	}
	for i, v := range all {
		if l.find(v) != i {
			t.Fatalf("value %d stands at %d, found at %d", v, i, l.find(v))
		}
	}
	if l.many != nil && len(l.many.index) != len(all) {
		t.Fatalf("index of %d values, want %d", len(l.many.index), len(all))
	}
	return len(all)
}

// levels of filters and topics: few, so that they meet.
var levels = []string{"a", "b", "", "$x", "+", "c"}

func filterGen() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom(levels), 1, 5).Draw(t, "levels")
		if rapid.Bool().Draw(t, "hash") {
			parts = append(parts, "#")
		}
		if rapid.IntRange(0, 20).Draw(t, "all") == 0 {
			parts = []string{"#"}
		}
		return strings.Join(parts, "/")
	}).Filter(func(s string) bool { return schema.ValidFilter(s) == nil })
}

func topicGen() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom(levels), 1, 6).Draw(t, "levels"), "/")
	}).Filter(func(s string) bool { return schema.ValidTopic(s) == nil })
}

func TestTrieAgainstLinear(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tr, l := NewTrie[int](), linear{}
		pairs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) pair {
			return pair{filterGen().Draw(t, "filter"), rapid.IntRange(0, 3).Draw(t, "value")}
		}), 1, 12).Draw(t, "pairs")
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				p := rapid.SampledFrom(pairs).Draw(t, "pair")
				tr.Add(p.filter, p.value)
				l[p] = struct{}{}
			},
			"remove": func(t *rapid.T) {
				p := rapid.SampledFrom(pairs).Draw(t, "pair")
				_, want := l[p]
				delete(l, p)
				if got := tr.Remove(p.filter, p.value); got != want {
					t.Fatalf("Remove(%q, %d) = %v, want %v", p.filter, p.value, got, want)
				}
			},
			"": func(t *rapid.T) { check(t, tr, l, topicGen().Draw(t, "topic")) },
		})
	})
}

// TestTrieLarge goes up and down through the forms of tables and lists.
func TestTrieLarge(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(i int) pair{
		"exact":       func(i int) pair { return pair{fmt.Sprint("dev/", i), i} },
		"children":    func(i int) pair { return pair{fmt.Sprintf("dev/%d/+", i), i} },
		"subscribers": func(i int) pair { return pair{"dev/+/x", i} },
		"hash":        func(i int) pair { return pair{"dev/#", i} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				tr, l := NewTrie[int](), linear{}
				n := rapid.SampledFrom([]int{3, 5, 17, 70, 260, 600}).Draw(t, "n")
				order := rapid.Permutation(indices(n)).Draw(t, "order")
				change := func(i int) {
					p := at(i)
					if _, ok := l[p]; ok {
						delete(l, p)
						if !tr.Remove(p.filter, p.value) {
							t.Fatalf("Remove(%v) = false", p)
						}
						return
					}
					tr.Add(p.filter, p.value)
					l[p] = struct{}{}
				}
				topics := []string{"dev/1", "dev/1/x", "dev", fmt.Sprintf("dev/%d", n-1), fmt.Sprintf("dev/%d/y", n/2)}
				for _, i := range order { // up
					change(i)
				}
				check(t, tr, l, topics...)
				for _, i := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, 2*n).Draw(t, "both") { // to and fro
					change(i)
				}
				check(t, tr, l, topics...)
				for k, i := range order { // down
					if _, ok := l[at(i)]; ok {
						change(i)
					}
					if k%(n/3) == 0 {
						check(t, tr, l, topics...)
					}
				}
				check(t, tr, l, topics...)
			})
		})
	}
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// TestTrieConcurrent: what stands in the trie all the time is found by every
// Match, once, while much comes and goes beside it.
func TestTrieConcurrent(t *testing.T) {
	t.Parallel()
	tr := NewTrie[int]()
	stays := []pair{{"dev/7", 1}, {"dev/+", 2}, {"#", 3}, {"dev/7/#", 4}, {"+/7", 5}}
	for _, p := range stays {
		tr.Add(p.filter, p.value)
	}
	const rounds, width = 20, 700
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for range rounds {
				for _, change := range []func(string, int){tr.Add, func(f string, v int) { tr.Remove(f, v) }} {
					for i := range width {
						change(fmt.Sprint("dev/", i), 1000+w)
						change(fmt.Sprintf("dev/%d/#", i), 1000+w)
						change("dev/+", 1000+w+2*i)
						change(fmt.Sprintf("+/%d", i), 1000+w)
					}
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			var dst []int
			for !stop.Load() {
				dst = tr.Match("dev/7", dst[:0])
				var seen [6]int
				for _, v := range dst {
					if v <= 5 {
						seen[v]++
					}
				}
				if seen != [6]int{0, 1, 1, 1, 1, 1} {
					t.Errorf("values that stay: found %v times", seen)
					return
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	l := linear{}
	for _, p := range stays {
		l[p] = struct{}{}
	}
	check(t, tr, l, "dev/7", "dev/8", "dev/7/x")
}

func TestTrieMatchDoesNotAllocate(t *testing.T) {
	tr := NewTrie[int]()
	for i := range 1000 {
		tr.Add(fmt.Sprintf("a/%d", i), i)
		tr.Add(fmt.Sprintf("a/+/%d", i%10), i)
		tr.Add("a/#", i)
	}
	for _, topic := range []string{"a/7", "a/x/7", "a", strings.Repeat("a/", 15) + "a"} {
		dst := make([]int, 0, 4096)
		if n := testing.AllocsPerRun(100, func() { dst = tr.Match(topic, dst[:0]) }); n != 0 {
			t.Errorf("Match(%q): %v allocations, want 0", topic, n)
		}
		if len(dst) < 1000 {
			t.Errorf("Match(%q): %d values", topic, len(dst))
		}
	}
}

// TestTrieDeep: more levels than a Match has room for on its stack.
func TestTrieDeep(t *testing.T) {
	t.Parallel()
	tr, l := NewTrie[int](), linear{}
	for i := range 64 {
		for v, end := range []string{"/#", "/+", "/x"} {
			p := pair{strings.Repeat("+/", i) + "x" + end, v}
			tr.Add(p.filter, p.value)
			l[p] = struct{}{}
		}
	}
	for i := range 66 {
		check(t, tr, l, strings.Repeat("x/", i)+"x")
	}
	long := strings.Repeat("/", 65534)
	tr.Add(long+"+", 9)
	if got := tr.Match(long, nil); !slices.Contains(got, 9) {
		t.Error("a filter of 65,535 levels is not found")
	}
	if !tr.Remove(long+"+", 9) {
		t.Error("a filter of 65,535 levels is not removed")
	}
	check(t, tr, l, "x/x")
}

// FuzzTrie reads a script: lines of "+filter", "-filter", or "topic".
func FuzzTrie(f *testing.F) {
	f.Add("+a/+\n+a/#\n+#\na/b\n-a/+\na/b\n$SYS/a\n-#\n-a/#\na")
	f.Add("+/\n+//+\n+$SYS/#\n//\n$SYS\n$SYS/")
	f.Add("+a\n+a\n-a\n-a\na")
	f.Fuzz(func(t *testing.T, script string) {
		tr, l := NewTrie[int](), linear{}
		for i, line := range strings.Split(script, "\n") {
			if line == "" {
				continue
			}
			p := pair{line[1:], i % 3}
			switch _, there := l[p]; {
			case line[0] == '+' && schema.ValidFilter(p.filter) == nil:
				tr.Add(p.filter, p.value)
				l[p] = struct{}{}
			case line[0] == '-' && schema.ValidFilter(p.filter) == nil:
				delete(l, p)
				if tr.Remove(p.filter, p.value) != there {
					t.Fatalf("Remove(%q, %d) = %v", p.filter, p.value, !there)
				}
			case schema.ValidTopic(line) == nil:
				check(t, tr, l, line)
			}
		}
		check(t, tr, l)
	})
}
