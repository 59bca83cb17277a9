package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"rewindmq/broker"
	"rewindmq/cmd/internal/exit"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

// stock is a broker with these sessions and retained messages.
type stock struct {
	sessions []store.SessionInfo
	messages []*schema.Message
	busy     bool
	asked    int
}

func (s *stock) ListSessions(_ context.Context, after string, limit int) ([]store.SessionInfo, error) {
	s.asked++
	var out []store.SessionInfo
	for _, i := range s.sessions {
		if i.ClientID > after && len(out) < limit {
			out = append(out, i)
		}
	}
	return out, nil
}

func (s *stock) find(id string) int {
	return slices.IndexFunc(s.sessions, func(i store.SessionInfo) bool { return i.ClientID == id })
}

func (s *stock) LookSession(_ context.Context, id string) (store.SessionInfo, error) {
	if i := s.find(id); i >= 0 {
		return s.sessions[i], nil
	}
	return store.SessionInfo{}, fmt.Errorf("%w: client %q", store.ErrNoSession, id)
}

func (s *stock) EndSession(ctx context.Context, id string) error {
	if s.busy {
		return broker.ErrBusy
	}
	if _, err := s.LookSession(ctx, id); err != nil {
		return err
	}
	s.sessions = slices.Delete(s.sessions, s.find(id), s.find(id)+1)
	return nil
}

func (s *stock) Retained(_ context.Context, filter, after string, limit int) (out []*schema.Message, next string, err error) {
	for _, m := range s.messages {
		if m.Topic > after && schema.Match(filter, m.Topic) {
			if len(out) == limit {
				return out, out[limit-1].Topic, nil
			}
			out = append(out, m)
		}
	}
	return out, "", nil
}

func (s *stock) ClearRetained(_ context.Context, topic string) error {
	i := slices.IndexFunc(s.messages, func(m *schema.Message) bool { return m.Topic == topic })
	if i < 0 {
		return broker.ErrNotRetained
	}
	s.messages = slices.Delete(s.messages, i, i+1)
	return nil
}

// ListDeliveries gives two to each session, in pages of at most three.
func (s *stock) ListDeliveries(_ context.Context, of history.Query, after string, limit int) (out []history.Delivery, next string, err error) {
	from, err := strconv.Atoi("0" + after)
	if err != nil {
		return nil, "", history.ErrPage
	}
	n := 0
	for _, i := range s.sessions {
		for seq := range uint64(2) {
			d := schema.Delivery{Owner: i.Owner, Seq: seq + 1, Topic: i.ClientID, MessageID: schema.ID{1, byte(seq)}, QoS: 1, Host: "n", Created: time.UnixMilli(1700000000123)}
			if !of.Match(&d) {
				continue
			}
			if n++; n <= from {
				continue
			}
			if len(out) == min(limit, 3) {
				return out, strconv.Itoa(n - 1), nil
			}
			out = append(out, history.Delivery{Delivery: d, State: history.Acknowledged})
		}
	}
	return out, "", nil
}

// ListMessages gives the messages whose index is behind `after`, in pages of at most two.
func (s *stock) ListMessages(_ context.Context, of history.MessageQuery, after string, limit int) (out []*schema.Message, next string, err error) {
	from, err := strconv.Atoi("0" + after)
	if err != nil {
		return nil, "", history.ErrPage
	}
	for i, m := range s.messages {
		if i < from || !of.Match(m) {
			continue
		}
		if len(out) == min(limit, 2) {
			return out, strconv.Itoa(i), nil
		}
		out = append(out, m)
	}
	return out, "", nil
}

func odd() []string {
	return []string{
		"plant/7/pump", "k1|mode=3,sign=sha1,ts=1700000000|", "a b", "50%2F", "$SYS", "x.y$z", `"q'`, "line1\nline2", "温度-1", strings.Repeat("x", 300),
		".", "..", "a&client=b", "a#b", "a?b", "<b>", "\u2028", "+", "a+b", "//", "/", "\ufeff", "caf\u00e9", "cafe\u0301",
	}
}

