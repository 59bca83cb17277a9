package schema

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// naiveMatch goes level by level.
func naiveMatch(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	var match func(i int) bool
	match = func(i int) bool {
		switch {
		case i == len(f):
			return i == len(t)
		case f[i] == "#":
			return true
		case i == len(t):
			return false
		case f[i] != "+" && f[i] != t[i]:
			return false
		case i == len(t)-1 && i == len(f)-2 && f[i+1] == "#":
			return true
		}
		return match(i + 1)
	}
	return match(0)
}

func levels(t *rapid.T, label string, from ...string) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom(from), 1, 5).Draw(t, label), "/")
}

func TestMatchIsLevelByLevel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		filter := levels(t, "filter", "", "a", "b", "+", "+", "$s")
		if rapid.Bool().Draw(t, "all below") {
			filter += "/#"
		} else if rapid.IntRange(0, 9).Draw(t, "all") == 0 {
			filter = "#"
		}
		topic := levels(t, "topic", "", "a", "b", "ab", "$s")
		if ValidTopic(topic) != nil || ValidFilter(filter) != nil {
			return // the empty ones
		}
		if got, want := Match(filter, topic), naiveMatch(filter, topic); got != want {
			t.Fatalf("Match(%q, %q) = %v, want %v", filter, topic, got, want)
		}
	})
}

// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1] and the examples of section 4.7 of
// the standard.
func TestMatchTable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/tennis/player1/#", "sport/tennis/player2", false},
		{"sport/tennis/player1/#", "sport/tennis", false},
		{"sport/#", "sport", true},
		{"sport/#", "sport/", true},
		{"sport/#", "sports", false},
		{"sport/#", "/sport", false},
		{"#", "sport", true},
		{"#", "/", true},
		{"#", "a/b/c", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+", "sport", true},
		{"+", "/finance", false},
		{"+", "sport/", false},
		{"+/+", "/finance", true},
		{"+/+", "a/b", true},
		{"+/+", "a", false},
		{"+/+", "a/b/c", false},
		{"/+", "/finance", true},
		{"+/tennis/#", "sport/tennis", true},
		{"+/tennis/#", "sport/tennis/a/b", true},
		{"+/tennis/#", "tennis", false},
		{"sport/+/player1", "sport/tennis/player1", true},
		{"sport/+/player1", "sport/a/b/player1", false},
		{"sport/+/player1", "sport//player1", true},
		{"+/#", "sport", true},
		{"+/#", "/", true},
		{"+/+/#", "sport", false},
		{"+/+/#", "a/b", true},
		{"/#", "/", true},
		{"/#", "a", false},
		{"a", "a", true},
		{"a", "A", false},
		{"a", "a/", false},
		{"a/", "a", false},
		{"a//b", "a//b", true},
		{"a//b", "a/b", false},
		{"ACCOUNTS", "Accounts", false},
		{"Accounts payable", "Accounts payable", true},
		{"#", "$SYS/broker", false},
		{"#", "$SYS", false},
		{"#", "$", false},
		{"+", "$SYS", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"+/#", "$SYS/monitor", false},
		{"$SYS/#", "$SYS/monitor/Clients", true},
		{"$SYS/#", "$SYS", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		{"$SYS/+", "$SYS/a", true},
		{"a/#", "a/$SYS", true},
		{"a/+", "a/$SYS", true},
		{"a/#", "a", true},
		{"#", "a$b", true},
	} {
		if err := ValidFilter(tt.filter); err != nil {
			t.Errorf("ValidFilter(%q) = %v", tt.filter, err)
		}
		if err := ValidTopic(tt.topic); err != nil {
			t.Errorf("ValidTopic(%q) = %v", tt.topic, err)
		}
		if got := Match(tt.filter, tt.topic); got != tt.want {
			t.Errorf("Match(%q, %q) = %v, want %v", tt.filter, tt.topic, got, tt.want)
		}
	}
}

func naiveValidFilter(s string) bool {
	all := strings.Split(s, "/")
	for i, l := range all {
		if strings.Contains(l, "+") && l != "+" || strings.Contains(l, "#") && (l != "#" || i != len(all)-1) {
			return false
		}
	}
	return s != "" && !strings.Contains(s, "\x00")
}

func TestValidFilterIsLevelByLevel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringOfN(rapid.RuneFrom([]rune("a/+#/\x00$ü")), 0, 8, -1).Draw(t, "s")
		if got, want := ValidFilter(s) == nil, naiveValidFilter(s); got != want {
			t.Fatalf("ValidFilter(%q) = %v, want %v", s, got, want)
		}
		if got, want := ValidTopic(s) == nil, s != "" && !strings.ContainsAny(s, "+#\x00"); got != want {
			t.Fatalf("ValidTopic(%q) = %v, want %v", s, got, want)
		}
		if want := wildcards(s); ValidFilter(s) == nil && Wildcard(s) != want {
			t.Fatalf("Wildcard(%q) = %q, want %q", s, Wildcard(s), want)
		}
	})
}

func wildcards(s string) (w string) {
	for _, c := range []string{"+", "#"} {
		if strings.Contains(s, c) {
			w += c
		}
	}
	return w
}

func TestValidTable(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 65535)
	for _, tt := range []struct {
		s             string
		topic, filter bool
	}{
		{"", false, false}, // [MQTT-4.7.3-1]
		{"a", true, true},
		{"/", true, true},
		{"//", true, true},
		{" ", true, true},
		{"a b/ü/漢", true, true},
		{"$SYS/a", true, true},
		{"a\x00b", false, false}, // [MQTT-4.7.3-2]
		{"\x00", false, false},
		{"a\xff", false, false},
		{"\xed\xa0\x80", false, false}, // a surrogate [MQTT-1.5.4-1]
		{"\ufeffa", true, true},        // [MQTT-1.5.4-3]
		{"+", false, true},
		{"#", false, true},
		{"a/+/b", false, true},
		{"a/#", false, true},
		{"+/+/#", false, true},
		{"a+", false, false},
		{"+a", false, false},
		{"a/+b/c", false, false},
		{"a/b+", false, false},
		{"++", false, false},
		{"a#", false, false},
		{"#a", false, false},
		{"a/#/b", false, false},
		{"#/", false, false},
		{"##", false, false},
		{"+#", false, false},
		{"#/+", false, false},
		{long, true, true},
		{long + "x", false, false}, // [MQTT-4.7.3-3]
	} {
		name := tt.s[:min(len(tt.s), 20)]
		if err := ValidTopic(tt.s); (err == nil) != tt.topic || err != nil && !errors.Is(err, ErrTopic) {
			t.Errorf("ValidTopic(%q) = %v, want valid %v", name, err, tt.topic)
		}
		if err := ValidFilter(tt.s); (err == nil) != tt.filter || err != nil && !errors.Is(err, ErrFilter) {
			t.Errorf("ValidFilter(%q) = %v, want valid %v", name, err, tt.filter)
		}
	}
}

func TestWildcard(t *testing.T) {
	t.Parallel()
	for filter, want := range map[string]string{
		"a": "", "a/b": "", "+": "+", "#": "#", "a/#": "#", "+/a": "+", "+/#": "+#", "a/+/b/+": "+", "$SYS/+/#": "+#",
	} {
		if got := Wildcard(filter); got != want {
			t.Errorf("Wildcard(%q) = %q, want %q", filter, got, want)
		}
	}
}
