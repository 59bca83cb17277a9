package schema

import (
	"strings"
	"testing"
)

// [MQTT-4.8.2-1, MQTT-4.8.2-2].
func TestCutShare(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		filter, plain string
		shared        bool
	}{
		{"$share/g/a", "a", true},
		{"$share/g/a/+/#", "a/+/#", true},
		{"$share/g//a", "/a", true},
		{"$share/g/$x/a", "$x/a", true},
		{"$share/ä b/#", "#", true},
		{"$share/g", "", true},
		{"$share/g/", "", true},
		{"$share//a", "", true},
		{"$share/", "", true},
		{"$share/+/a", "", true},
		{"$share/#/a", "", true},
		{"$share/g#/a", "", true},
		{"$share/g/a#", "", true},
		{"$share/g/a+/b", "", true},
		{"$share/g\x00/b", "", true},
		{"$share/g\xff/b", "", true},
		{"$share/g/" + strings.Repeat("a", 65535), "", true},
		{"$share", "", false},
		{"$shared/g/a", "", false},
		{"a/$share/g", "", false},
	} {
		if plain, shared := CutShare(tt.filter); plain != tt.plain || shared != tt.shared {
			t.Errorf("CutShare(%.30q) = %q, %v", tt.filter, plain, shared)
		}
	}
}

// G4: a record of a group, whose mark may be far ahead or behind, does not move
// the member's own vector; it stands in the flight like any other.
func TestG4_RecordsOfAGroupDoNotAdvance(t *testing.T) {
	t.Parallel()
	c := SessionCursor{After: At(1, 10), Seq: 4}
	shared := rec(5, 1, 1, Mark{1, 900})
	shared.Group, shared.Topic = "$share/g/t", "t"
	runs := map[ID]string{}
	c.Recover([]Delivery{shared, rec(6, 2, 1, Mark{1, 11})}, nil, runs)
	if !c.After.Equal(At(1, 11)) || c.Seq != 6 || len(runs) != 0 {
		t.Errorf("recovered to %v, seq %d, runs %v", c.After, c.Seq, runs)
	}
	wantFlight(t, c, 5, 6)
	if c.Flight[0].Group != shared.Group || c.Flight[1].Group != "" {
		t.Error("the flight does not tell which is a group's")
	}
}