// F-19: ids go through URL and JSON unchanged, each by itself, whatever the pages.
func TestSessions(t *testing.T) {
	t.Parallel()
	s := &stock{}
	for i, id := range odd() {
		info := store.SessionInfo{Owner: schema.Owner{ClientID: id, SID: uint64(i), Epoch: 1 << 53}, Expiry: schema.NoExpiry, Connected: true, Here: i%2 == 0, InFlight: i}
		if i%3 == 0 {
			info.Connected, info.Here, info.Expiry, info.Gone = false, false, uint32(i), time.UnixMilli(1700000000123)
		}
		info.Subscriptions = []schema.Subscription{{Filter: id, QoS: 1, Identifier: 7}}
		s.sessions = append(s.sessions, info)
	}
	slices.SortFunc(s.sessions, func(a, b store.SessionInfo) int { return strings.Compare(a.ClientID, b.ClientID) })
	web := httptest.NewServer(New(s, s, s))
	defer web.Close()
	c, err := Dial(strings.TrimPrefix(web.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Sorted(slices.Values(odd()))
	var got []string
	if err := c.EachSession(t.Context(), func(s Session) error { got = append(got, s.Client); return nil }); err != nil || !slices.Equal(got, want) {
		t.Errorf("listed %q, %v; want %q", got, err, want)
	}
	got = nil
	err = eachPage(t.Context(), c, SessionsPath, url.Values{"limit": {"5"}}, func(p *sessionPage) (string, error) {
		for _, s := range p.Sessions {
			got = append(got, s.Client)
		}
		return p.Next, nil
	})
	if err != nil || !slices.Equal(got, want) || s.asked < 6 {
		t.Errorf("by pages of 5, asked %d times: %q, %v; want %q", s.asked, got, err, want)
	}
	for i, id := range odd() {
		one, err := c.Session(t.Context(), id)
		if err != nil || one.Client != id || len(one.Subscriptions) != 1 || one.Subscriptions[0].Filter != id || *one.InFlight != i || one.SID != uint64(i) {
			t.Errorf("%q: %+v, %v", id, one, err)
		}
		if off := i%3 == 0; off != (one.Gone != nil) || off != (one.Expiry != nil) || one.Connected == off {
			t.Errorf("%q: %+v", id, one)
		}
		if err := c.EndSession(t.Context(), id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
		if err := c.EndSession(t.Context(), id); exit.Of(err) != exit.Failed || err.Error() != "no session of client "+strconv.Quote(id) {
			t.Errorf("%q is ended again: %v", id, err)
		}
		if n := len(odd()) - i - 1; len(s.sessions) != n {
			t.Fatalf("%d sessions are left, want %d", len(s.sessions), n)
		}
	}
	s.busy = true
	if err := c.EndSession(t.Context(), "a"); err == nil || err.Error() != `client "a" is connecting: ask again` {
		t.Errorf("a client that is connecting: %v", err)
	}
	if _, err := c.Session(t.Context(), "a"); err == nil || err.Error() != `no session of client "a"` {
		t.Errorf("no such session: %v", err)
	}
}

// S-36: every delivery is told once, to a client or of a message, whatever the pages.
func TestDeliveries(t *testing.T) {
	t.Parallel()
	s := &stock{}
	for i, id := range odd() {
		s.sessions = append(s.sessions, store.SessionInfo{Owner: schema.Owner{ClientID: id, SID: uint64(i + 1)}})
	}
	web := httptest.NewServer(New(s, s, s))
	defer web.Close()
	c, err := Dial(strings.TrimPrefix(web.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(client, message string) (got []string) {
		err := c.EachDelivery(t.Context(), client, message, func(d Delivery) error {
			got = append(got, fmt.Sprint(d.Client, " ", d.Seq))
			if d.Topic != d.Client || d.State != "acknowledged" || d.Node != "n" || d.Created.UnixMilli() != 1700000000123 {
				t.Errorf("%+v", d)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return got
	}
	var of []string
	for _, id := range odd() {
		if got := list(id, ""); !slices.Equal(got, []string{id + " 1", id + " 2"}) {
			t.Errorf("to %q: %q", id, got)
		}
		of = append(of, id+" 2")
	}
	if got := list("", schema.ID{1, 1}.String()); !slices.Equal(got, of) {
		t.Errorf("of a message: %q, want %q", got, of)
	}
	if got := list(odd()[0], schema.ID{1, 1}.String()); !slices.Equal(got, of[:1]) {
		t.Errorf("of a message to a client: %q", got)
	}
	for _, bad := range []string{"", "?message=x", "?message=" + schema.ID{}.String(), "?client=a&after=x", "?client=a&limit=0"} {
		resp, err := http.Get(web.URL + DeliveriesPath + bad)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
}

// S-26: what is asked for arrives as it is, and what is found, too.
func TestMessages(t *testing.T) {
	t.Parallel()
	s := &stock{}
	ids := schema.NewIDSource()
	at := time.Date(2026, 1, 31, 12, 0, 0, 123e6, time.UTC)
	for i, client := range odd() {
		made := at.Add(time.Duration(i) * time.Hour)
		s.messages = append(s.messages, &schema.Message{
			ID: ids.Next(made), Topic: "t/" + strconv.Itoa(i%3), Payload: []byte([]string{"1,2", "\xff\x00"}[i%2]), QoS: uint8(i % 3), Retain: i%2 == 0,
			ClientID: client, Created: made, Host: "n",
		})
	}
	web := httptest.NewServer(New(s, s, s))
	defer web.Close()
	c, err := Dial(strings.TrimPrefix(web.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []history.MessageQuery{
		{},
		{Filter: "t/+"},
		{Filter: "t/1"},
		{Filter: "none"},
		{ClientID: odd()[1]},
		{Filter: "#", ClientID: odd()[9]},
		{From: at.Add(2 * time.Hour)},
		{To: at.Add(2 * time.Hour)},
		{From: at.Add(time.Hour).In(time.FixedZone("", 3600)), To: at.Add(4 * time.Hour)},
	} {
		var want, got []string
		for _, m := range s.messages {
			if of.Match(m) {
				want = append(want, fmt.Sprint(m.ID, m.Topic, m.ClientID, m.QoS, m.Retain, m.Host, m.Created.UnixMilli(), string(m.Payload)))
			}
		}
		err := c.EachMessage(t.Context(), of.Filter, of.ClientID, of.From, of.To, func(m Message) error {
			payload, err := m.Payload()
			got = append(got, fmt.Sprint(m.ID, m.Topic, m.Client, m.QoS, m.Retain, m.Node, m.Created.UnixMilli(), string(payload)))
			return err
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v: %q, %v, want %q", of, got, err, want)
		}
	}
	for _, bad := range []string{"?filter=a%23", "?from=today", "?to=1", "?after=x", "?limit=0"} {
		resp, err := http.Get(web.URL + MessagesPath + bad)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
}

// F-18, F-20: topics and payloads go through unchanged.
func TestRetained(t *testing.T) {
	t.Parallel()
	s := &stock{}
	for i, topic := range odd() {
		if strings.ContainsAny(topic, "+#") || topic[0] == '$' {
			continue
		}
		s.messages = append(s.messages, &schema.Message{Topic: topic, Payload: []byte([]string{"t;23,5;\xb0C\r\n", "a\x00b", "<&>"}[i%3]), QoS: 1, ClientID: "c"})
	}
	slices.SortFunc(s.messages, func(a, b *schema.Message) int { return strings.Compare(a.Topic, b.Topic) })
	web := httptest.NewServer(New(s, s, s))
	defer web.Close()
	c, err := Dial(strings.TrimPrefix(web.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	err = c.EachRetained(t.Context(), "#", func(m Message) error {
		want := s.messages[i]
		i++
		if payload, err := m.Payload(); err != nil || m.Topic != want.Topic || string(payload) != string(want.Payload) || m.Bytes != len(want.Payload) {
			t.Errorf("got %+v, want %+v", m, want)
		}
		return nil
	})
	if err != nil || i != len(s.messages) {
		t.Errorf("%d messages, %v", i, err)
	}
	for len(s.messages) > 0 {
		topic := s.messages[0].Topic
		if err := c.ClearRetained(t.Context(), topic); err != nil {
			t.Fatalf("%q: %v", topic, err)
		}
		if err := c.ClearRetained(t.Context(), topic); err == nil || err.Error() != "nothing is retained on topic "+strconv.Quote(topic) {
			t.Errorf("%q is removed again: %v", topic, err)
		}
	}
	for _, bad := range []string{"?filter=a%23", "?limit=0", "?limit=x"} {
		resp, err := http.Get(web.URL + RetainedPath + bad)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
}

// Only this machine is served.
func TestLocal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from, host string
		header     string
		want       int
	}{
		"loopback":              {"127.0.0.1:4000", "127.0.0.1:8080", "", http.StatusOK},
		"loopback by name":      {"127.0.0.1:4000", "localhost:8080", "", http.StatusOK},
		"IPv6":                  {"[::1]:4000", "[::1]:8080", "", http.StatusOK},
		"mapped":                {"[::ffff:127.0.0.1]:4000", "localhost", "", http.StatusOK},
		"another machine":       {"10.0.0.7:4000", "127.0.0.1:8080", "", http.StatusForbidden},
		"another name":          {"127.0.0.1:4000", "evil.example:8080", "", http.StatusForbidden},
		"no name":               {"127.0.0.1:4000", "", "", http.StatusForbidden},
		"by a proxy":            {"127.0.0.1:4000", "localhost", "X-Forwarded-For", http.StatusForbidden},
		"a page of another one": {"127.0.0.1:4000", "localhost", "Origin", http.StatusForbidden},
		"no address":            {"@", "localhost", "", http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &stock{}
			q := httptest.NewRequest(http.MethodGet, SessionsPath, nil)
			q.RemoteAddr, q.Host = c.from, c.host
			if c.header != "" {
				q.Header.Set(c.header, "x")
			}
			w := httptest.NewRecorder()
			New(s, s, s).ServeHTTP(w, q)
			if w.Code != c.want {
				t.Errorf("%d, want %d", w.Code, c.want)
			}
			if c.want != http.StatusOK && s.asked > 0 {
				t.Error("the store was asked")
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	web := httptest.NewServer(nil)
	addr := strings.TrimPrefix(web.URL, "http://")
	web.Close()
	c, err := Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.EndSession(t.Context(), "a"); exit.Of(err) != exit.Connect || exit.Hint(err) != "rewindmq healthcheck --http "+addr {
		t.Errorf("%v, try %s", err, exit.Hint(err))
	}
	if err := c.EachSession(t.Context(), nil); err == nil || strings.Contains(err.Error(), "?") {
		t.Errorf("%v", err)
	}
	if _, err := Dial("8080"); err == nil {
		t.Errorf("an address without a colon: %v", err)
	}
}
