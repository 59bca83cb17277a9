package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// HTTPOff is the value of http.addr that turns the HTTP server off.
const HTTPOff = "off"

// validate judges what no single value can tell, and brings addresses into their full form.
func (l *Loaded) validate(dev bool) Problems {
	var problems Problems
	c := &l.Config
	report := func(path, value, what, try string) {
		problems = append(problems, Problem{Where: l.origins[path], Path: path, Value: value, What: what, Try: try})
	}
	if len(c.Listen) == 0 || (len(c.Listen) == 1 && c.Listen[0] == "") {
		report("listen", "", "is empty: nobody could connect", "listen: [tcp://:1883]")
	}
	seen := map[string]bool{}
	for i, text := range c.Listen {
		full, what := listener(text)
		switch {
		case what != "":
			report("listen", fmt.Sprintf("%q", text), what, "tcp://:1883 or ws://:8083/mqtt")
			continue
		case seen[full] && !strings.HasSuffix(full, ":0"):
			report("listen", fmt.Sprintf("%q", text), "names one address twice", "remove one of them")
		case dev && !loopback(full[strings.Index(full, "://")+3:]):
			report("listen", fmt.Sprintf("%q", text), "is not on the loopback interface, as --dev demands", "127.0.0.1, or leave --dev out")
		}
		seen[full] = true
		c.Listen[i] = full
	}
	if addr := c.HTTP.Addr; addr != HTTPOff {
		if what := hostPort(addr); what != "" {
			report("http.addr", fmt.Sprintf("%q", addr), what, ":8080, or off")
		} else if dev && !loopback(addr) {
			report("http.addr", fmt.Sprintf("%q", addr), "is not on the loopback interface, as --dev demands", "127.0.0.1:8080, or leave --dev out")
		}
	}
	switch u := c.Store.URL; {
	case u == Embedded:
	case strings.HasPrefix(u, "mongodb://"), strings.HasPrefix(u, "mongodb+srv://"):
		if hostless(u) {
			report("store.url", Redact(u), "names no host", "mongodb://host1,host2,host3/?replicaSet=NAME")
		}
	default:
		report("store.url", Redact(u), "names no store", "embedded, or mongodb://host1,host2,host3/?replicaSet=NAME")
	}
	if c.Store.Data == "" {
		report("store.data", "", "is empty", "./data")
	}
	return problems
}

// hostless tells whether no host stands in a connection string. All else about it is for MongoDB's driver to judge.
func hostless(address string) bool {
	_, rest, _ := strings.Cut(address, "://")
	rest, _, _ = strings.Cut(rest, "?")
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	return rest == "" || rest[0] == '/'
}

// listener returns the full form of a listener's address, or what is wrong with it.
func listener(text string) (full, what string) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = "tcp", text
	}
	switch scheme {
	case "tcp", "ws":
	case "tls", "ssl", "mqtts", "wss", "quic", "unix":
		return "", "asks for " + scheme + ", which is not in this build yet"
	default:
		return "", "has a scheme that is not known"
	}
	addr, path, hasPath := strings.Cut(rest, "/")
	if scheme == "tcp" && hasPath {
		return "", "has a path, which only ws:// takes"
	}
	if what := hostPort(addr); what != "" {
		return "", what
	}
	if scheme == "ws" && path != "" {
		return scheme + "://" + addr + "/" + path, ""
	}
	return scheme + "://" + addr, ""
}

func hostPort(addr string) (what string) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "is not host:port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Sprintf("has no port from 0 to 65535 but %q", port)
	} else if port != strconv.FormatUint(n, 10) {
		return fmt.Sprintf("has a port with odd digits, %q", port)
	}
	return ""
}

func loopback(addr string) bool {
	addr, _, _ = strings.Cut(addr, "/")
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
