package session

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"rewindmq/store/storetest"
)

// coreRules are those of rules.go, by name.
var coreRules = map[string]rule{
	"record-first": ruleRecordFirst, "taken-after": ruleTakenAfter, "merge-empty": ruleMergeEmpty,
	"longest-free": ruleLongestFree, "save-acks": ruleSaveAcks, "drop-record": ruleDropRecord,
	"large-resend": ruleLargeResend, "run-safe": ruleRunSafe, "run-before-save": ruleRunBeforeSave,
	"rec-before-rel": ruleRecBeforeRel, "offer-after": ruleOfferAfter, "since": ruleSince, "before": ruleBefore,
	"save-rise": ruleSaveRise, "run-since": ruleRunSince, "run-waits": ruleRunWaits, "inbound-first": ruleInboundFirst,
	"inbound-again": ruleInboundAgain, "inbound-out": ruleInboundOut, "in-order": ruleInOrder,
	"release-flushed": ruleReleaseFlushed, "release-appends": ruleReleaseAppends, "release-saved": ruleReleaseSaved,
	"fenced-silent": ruleFencedSilent,
}

// adapterRules are those of what the simulation plays itself.
var adapterRules = map[string]adapterRule{
	"txn": ruleTxn, "look": ruleLook, "will-alike": ruleWillAlike,
	"behind-fails": ruleBehindFails, "record-stops": ruleRecordStops, "write-stops": ruleWriteStops,
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
	return b
}

func ruleNames() []string {
	names := slices.Concat(slices.Collect(maps.Keys(coreRules)), slices.Collect(maps.Keys(adapterRules)), slices.Collect(maps.Keys(storetest.Rules())))
	slices.Sort(names)
	return names
}

// TestFindRules prints, for each rule, the first seeds that fail without it:
// REWINDMQ_SIM_FIND is how many seeds to look at.
func TestFindRules(t *testing.T) {
	n := envInt("REWINDMQ_SIM_FIND", 0)
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
		for len(found) < envInt("REWINDMQ_SIM_FOUND", 3) {
			seed, text, ok := search(from, uint64(n), without(name), 2)
			if ok {
				break
			}
			found = append(found, fmt.Sprintf("%d: %.90s", seed, text))
			from = seed + 1
		}
		fmt.Printf("%-16s %s\n", name, strings.Join(found, "\n                 "))
	}
}
