package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

const apiMessages = "/api/v1/messages"

type loggedMessage struct {
	ID, Topic, Client, Node, Text string
	QoS                           int
	Retain                        bool
	Created                       time.Time
}

// messages gives what the command and the API, which have to agree, find.
func (b *broker) messages(of url.Values) []loggedMessage {
	b.t.Helper()
	args := []string{"messages"}
	for name, values := range of {
		if name == "filter" {
			name = "topic"
		}
		args = append(args, "--"+name, values[0])
	}
	list := operateJSON[[]loggedMessage](b, args...)
	var page struct{ Messages []loggedMessage }
	code, body := b.apiCall(http.MethodGet, apiMessages, of)
	if err := json.Unmarshal([]byte(body), &page); err != nil || code != http.StatusOK {
		b.t.Fatalf("the API says %d %.300s", code, body)
	}
	if !slices.Equal(list, page.Messages) {
		b.t.Errorf("the command finds %+v, the API %+v", list, page.Messages)
	}
	return list
}

// S-26: the log answers what was published, by topic, publisher and time, also after the
// broker was killed; the id that it tells leads to the deliveries.
func TestS26_Messages(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		sub := b.open(persistent(v5, "sub"))
		sub.subscribe(want{"s26/a/#", 1})
		before := time.Now().Add(-2 * time.Second).UTC()
		one, two := b.open(transient(v5, "dev/ 1")), b.open(transient(v311, "dev2"))
		for i := range 10 {
			one.publish(message{topic: fmt.Sprint("s26/a/", i%2), qos: 1, payload: fmt.Append(nil, i)})
			two.publish(message{topic: "s26/b", qos: byte(1 + i%2), retain: true, payload: fmt.Append(nil, 100+i)})
		}
		for i := range 10 {
			sub.settle(sub.takePayload(fmt.Sprint(i)))
		}
		texts := func(list []loggedMessage) string {
			var all []string
			for _, m := range list {
				all = append(all, m.Text)
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		stamp := func(at time.Time) string { return at.Format(time.RFC3339) }
		found := func(b *broker) {
			t.Helper()
			for what, c := range map[string]struct {
				of   url.Values
				want string
			}{
				"a topic":     {url.Values{"filter": {"s26/a/1"}}, "1 3 5 7 9"},
				"a filter":    {url.Values{"filter": {"s26/a/#"}}, "0 1 2 3 4 5 6 7 8 9"},
				"a publisher": {url.Values{"filter": {"s26/+"}, "client": {"dev2"}}, "100 101 102 103 104 105 106 107 108 109"},
				"nobody's":    {url.Values{"filter": {"s26/#"}, "client": {"dev"}}, ""},
				"since then":  {url.Values{"client": {"dev/ 1"}, "from": {stamp(before)}, "to": {stamp(before.Add(time.Hour))}}, "0 1 2 3 4 5 6 7 8 9"},
				"until then":  {url.Values{"filter": {"s26/#"}, "to": {stamp(before)}}, ""},
			} {
				if got := texts(b.messages(c.of)); got != c.want {
					t.Errorf("%s: %s, want %s", what, got, c.want)
				}
			}
			list := b.messages(url.Values{"filter": {"s26/a/1"}})
			for _, m := range list {
				if m.Client != "dev/ 1" || m.Topic != "s26/a/1" || m.QoS != 1 || m.Retain || m.Node == "" || m.Created.Before(before) {
					t.Errorf("%+v", m)
				}
				if d := b.delivered("message", m.ID); len(d) != 1 || d[0].Client != "sub" || d[0].Topic != m.Topic {
					t.Errorf("message %s was delivered to %+v", m.ID, d)
				}
			}
		}
		found(b)
		b.operate(2, "messages", "--from", "yesterday")
		b.operate(2, "messages", "--topic", "a#")
		if lines := strings.Count(b.operate(0, "messages", "--topic", "s26/#", "--limit", "3"), "\n"); lines != 4 {
			t.Errorf("%d lines for three messages and a head", lines)
		}
		b.crash()
		found(b)
	})
}
