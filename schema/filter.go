package schema

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// What is wrong with a topic name or a topic filter.
var (
	// ErrTopic is the root of ValidTopic's errors.
	ErrTopic = errors.New("schema: invalid topic name")
	// ErrFilter is the root of ValidFilter's errors.
	ErrFilter = errors.New("schema: invalid topic filter")
)

// ValidTopic tells whether s may be the topic of a message: 1 to 65,535 bytes of
// UTF-8 without U+0000 and without wildcards [MQTT-4.7.3-1, MQTT-4.7.3-2,
// MQTT-4.7.3-3, MQTT-4.7.0-1, MQTT-3.3.2-2].
func ValidTopic(s string) error {
	if s == "" || len(s) > 65535 || strings.ContainsAny(s, "+#\x00") || !utf8.ValidString(s) {
		return ErrTopic
	}
	return nil
}

// ValidFilter tells whether s may be subscribed to: as a topic, with `#` only as
// the whole last level and `+` only as a whole level [MQTT-4.7.1-1,
// MQTT-4.7.1-2].
func ValidFilter(s string) error {
	if s == "" || len(s) > 65535 || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return ErrFilter
	}
	for i := range len(s) {
		switch s[i] {
		case '#':
			if i != len(s)-1 || i > 0 && s[i-1] != '/' {
				return ErrFilter
			}
		case '+':
			if i > 0 && s[i-1] != '/' || i < len(s)-1 && s[i+1] != '/' {
				return ErrFilter
			}
		}
	}
	return nil
}

// Match tells whether a valid filter matches a valid topic. A filter that begins
// with a wildcard does not match a topic that begins with `$` [MQTT-4.7.2-1].
func Match(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true // also the parent level: sport/# matches sport
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !tmore {
			return !fmore || frest == "#"
		}
		if !fmore {
			return false
		}
		filter, topic = frest, trest
	}
}

// Wildcard names the wildcards in a filter as they are stored beside it: "+",
// "#", "+#", or "" for none.
func Wildcard(filter string) string {
	w := ""
	if strings.Contains(filter, "+") {
		w = "+"
	}
	if strings.HasSuffix(filter, "#") {
		w += "#"
	}
	return w
}
