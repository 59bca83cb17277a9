package schema

import "strings"

// sharePrefix begins the filter of every shared subscription [MQTT-4.8.2-1].
const sharePrefix = "$share/"

// CutShare tells whether a filter is that of a shared subscription, and gives the
// topic filter behind its "$share/<name>/"; empty: it is not valid. The name has at
// least one character and none of `/`, `+`, `#` [MQTT-4.8.2-1, MQTT-4.8.2-2]; what
// follows is a filter like any other. The whole names the group of those who
// subscribe to it.
func CutShare(filter string) (plain string, shared bool) {
	rest, shared := strings.CutPrefix(filter, sharePrefix)
	if !shared {
		return "", false
	}
	name, plain, _ := strings.Cut(rest, "/")
	if strings.ContainsAny(name, "+#") || len(filter) > 65535 || ValidFilter(name) != nil || ValidFilter(plain) != nil {
		return "", true
	}
	return plain, true
}
