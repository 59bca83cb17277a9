package lane

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"rewindmq/internal/seeds"
)

// simRule is a rule of DESIGN.md sections 5 to 7 that the simulation can do without.
type simRule struct {
	hole string // HOLES.md, or the section of DESIGN.md
	name string
	// rule is its switch in the machines; 0: it belongs to what is played here.
	rule rule
	// seed fails without it.
	seed uint64
	// kind makes the runs rougher where the rule is needed.
	kind func(*world)
}

var simRules = []simRule{
	{"L1", "giving-up-puts-a-stopper", ruleGiveUp, 10, nil},
	{"L1", "one-transaction-number-after-another", 0, 0, nil},
	{"L1", "a-stopper-that-meets-a-duplicate-looks", ruleStopperDup, 17, nil},
	{"L2", "a-step-down-inside-ok-is-a-doubt", 0, 45, nil},
	{"L3", "only-what-a-majority-has-is-stored", 0, 28, nil},
	{"L4", "a-doubt-is-looked-up", ruleLookUp, 0, nil},
	{"L5", "what-is-behind-a-failure-fails", ruleBehindFails, 12, nil},
	{"L6", "a-lane-is-mine-by-its-key", ruleLaneKey, 23, nil},
	{"L6", "a-lane-is-used-when-a-majority-has-it", ruleLaneMajority, 2, nil},
	{"L6", "the-newest-lane-is-looked-up-by-majority", 0, 739, nil},
	{"L7", "retiring-puts-an-end-first", ruleEndFirst, 0, nil},
	{"L7", "retired-when-a-majority-has-the-end", ruleEndMajority, 23, nil},
	{"L7", "no-writer-goes-on-behind-an-end", ruleEndStops, 71, nil},
	{"L8", "a-woken-node-looks", ruleWakeLooks, 0, roughMoves},
	{"L8", "a-doubt-makes-a-writer-look", ruleDoubtLooks, 0, roughMoves},
	{"L8", "a-foreign-stopper-makes-a-writer-look", ruleMeetLooks, 586, roughMoves},
	{"L8", "a-dead-node-goes-on-under-another-name", ruleReborn, 0, nil},
	{"L11", "a-claim-puts-stoppers", 0, 21, nil},
	{"L11", "a-lane-has-sessions-of-its-name-only", 0, 83, roughLapses},
	// Each of the three is enough: a writer comes to another lane by a doubt, or by
	// a name that it has learnt of.
	{"L12", "a-lane-opened-later-looks", ruleReopenLooks | ruleDoubtLooks | ruleWakeLooks, 159, roughLapses},
	{"S22", "released-when-no-append-is-waiting", 0, 363, roughMoves},
	{"S22", "every-owner-since-the-release", 0, 4475, roughClaims},
	{"L11", "a-stopper-that-stands-is-found", ruleOwnStopper, 3, nil},
	{"L11", "a-stopper-finds-its-place-where-it-goes-in", 0, 388, nil},
	{"Section7", "lane-and-n-are-unique", 0, 0, nil},
	{"Section6", "a-publisher-has-one-lane", 0, 4, nil},
	{"T2", "a-pass-is-one-snapshot", 0, 217, roughPasses},
	{"T3", "the-stream-opens-at-the-pass", 0, 1111, nil},
	{"T4", "an-entry-goes-when-the-lane-was-read", 0, 0, nil},
	{"Section7", "a-gap-leads-back", ruleGap, 218, nil},
	{"Section7", "a-repeat-is-dropped", ruleRepeat, 0, nil},
	{"T12", "silence-leads-back", ruleSilence, 0, nil},
	{"R7", "head-is-behind-a-majority-write", 0, 54, nil},
	{"P1", "a-foreign-mark-moves-no-vector", ruleForeignMark, 40, nil},
	{"P2", "the-same-marks-while-in-doubt", ruleSameMarks, 1, nil},
	{"P2", "an-adoption-in-doubt-is-looked-up", ruleAdoptLooks, 3, nil},
	{"P2", "the-mark-that-was-found-is-in-the-filter", 0, 9, nil},
	{"P5", "a-keeper-ends-the-lanes-before-it", ruleEndBefore, 0, nil},
	{"P5", "what-does-not-match-is-an-error", 0, 18, nil},
	{"L7", "nothing-is-sent-behind-what-retention-may-take", ruleFresh, 145, nil},
	{"R7", "head-is-not-below-a-top", 0, 0, nil},
	{"Section7", "a-pass-stands-at-what-was-taken", rulePassTop, 741, nil},
	{"P6", "a-foreign-n-is-not-the-greatest", 0, 2, nil},
}

