package deps

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// layer is a room and the rooms that its code may import.
type layer struct {
	room  string
	may   []string // rooms; every room may import itself
	tests []string // rooms that its tests may import as well
	why   string
}

// layers is the picture of DESIGN.md: imports go down only. A package that is in none of these rooms has no place yet.
var layers = []layer{
	{"schema", nil, nil, "what is recorded is known to all and knows nobody"},
	{"store/history", []string{"schema"}, nil, "what records tell people knows no store"},
	{"store", []string{"schema", "store/history"}, nil, "the contract speaks of recorded things and of no implementation"},
	{"store/storetest", []string{"schema", "store", "store/history"}, nil, "the suite knows the contract only, so that it is the same for every store"},
	{"store/embedded", []string{"schema", "store", "store/history"}, []string{"store/storetest"}, "a store knows the contract and no other store"},
	{"store/mongo", []string{"schema", "store", "store/history", "store/mongo/lane"}, []string{"store/storetest", "integration/mongod"}, "a store knows the contract and no other store"},
	{"store/mongo/lane", []string{"schema", "store"}, []string{"internal/seeds"}, "what happens to lanes is decided here and done in store/mongo: no driver, so that a simulation can drive it"},
	{"wire", []string{"schema"}, nil, "bytes on the network know nothing of storage"},
	{"fanout", []string{"schema", "store"}, []string{"store/storetest", "store/embedded"}, "the hub does not know replay: the broker hands Attach to replay as a function"},
	{"replay", []string{"schema", "store"}, []string{"store/storetest", "store/embedded"}, "replay does not know the hub: the broker hands Attach to it as a function"},
	{
		"broker",
		[]string{"schema", "store", "wire", "fanout", "replay", "broker/session", "broker/group"},
		[]string{"store/storetest", "store/embedded"},
		"the broker knows MQTT and the contract, but no store: which one it gets is decided in cmd",
	},
	{
		"broker/session",
		[]string{"schema", "store"},
		[]string{"store/storetest", "internal/seeds"},
		"the protocol core decides and does nothing: no network, no store, so that a simulation can drive it",
	},
	{
		"broker/group",
		[]string{"schema", "store", "broker/session"},
		[]string{"store/storetest", "internal/seeds"},
		"a group decides and does nothing, as the protocol core",
	},
	{
		"cmd",
		[]string{"schema", "store", "store/history", "store/embedded", "store/mongo", "wire", "fanout", "replay", "broker"},
		[]string{"store/storetest"},
		"cmd puts everything together, and the tests' tools have no place in the program",
	},
	{
		"integration",
		[]string{"schema", "store", "store/embedded", "store/mongo", "integration", "integration/mongod"},
		[]string{"wire", "cmd"},
		"integration looks from outside, at processes and at what they stored",
	},
	{"integration/mongod", nil, nil, "starting a mongod has nothing to do with the broker"},
	{"bench", nil, []string{"schema", "store", "store/embedded", "store/mongo", "wire", "fanout", "replay", "broker", "integration/mongod"}, "measurements are tests"},
	{"deploy", nil, []string{"integration/mongod"}, "it looks at files and at processes from outside"},
	{"docs/examples", nil, nil, "an example stands alone, as in its reader's program"},
	{"internal/deps", nil, nil, "the rules know nobody"},
	{"internal/conformance", nil, nil, "it reads sources as text"},
	{"internal/holes", nil, nil, "it reads sources as text"},
	{"internal/field", nil, nil, "it reads sources as text"},
	{"internal/seeds", nil, nil, "it runs simulations and does not know what they play"},
}

// fence says who may import something from outside the module.
type fence struct {
	what  string   // import path, with everything below it
	rooms []string // who may
	tests []string // whose tests may as well; "*" is everybody's
	why   string
}

var fences = []fence{
	{"github.com/mochi-mqtt", []string{"wire"}, nil, "its codec has known faults, which wire contains; its engine loses messages"},
	{"go.mongodb.org", []string{"store/mongo", "cmd", "integration", "docs/examples"}, []string{"bench", "deploy"}, "only a store may know its database"},
	{"github.com/cockroachdb", []string{"store/embedded"}, []string{"bench", "integration", "broker"}, "only a store may know its engine"},
	{"github.com/eclipse/paho.golang", []string{"cmd"}, []string{"*"}, "it is the client's side of the protocol"},
	{"github.com/spf13", []string{"cmd"}, nil, "the command line ends in cmd"},
	{"github.com/knadh", []string{"cmd"}, nil, "the configuration is known to cmd alone; packages have options"},
	{"github.com/invopop", []string{"cmd"}, nil, "the configuration is known to cmd alone"},
	{"github.com/schollz", []string{"cmd"}, nil, "progress is shown by commands"},
	{"github.com/prometheus/client_golang/prometheus/promhttp", []string{"cmd"}, nil, "packages have metrics, cmd serves them"},
	{"github.com/rogpeppe", nil, []string{"cmd"}, "it drives command lines in tests"},
	{"pgregory.net/rapid", nil, []string{"*"}, "it makes up inputs for tests"},
	{"go.uber.org/goleak", nil, []string{"*"}, "it looks for leaks in tests"},
	{"github.com/compose-spec", nil, []string{"deploy"}, "it loads docker-compose.yml in tests"},
	{"testing", []string{"store/storetest"}, []string{"*"}, "test code stays out of the program"},
	{"github.com/stretchr", nil, nil, "tests say got and want in plain Go"},
}

