// Package api is what an operator's tools ask of a running broker about sessions, messages and deliveries, and the client
// side of it, which `rewindmq sessions`, `rewindmq retained`, `rewindmq messages` and `rewindmq deliveries` use.
//
// Nouns: a page is one answer of a listing, in the order of the bytes of what it lists; next is what the page after it
// begins behind.
//
// The API is for people on the same machine: it asks for no password, so it serves only requests that come from a
// loopback address to a loopback name, by no proxy and from no web page of another site. Whoever may do that may also
// connect to the broker as any client.
//
// Client ids, topics and filters are query parameters, percent-encoded, since they may hold anything: a slash, a dot
// alone, a line feed. The answers are JSON.
//
// The package starts no goroutine.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"rewindmq/broker"
	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

// Paths of the API.
const (
	SessionsPath = "/api/v1/sessions"
	SessionPath  = "/api/v1/session"  // ?client=
	RetainedPath = "/api/v1/retained" // ?filter=, for a DELETE ?topic=
	// DeliveriesPath is for ?client=, ?message=, or both.
	DeliveriesPath = "/api/v1/deliveries"
	MessagesPath   = "/api/v1/messages" // ?filter=, ?client=, ?from=, ?to=
)

// maxPage bounds one page; fewer by ?limit=.
const maxPage = store.MaxSessionPage

// maxPageBytes ends a page of retained messages early.
const maxPageBytes = 4 << 20

// Sessions is where sessions are found, and ended. Errors: store.ErrNoSession, broker.ErrBusy.
type Sessions interface {
	ListSessions(ctx context.Context, after string, limit int) ([]store.SessionInfo, error)
	LookSession(ctx context.Context, clientID string) (store.SessionInfo, error)
	EndSession(ctx context.Context, clientID string) error
}

// Retained is where retained messages are found, and removed. Error: broker.ErrNotRetained.
type Retained interface {
	Retained(ctx context.Context, filter, after string, limit int) (list []*schema.Message, next string, err error)
	ClearRetained(ctx context.Context, topic string) error
}

// Session is a session as the API tells it.
type Session struct {
	Client    string `json:"client"`
	Connected bool   `json:"connected"`
	// Here: the connection is at the node that answers.
	Here bool `json:"here"`
	// Expiry in seconds from the end of the connection; nil: it does not end.
	Expiry *uint32 `json:"expiry"`
	// Gone is when the connection ended; nil: it has one.
	Gone  *time.Time `json:"gone"`
	SID   uint64     `json:"sid"`
	Epoch uint64     `json:"epoch"`
	// Subscriptions and InFlight are told of one session, not in a list.
	Subscriptions []Subscription `json:"subscriptions,omitempty"`
	InFlight      *int           `json:"inFlight,omitempty"`
}

// Subscription is one of a session.
type Subscription struct {
	Filter            string `json:"filter"`
	QoS               uint8  `json:"qos"`
	NoLocal           bool   `json:"noLocal,omitempty"`
	RetainAsPublished bool   `json:"retainAsPublished,omitempty"`
	RetainHandling    uint8  `json:"retainHandling,omitempty"`
	Identifier        uint32 `json:"identifier,omitempty"`
}

type sessionPage struct {
	Sessions []Session `json:"sessions"`
	Next     string    `json:"next,omitempty"`
}

// New returns the API. It is safe for concurrent use.
func New(s Sessions, r Retained, h history.Reader) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+SessionsPath, func(w http.ResponseWriter, q *http.Request) { listSessions(w, q, s) })
	mux.HandleFunc("GET "+SessionPath, func(w http.ResponseWriter, q *http.Request) { showSession(w, q, s) })
	mux.HandleFunc("DELETE "+SessionPath, func(w http.ResponseWriter, q *http.Request) {
		remove(w, q, "client", s.EndSession)
	})
	mux.HandleFunc("GET "+RetainedPath, func(w http.ResponseWriter, q *http.Request) { listRetained(w, q, r) })
	mux.HandleFunc("DELETE "+RetainedPath, func(w http.ResponseWriter, q *http.Request) {
		remove(w, q, "topic", r.ClearRetained)
	})
	mux.HandleFunc("GET "+DeliveriesPath, func(w http.ResponseWriter, q *http.Request) { listDeliveries(w, q, h) })
	mux.HandleFunc("GET "+MessagesPath, func(w http.ResponseWriter, q *http.Request) { listMessages(w, q, h) })
	return local(mux)
}