// played are the switches of what is played here, by the rule's name.
var played = map[string]string{
	"one-transaction-number-after-another":       "txn",
	"a-step-down-inside-ok-is-a-doubt":           "doubt-189",
	"only-what-a-majority-has-is-stored":         "look-majority",
	"the-newest-lane-is-looked-up-by-majority":   "lane-majority-look",
	"a-claim-puts-stoppers":                      "stopper-claim",
	"a-lane-has-sessions-of-its-name-only":       "owner",
	"released-when-no-append-is-waiting":         "release-appends",
	"every-owner-since-the-release":              "past",
	"a-stopper-finds-its-place-where-it-goes-in": "put-behind",
	"lane-and-n-are-unique":                      "unique",
	"a-publisher-has-one-lane":                   "pinned",
	"a-pass-is-one-snapshot":                     "snapshot-pass",
	"the-stream-opens-at-the-pass":               "stream-at",
	"an-entry-goes-when-the-lane-was-read":       "end-of-pass",
	"head-is-behind-a-majority-write":            "head-write",
	"the-mark-that-was-found-is-in-the-filter":   "found-mark",
	"what-does-not-match-is-an-error":            "upsert",
	"head-is-not-below-a-top":                    "top-head",
	"a-foreign-n-is-not-the-greatest":            "foreign-mark",
}

// roughMoves: clients that leave all the time, writes that are late, tails that
// pass more than they listen.
func roughMoves(w *world) {
	w.kind, w.late, w.cut, w.wild, w.lossy, w.wait = 0, 0.4, 0.08, 0.003, 0.3, 0.8
}

// roughPasses: clients that leave all the time, and slow tails without a stream.
func roughPasses(w *world) {
	w.kind, w.late, w.cut, w.wild, w.lanes, w.wait = 2, 0.05, 0.1, 0.002, 1, 0.8
}

// roughClaims: clients that do not wait for an answer.
func roughClaims(w *world) {
	w.kind, w.late, w.cut, w.wild, w.wait = 3, 0.5, 0.1, 0.003, 0.3
}

// roughLapses: nodes that pause and are declared dead meanwhile.
func roughLapses(w *world) {
	w.kind, w.late, w.cut, w.wild, w.wait, w.hold = 1, 0.3, 0.05, 0.03, 0.9, 6*time.Second
}

// second are the rules that stand behind others, with the reason why nothing misses
// them here.
var second = map[string]string{
	"one-transaction-number-after-another": "a batch stops at its first error, and the first n of one that was given up is taken before anything else is sent: what lands late fails there. The guarded writes of sessions need it (S18: rule txn of broker/session)",
	"a-woken-node-looks":                   "a claimer puts stoppers into the old owner's lanes before its first append, and a lane opened later looks: so the next batch of the woken node looks",
	"a-doubt-makes-a-writer-look":          "as for a woken node: what was claimed elsewhere has a stopper before it",
	"head-is-not-below-a-top":              "the first pass stands at the tops. Without it, what a read from Head counts as trimmed is wrong (TestEmptiedLaneIsKnown of package mongo)",
	"a-keeper-ends-the-lanes-before-it":    "two keepers that adopt at once are in order by the mark that was found, the upsert and the look: a guest's successor is adopted after a majority has the guest. It frees the vectors of the lane",
}

func (r simRule) off() without {
	off := without{rules: r.rule, kind: r.kind}
	if r.rule == 0 {
		off.names = []string{played[r.name]}
	}
	return off
}

func withoutRule(name string) without {
	for _, r := range simRules {
		if r.name == name {
			return r.off()
		}
	}
	panic("simulation: no rule " + name)
}

// TestRuleIsNeeded switches the rules off, one by one: the checkers notice. Where
// the code has changed so that the seed known for a rule does not fail any more,
// another one is looked for.
func TestRuleIsNeeded(t *testing.T) {
	t.Parallel()
	for _, r := range simRules {
		t.Run(r.hole+"_"+r.name, func(t *testing.T) {
			t.Parallel()
			if why := second[r.name]; why != "" {
				t.Skip("not missed: " + why)
			}
			if text, _ := simulate(r.seed, without{kind: r.kind}, false); text != "" {
				t.Fatalf("seed %d fails with all rules on: %s", r.seed, text)
			}
			if text, _ := simulate(r.seed, r.off(), false); text != "" {
				return
			}
			if raceEnabled || testing.Short() {
				t.Skipf("seed %d does not fail without it any more; the long test looks for another", r.seed)
			}
			const enough = 10_000
			found, text, clean := search(0, enough, r.off(), 1)
			if clean {
				t.Fatalf("none of %d seeds fails without it: is it needed?", enough)
			}
			t.Logf("now it is seed %d: %s", found, text)
		})
	}
}

// TestFindRules prints, for each rule, the first seeds that fail without it:
// REWINDMQ_SIM_FIND is how many seeds to look at.
func TestFindRules(t *testing.T) {
	n := seeds.Env("REWINDMQ_SIM_FIND", 0)
	if n == 0 {
		t.Skip("REWINDMQ_SIM_FIND is not set")
	}
	only := os.Getenv("REWINDMQ_SIM_RULES")
	for _, r := range simRules {
		if only == "" && second[r.name] != "" {
			continue
		}
		if only != "" && !slices.Contains(strings.Split(only, ","), r.name) {
			continue
		}
		var found []string
		for from := uint64(0); len(found) < seeds.Env("REWINDMQ_SIM_FOUND", 2); {
			seed, text, ok := search(from, uint64(n), r.off(), 2)
			if ok {
				break
			}
			found = append(found, fmt.Sprintf("%d: %.100s", seed, strings.SplitN(text, "\n", 2)[0]))
			from = seed + 1
		}
		t.Logf("%-4s %-40s %s", r.hole, r.name, strings.Join(found, "\n        "))
	}
}
