package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// listedSession and listedMessage are what the operator is told.
type listedSession struct {
	Client        string
	Connected     bool
	Subscriptions []struct{ Filter string }
}

type listedMessage struct {
	Topic  string
	Bytes  int
	Text   *string
	Base64 []byte
}

func (m listedMessage) payload() string {
	if m.Text != nil {
		return *m.Text
	}
	return string(m.Base64)
}

const (
	apiSessions = "/api/v1/sessions"
	apiSession  = "/api/v1/session"
	apiRetained = "/api/v1/retained"
)

// operate runs a command that asks this broker, and gives what it prints; it has to end
// with that code.
func (b *broker) operate(code int, args ...string) string {
	b.t.Helper()
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	cmd := exec.Command(program, slices.Insert(slices.Clone(args), at, "--http", b.http)...)
	var out strings.Builder // all of it, and without what is said on standard error
	cmd.Stdout = &out
	p, err := run(cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	if got := p.wait(b.t); got != code {
		b.t.Fatalf("%q: exit code %d, want %d: %s %s", args, got, code, out.String(), p.output())
	}
	return out.String()
}

// operateJSON is operate for what prints JSON.
func operateJSON[T any](b *broker, args ...string) T {
	b.t.Helper()
	var v T
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	out := b.operate(0, slices.Insert(slices.Clone(args), at, "--output", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		b.t.Fatalf("%q: %v: %s", args, err, out)
	}
	return v
}

// apiCall calls the HTTP API, and gives status and body.
func (b *broker) apiCall(method, path string, query url.Values) (int, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://"+b.http+path+"?"+query.Encode(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// expectSessions holds what is listed, by command line and by API, against the client
// ids that there are.
func (b *broker) expectSessions(want []string) {
	b.t.Helper()
	want = slices.Sorted(slices.Values(want))
	ids := func(list []listedSession) (ids []string) {
		for _, s := range list {
			// A clean session of a killed node is there until its lease is over.
			if !strings.HasPrefix(s.Client, "pub-") {
				ids = append(ids, s.Client)
			}
		}
		return ids
	}
	if got := ids(operateJSON[[]listedSession](b, "sessions", "ls")); !slices.Equal(got, want) {
		b.t.Fatalf("the command lists %q, want %q", got, want)
	}
	var page struct{ Sessions []listedSession }
	if _, body := b.apiCall(http.MethodGet, apiSessions, nil); json.Unmarshal([]byte(body), &page) != nil || !slices.Equal(ids(page.Sessions), want) {
		b.t.Fatalf("the API lists %s, want %q", body, want)
	}
	// As text, one line is one session.
	n := 0
	for line := range strings.Lines(b.operate(0, "sessions", "ls")) {
		if !strings.HasPrefix(line, "pub-") {
			n++
		}
	}
	if n != 1+len(want) {
		b.t.Fatalf("%d lines for %d sessions and a head", n, len(want))
	}
}

// endSessions ends each session, in turn by command line and by API, and looks that it
// alone has gone.
func endSessions(t *testing.T, b *broker, ids []string) {
	t.Helper()
	left := slices.Clone(ids)
	b.expectSessions(left)
	for i, id := range ids {
		one := operateJSON[listedSession](b, "sessions", "show", "--", id)
		if one.Client != id || len(one.Subscriptions) != 1 || one.Connected {
			t.Errorf("%q: %+v", id, one)
		}
		if code, body := b.apiCall(http.MethodGet, apiSession, url.Values{"client": {id}}); code != http.StatusOK || !strings.Contains(body, one.Subscriptions[0].Filter) {
			t.Errorf("%q: %d %s", id, code, body)
		}
		if i%2 == 0 {
			b.operate(0, "sessions", "rm", "--", id)
		} else if code, body := b.apiCall(http.MethodDelete, apiSession, url.Values{"client": {id}}); code != http.StatusNoContent {
			t.Errorf("%q: %d %s", id, code, body)
		}
		left = slices.DeleteFunc(left, func(other string) bool { return other == id })
		if i%4 == 0 || len(left) < 2 {
			b.expectSessions(left)
		}
		b.operate(1, "sessions", "show", "--", id)
		b.operate(1, "sessions", "rm", "--", id)
	}
}

// expectRetained holds what the operator is told of retained messages, by command line
// and API, against what was published, and removes each.
func expectRetained(t *testing.T, b *broker, filter string, kept map[string]string) {
	t.Helper()
	list := operateJSON[[]listedMessage](b, "retained", "ls", "--", filter)
	var page struct{ Messages []listedMessage }
	if _, body := b.apiCall(http.MethodGet, apiRetained, url.Values{"filter": {filter}}); json.Unmarshal([]byte(body), &page) != nil {
		t.Errorf("the API says %.300s", body)
	}
	for from, got := range map[string][]listedMessage{"command": list, "API": page.Messages} {
		if len(got) != len(kept) {
			t.Errorf("the %s lists %d retained messages, want %d", from, len(got), len(kept))
		}
		for _, m := range got {
			if text, ok := kept[m.Topic]; !ok || text != m.payload() || m.Bytes != len(text) {
				t.Errorf("the %s has %.60q on %q", from, m.payload(), m.Topic)
			}
		}
	}
	i := 0
	for topic := range kept {
		if i++; i%2 == 0 {
			b.operate(0, "retained", "rm", "--", topic)
		} else if code, body := b.apiCall(http.MethodDelete, apiRetained, url.Values{"topic": {topic}}); code != http.StatusNoContent {
			t.Errorf("%.60q: %d %s", topic, code, body)
		}
		b.operate(1, "retained", "rm", "--", topic)
	}
	if list := operateJSON[[]listedMessage](b, "retained", "ls", "--", filter); len(list) > 0 {
		t.Errorf("%d retained messages are left", len(list))
	}
	fresh := b.open(transient(v311, "fresh"))
	fresh.subscribe(want{filter, 1})
	fresh.ping()
	if len(fresh.inbox) > 0 {
		t.Errorf("%v was to be removed", fresh.inbox)
	}
	fresh.disconnect()
}