// bans are imports that a room must not have, whoever else may.
var bans = []struct {
	room string
	what []string
	why  string
}{
	{"broker/session", []string{"net", "os", "sync", "context", "time/tzdata", "go.uber.org/zap", "github.com/prometheus"}, "the protocol core has no I/O, no goroutines and no clock of its own"},
	{"broker/group", []string{"net", "os", "sync", "context", "time/tzdata", "go.uber.org/zap", "github.com/prometheus"}, "a group has no I/O, no goroutines and no clock of its own"},
	{"store/mongo/lane", []string{"net", "os", "sync", "context", "time/tzdata", "go.uber.org/zap", "github.com/prometheus", "go.mongodb.org"}, "what happens to lanes is decided without I/O, goroutines and a clock"},
	{"schema", []string{"net", "os", "context", "go.uber.org", "github.com", "go.mongodb.org"}, "what is recorded is data: the standard library and tags are enough"},
}

// brokenImports returns every import that a rule forbids, with the reason.
func brokenImports(g graph) []string {
	var broken []string
	for _, path := range slices.Sorted(maps.Keys(g)) {
		p := g[path]
		l, ok := layerOf(path)
		if !ok {
			broken = append(broken, path+" has no place: give it one in the picture of DESIGN.md and in layers")
			continue
		}
		for _, i := range p.Imports {
			broken = append(broken, judge(path, l, i, false)...)
		}
		for _, i := range p.tests() {
			broken = append(broken, judge(path, l, i, true)...)
		}
	}
	return append(broken, reached(g)...)
}

// layerOf returns the innermost room that a package lies in.
func layerOf(path string) (layer, bool) {
	var best layer
	for _, l := range layers {
		if within(path, l.room) && len(l.room) > len(best.room) {
			best = l
		}
	}
	return best, best.room != ""
}

// judge returns what is wrong with one import of a package in the room of l.
func judge(path string, l layer, imported string, test bool) []string {
	var broken []string
	say := func(why string) {
		what := path
		if test {
			what += " (tests)"
		}
		broken = append(broken, fmt.Sprintf("%s imports %s: %s", what, below(imported), why))
	}
	if ours(imported) {
		target, ok := layerOf(below(imported))
		allowed := ok && (target.room == l.room || slices.Contains(l.may, target.room))
		if test {
			allowed = allowed || slices.Contains(l.tests, target.room)
		}
		if !allowed {
			say(l.why)
		}
		return broken
	}
	for _, f := range fences {
		if within(imported, f.what) && !f.lets(path, test) {
			say(f.why)
		}
	}
	for _, b := range bans {
		if !test && within(path, b.room) && withinAny(imported, b.what) {
			say(b.why)
		}
	}
	return broken
}

// lets says whether the fence lets a package through.
func (f fence) lets(path string, test bool) bool {
	if withinAny(path, f.rooms) {
		return true
	}
	return test && (slices.Contains(f.tests, "*") || withinAny(path, f.tests))
}

