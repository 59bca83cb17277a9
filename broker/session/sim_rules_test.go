package session

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"rewindmq/internal/seeds"
	"rewindmq/store/storetest"
)

// coreRules are those of rules.go, by name.
var coreRules = map[string]rule{
	"record-first": ruleRecordFirst, "taken-after": ruleTakenAfter, "merge-empty": ruleMergeEmpty,
	"longest-free": ruleLongestFree, "save-acks": ruleSaveAcks, "save-receiving": ruleSaveReceiving, "drop-record": ruleDropRecord,
	"large-resend": ruleLargeResend, "run-safe": ruleRunSafe, "run-before-save": ruleRunBeforeSave,
	"rec-before-rel": ruleRecBeforeRel, "offer-after": ruleOfferAfter, "since": ruleSince, "before": ruleBefore,
	"save-rise": ruleSaveRise, "save-drop": ruleSaveDrop, "run-since": ruleRunSince, "run-waits": ruleRunWaits, "inbound-first": ruleInboundFirst,
	"inbound-again": ruleInboundAgain, "inbound-out": ruleInboundOut, "in-order": ruleInOrder,
	"release-flushed": ruleReleaseFlushed, "release-appends": ruleReleaseAppends, "release-saved": ruleReleaseSaved,
	"fenced-silent": ruleFencedSilent,
}

// adapterRules are those of what the simulation plays itself.
var adapterRules = map[string]adapterRule{
	"txn": ruleTxn, "look": ruleLook, "will-alike": ruleWillAlike,
	"behind-fails": ruleBehindFails, "record-stops": ruleRecordStops, "write-stops": ruleWriteStops,
	"begin-at-head": ruleBeginAtHead,
}

func without(name string) broken {
	var b broken
	if r, ok := coreRules[name]; ok {
		b.core = r
	} else if r, ok := adapterRules[name]; ok {
		b.adapter = r
	} else {
		b.model = []string{name}
	}
	b.weather = roughFor[name]
	return b
}

// roughFor makes the runs rougher where a rule is needed, for rules that the usual
// weather seldom needs.
var roughFor = map[string]func(*weather){
	"write-stops":     roughRuns,
	"run-safe":        roughPending,
	"run-since":       roughRuns,
	"retained-marks":  roughRuns,
	"run-id":          roughRuns,
	"past":            roughMoves,
	"stopper":         roughMoves,
	"giveup":          roughClaims,
	"claim-cas":       roughClaims,
	"record-stops":    roughRecords,
	"fenced-silent":   roughRecords,
	"fence":           roughRecords,
	"taken-after":     roughRecords,
	"release-flushed": roughRecords,
	"save-receiving":  roughPending,
	"save-rise":       roughRises,
	"save-drop":       roughMoves,
	"will-guard":      roughWills,
	"txn":             roughWrites,
	"begin-at-head":   roughRecords,
}

func ruleNames() []string {
	names := slices.Concat(slices.Collect(maps.Keys(coreRules)), slices.Collect(maps.Keys(adapterRules)), slices.Collect(maps.Keys(storetest.Rules())))
	slices.Sort(names)
	return names
}

// proofs holds, for each rule, a seed whose run fails without it.
var proofs = map[string]uint64{
	"before":          224,
	"begin-at-head":   3588,
	"behind-fails":    983,
	"claim-cas":       95,
	"claim-token":     10,
	"drop-record":     880,
	"fence":           2827,
	"fenced-silent":   11087,
	"flight-states":   2153,
	"giveup":          2976,
	"guard":           1877,
	"id-settles":      299,
	"idempotent":      7,
	"in-order":        554,
	"inbound-again":   3,
	"inbound-first":   16,
	"inbound-out":     16,
	"large-resend":    286,
	"look":            3323,
	"mark":            1877,
	"merge-empty":     189,
	"offer-after":     122,
	"past":            12791,
	"rec-before-rel":  394,
	"record-first":    1,
	"record-stops":    3477,
	"release-appends": 2142,
	"release-flushed": 902,
	"release-saved":   30,
	"retained-marks":  696,
	"run-before-save": 21,
	"run-id":          696,
	"run-safe":        1814,
	"run-since":       9,
	"run-waits":       114,
	"save-acks":       17,
	"save-rise":       2391,
	"sid":             9,
	"since":           12,
	"stopper":         211,
	"taken-after":     1891,
	"txn":             2000,
	"will-alike":      7,
	"will-guard":      307,
	"will-kept":       107,
	"will-late":       149,
	"write-stops":     236,
}

// directed are the rules that a scenario shows, where no seed does in good time.
var directed = map[string]string{
	"longest-free":   "TestHole_S3_LongestFree",
	"save-drop":      "TestDropAtTheResendIsSavedFirst",
	"save-receiving": "TestSavedWhileReceiving",
}

// unproven are the rules of the Model that this simulation cannot miss, with the
// reason.
var unproven = map[string]string{
	"wait":      "it saves fences, it is not needed to be safe",
	"sub-epoch": "in the Model the guard on the cursor document comes before it; in a store that keeps subscriptions apart it does not",
	"will-id":   "the Model leaves it to store.WillMessage; will-alike is the same rule here",
}

// TestRules switches the rules off, one by one: the checkers notice. A rule that
// nothing misses is not needed. Where the code has changed so that the seed known
// for a rule does not fail any more, another one is looked for.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, name := range ruleNames() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed, ok := proofs[name]
			switch {
			case directed[name] != "":
				t.Skipf("shown by %s", directed[name])
			case unproven[name] != "":
				t.Skipf("not shown: %s", unproven[name])
			case !ok && coreRules[name] == 0 && adapterRules[name] == 0:
				t.Skip("not played by this simulation")
			case !ok:
				t.Fatal("no seed, no scenario: is the rule needed?")
			}
			off := without(name)
			if text, _ := simulate(seed, broken{weather: off.weather}, false, 0); text != "" {
				t.Fatalf("seed %d fails with all rules on: %s", seed, text)
			}
			if text, _ := simulate(seed, off, false, 0); text != "" {
				return
			}
			if raceEnabled || testing.Short() {
				t.Skipf("seed %d does not fail without it any more; the long test looks for another", seed)
			}
			const enough = 20_000
			found, text, clean := search(0, enough, off, 1)
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
	for _, name := range ruleNames() {
		if only != "" && !slices.Contains(strings.Split(only, ","), name) {
			continue
		}
		var found []string
		from := uint64(0)
		for len(found) < seeds.Env("REWINDMQ_SIM_FOUND", 3) {
			seed, text, ok := search(from, uint64(n), without(name), 2)
			if ok {
				break
			}
			found = append(found, fmt.Sprintf("%d: %.90s", seed, text))
			from = seed + 1
		}
		t.Logf("%-16s %s", name, strings.Join(found, "\n                 "))
	}
}
