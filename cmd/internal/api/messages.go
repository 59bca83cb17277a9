package api

import (
	"encoding/base64"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// Message is a message of the log, or a retained one. Exactly one of Text and Base64 is there: Text where the payload is
// UTF-8.
type Message struct {
	ID      string    `json:"id"`
	Topic   string    `json:"topic"`
	QoS     uint8     `json:"qos"`
	Retain  bool      `json:"retain"`
	Client  string    `json:"client"` // that published it
	Created time.Time `json:"created"`
	Node    string    `json:"node"` // that took it in
	Bytes   int       `json:"bytes"`
	Text    *string   `json:"text,omitempty"`
	Base64  *string   `json:"base64,omitempty"`
}

// Payload returns the bytes of the message.
func (m *Message) Payload() ([]byte, error) {
	switch {
	case m.Text != nil:
		return []byte(*m.Text), nil
	case m.Base64 != nil:
		return base64.StdEncoding.DecodeString(*m.Base64)
	}
	return nil, errors.New("api: a message without a payload")
}

type messagePage struct {
	Messages []Message `json:"messages"`
	Next     string    `json:"next,omitempty"`
}

func listMessages(w http.ResponseWriter, q *http.Request, h history.Reader) {
	limit, ok := limitOf(w, q)
	if !ok {
		return
	}
	of := history.MessageQuery{Filter: q.FormValue("filter"), ClientID: q.FormValue("client")}
	if of.Filter != "" {
		if err := schema.ValidFilter(of.Filter); err != nil {
			http.Error(w, badFilter, http.StatusBadRequest)
			return
		}
	}
	for name, at := range map[string]*time.Time{"from": &of.From, "to": &of.To} {
		text := q.FormValue(name)
		if text == "" {
			continue
		}
		var err error
		if *at, err = time.Parse(time.RFC3339, text); err != nil {
			http.Error(w, name+": want a time as 2026-01-31T12:00:00Z", http.StatusBadRequest)
			return
		}
	}
	list, next, err := h.ListMessages(q.Context(), of, q.FormValue("after"), limit)
	if err != nil {
		fail(w, err, "")
		return
	}
	page := messagePage{Messages: make([]Message, 0, len(list)), Next: next}
	for _, m := range list {
		page.Messages = append(page.Messages, message(m))
	}
	answer(w, page)
}

func message(m *schema.Message) Message {
	out := Message{
		ID: m.ID.String(), Topic: m.Topic, QoS: m.QoS, Retain: m.Retain, Client: m.ClientID, Created: m.Created.UTC(), Node: m.Host,
		Bytes: len(m.Payload),
	}
	if utf8.Valid(m.Payload) {
		text := string(m.Payload)
		out.Text = &text
	} else {
		text := base64.StdEncoding.EncodeToString(m.Payload)
		out.Base64 = &text
	}
	return out
}