// reached checks what a package imports without naming it.
func reached(g graph) []string {
	var broken []string
	for path := range g {
		for to := range g.reach(path) {
			switch {
			case strings.HasPrefix(to, "go.mongodb.org") && !withinAny(path, []string{"store/mongo", "cmd", "integration", "docs/examples"}):
				broken = append(broken, path+" reaches the MongoDB driver: only a store may know its database")
			case within(to, "store/storetest") && within(path, "cmd"):
				broken = append(broken, path+" reaches store/storetest: the tests' tools have no place in the program")
			}
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

func TestImports(t *testing.T) {
	t.Parallel()
	g := load(t)
	if len(g) < 10 || g["broker"] == nil {
		t.Fatalf("only %d packages were found", len(g))
	}
	for _, b := range brokenImports(g) {
		t.Error(b)
	}
}

// Each rule is broken once in a made-up graph, and noticed.
func TestImportRulesNotice(t *testing.T) {
	t.Parallel()
	type edge struct {
		from, to string
		test     bool
		want     string // a part of what must be said; empty: nothing
	}
	edges := []edge{
		{"schema", "rewindmq/store", false, "knows nobody"},
		{"schema", "os", false, "is data"},
		{"schema", "strings", false, ""},
		{"store", "rewindmq/schema", false, ""},
		{"store", "rewindmq/store/embedded", false, "no implementation"},
		{"store/storetest", "rewindmq/store/embedded", false, "the suite knows the contract only"},
		{"store/embedded", "rewindmq/store/mongo", false, "no other store"},
		{"store/embedded", "rewindmq/store/storetest", false, "no other store"},
		{"store/embedded", "rewindmq/store/storetest", true, ""},
		{"wire", "rewindmq/store", false, "nothing of storage"},
		{"wire", "github.com/mochi-mqtt/server/v2/packets", false, ""},
		{"broker", "github.com/mochi-mqtt/server/v2/packets", false, "known faults"},
		{"broker", "github.com/mochi-mqtt/server/v2/packets", true, "known faults"},
		{"fanout", "rewindmq/replay", false, "does not know replay"},
		{"fanout", "rewindmq/replay", true, "does not know replay"},
		{"replay", "rewindmq/fanout", false, "does not know the hub"},
		{"broker", "rewindmq/store/embedded", false, "but no store"},
		{"broker", "rewindmq/store/embedded", true, ""},
		{"broker", "rewindmq/cmd/internal/config", false, "but no store"},
		{"broker", "rewindmq/broker/session", false, ""},
		{"broker/session", "rewindmq/wire", false, "decides and does nothing"},
		{"broker/session", "net", false, "no I/O"},
		{"broker/group", "sync", false, "no I/O"},
		{"broker/group", "rewindmq/fanout", false, "decides and does nothing"},
		{"broker/session", "net", true, ""},
		{"broker/session", "sync/atomic", false, "no I/O"},
		{"broker", "go.mongodb.org/mongo-driver/v2/mongo", false, "only a store may know its database"},
		{"store/mongo", "go.mongodb.org/mongo-driver/v2/mongo", false, ""},
		{"store/mongo", "rewindmq/store/mongo/lane", false, ""},
		{"store/mongo/lane", "rewindmq/store", false, ""},
		{"store/mongo/lane", "rewindmq/store/mongo", false, "no driver"},
		{"store/mongo/lane", "go.mongodb.org/mongo-driver/v2/bson", false, "without I/O"},
		{"cmd/rewindmq", "rewindmq/store/mongo/lane", false, "no place in the program"},
		{"replay", "github.com/cockroachdb/pebble/v2", false, "only a store may know its engine"},
		{"broker", "github.com/eclipse/paho.golang/paho", false, "client's side"},
		{"broker", "github.com/eclipse/paho.golang/paho", true, ""},
		{"broker", "github.com/spf13/cobra", false, "command line"},
		{"broker", "github.com/knadh/koanf/v2", false, "packages have options"},
		{"broker", "github.com/prometheus/client_golang/prometheus/promhttp", false, "cmd serves them"},
		{"broker", "github.com/prometheus/client_golang/prometheus", false, ""},
		{"broker", "testing", false, "out of the program"},
		{"broker", "github.com/stretchr/testify/assert", true, "plain Go"},
		{"cmd/rewindmq", "rewindmq/integration", false, "no place in the program"},
		{"cmd/rewindmq", "rewindmq/store/embedded", false, ""},
		{"integration", "rewindmq/broker", false, "from outside"},
		{"helpers", "strings", false, "has no place"},
	}
	for _, e := range edges {
		p := &pkg{ImportPath: module + "/" + e.from}
		if e.test {
			p.TestImports = []string{e.to}
		} else {
			p.Imports = []string{e.to}
		}
		got := strings.Join(brokenImports(graph{e.from: p}), "\n")
		if (e.want == "") != (got == "") || !strings.Contains(got, e.want) {
			t.Errorf("%s imports %s (test: %v): said %q, want %q", e.from, e.to, e.test, got, e.want)
		}
	}

	far := graph{
		"broker":          {Imports: []string{"rewindmq/fanout"}},
		"fanout":          {Imports: []string{"rewindmq/store/mongo"}},
		"store/mongo":     {Imports: []string{"go.mongodb.org/mongo-driver/v2/mongo"}},
		"cmd/rewindmq":    {Imports: []string{"rewindmq/store"}},
		"store":           {Imports: []string{"rewindmq/store/storetest"}},
		"store/storetest": {},
	}
	got := strings.Join(reached(far), "\n")
	for _, want := range []string{"broker reaches the MongoDB driver", "cmd/rewindmq reaches store/storetest"} {
		if !strings.Contains(got, want) {
			t.Errorf("said %q, want %q", got, want)
		}
	}
}