// local lets only requests of this machine through: the address says that the connection is, the name keeps out a web
// page whose name was made to lead here, and what a proxy adds tells that the sender is somebody else.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		from, err := netip.ParseAddrPort(q.RemoteAddr)
		host := q.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		name, nameErr := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil || !from.Addr().Unmap().IsLoopback() || host != "localhost" && (nameErr != nil || !name.Unmap().IsLoopback()) {
			http.Error(w, "the API serves requests of this machine only, to localhost or a loopback address", http.StatusForbidden)
			return
		}
		for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Origin"} {
			if q.Header.Get(h) != "" {
				http.Error(w, "the API serves no requests that come by a proxy or from a web page ("+h+")", http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, q)
	})
}

func listSessions(w http.ResponseWriter, q *http.Request, s Sessions) {
	limit, ok := limitOf(w, q)
	if !ok {
		return
	}
	list, err := s.ListSessions(q.Context(), q.FormValue("after"), limit)
	if err != nil {
		fail(w, err, "")
		return
	}
	page := sessionPage{Sessions: make([]Session, 0, len(list))}
	for i := range list {
		page.Sessions = append(page.Sessions, session(&list[i]))
	}
	if len(list) == limit {
		page.Next = list[limit-1].ClientID
	}
	answer(w, page)
}

func showSession(w http.ResponseWriter, q *http.Request, s Sessions) {
	client := q.FormValue("client")
	info, err := s.LookSession(q.Context(), client)
	if err != nil {
		fail(w, err, client)
		return
	}
	one := session(&info)
	one.InFlight = &info.InFlight
	for _, sub := range info.Subscriptions {
		one.Subscriptions = append(one.Subscriptions, Subscription{
			Filter: sub.Filter, QoS: sub.QoS, NoLocal: sub.NoLocal, RetainAsPublished: sub.RetainAsPublished,
			RetainHandling: sub.RetainHandling, Identifier: sub.Identifier,
		})
	}
	answer(w, one)
}

func session(i *store.SessionInfo) Session {
	s := Session{Client: i.ClientID, Connected: i.Connected, Here: i.Here, SID: i.SID, Epoch: i.Epoch}
	if i.Expiry != schema.NoExpiry {
		s.Expiry = &i.Expiry
	}
	if !i.Connected {
		gone := i.Gone.UTC()
		s.Gone = &gone
	}
	return s
}

func listRetained(w http.ResponseWriter, q *http.Request, r Retained) {
	limit, ok := limitOf(w, q)
	if !ok {
		return
	}
	filter := q.FormValue("filter")
	if filter == "" {
		filter = "#"
	}
	if err := schema.ValidFilter(filter); err != nil {
		http.Error(w, badFilter, http.StatusBadRequest)
		return
	}
	list, next, err := r.Retained(q.Context(), filter, q.FormValue("after"), limit)
	if err != nil {
		fail(w, err, "")
		return
	}
	page := messagePage{Messages: make([]Message, 0, len(list)), Next: next}
	size := 0
	for i, m := range list {
		page.Messages = append(page.Messages, message(m))
		if size += len(m.Payload); size > maxPageBytes && i+1 < len(list) {
			page.Next = m.Topic
			break
		}
	}
	answer(w, page)
}

// badFilter answers for a filter that is none.
const badFilter = "filter: not a topic filter: # stands alone at the end, + alone in its level"

func limitOf(w http.ResponseWriter, q *http.Request) (int, bool) {
	text := q.FormValue("limit")
	if text == "" {
		return maxPage, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		http.Error(w, "limit: want a number from 1", http.StatusBadRequest)
		return 0, false
	}
	return min(n, maxPage), true
}

func remove(w http.ResponseWriter, q *http.Request, parameter string, do func(context.Context, string) error) {
	what := q.FormValue(parameter)
	if what == "" {
		http.Error(w, "the request lacks the parameter "+parameter, http.StatusBadRequest)
		return
	}
	if err := do(q.Context(), what); err != nil {
		fail(w, err, what)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a caller that has gone away is no concern of ours
}

// fail answers with an error of the broker or the store; of says what was asked for. What the caller can do something
// about is told in words of its own.
func fail(w http.ResponseWriter, err error, of string) {
	code, text := http.StatusInternalServerError, err.Error()
	switch {
	case errors.Is(err, store.ErrNoSession):
		code, text = http.StatusNotFound, "no session of client "+strconv.Quote(of)
	case errors.Is(err, broker.ErrNotRetained):
		code, text = http.StatusNotFound, "nothing is retained on topic "+strconv.Quote(of)
	case errors.Is(err, broker.ErrBusy):
		code, text = http.StatusConflict, "client "+strconv.Quote(of)+" is connecting: ask again"
	case errors.Is(err, history.ErrPage):
		code, text = http.StatusBadRequest, "after: no such page"
	}
	w.Header().Set(answeredBy, "v1")
	http.Error(w, text, code)
}
