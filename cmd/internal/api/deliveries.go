package api

import (
	"net/http"
	"time"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// Delivery is a message that was sent to a client.
type Delivery struct {
	Message string    `json:"message"`
	Client  string    `json:"client"`
	Topic   string    `json:"topic"`
	QoS     uint8     `json:"qos"`
	State   string    `json:"state"` // sent, received, acknowledged or dropped, see history.State
	Created time.Time `json:"created"`
	Node    string    `json:"node"`
	// Retained: it came by the subscription, not by the publish.
	Retained bool `json:"retained,omitempty"`
	// Group is the filter of the shared subscription; empty: it is none.
	Group    string `json:"group,omitempty"`
	PacketID uint16 `json:"packetId,omitempty"`
	SID      uint64 `json:"sid,omitempty"`
	Seq      uint64 `json:"seq,omitempty"`
}

type deliveryPage struct {
	Deliveries []Delivery `json:"deliveries"`
	Next       string     `json:"next,omitempty"`
}

func listDeliveries(w http.ResponseWriter, q *http.Request, h history.Reader) {
	limit, ok := limitOf(w, q)
	if !ok {
		return
	}
	of := history.Query{ClientID: q.FormValue("client")}
	if text := q.FormValue("message"); text != "" {
		id, err := schema.ParseID(text)
		if err != nil || id.IsZero() {
			http.Error(w, "message: want the 24 hexadecimal digits of a message's id", http.StatusBadRequest)
			return
		}
		of.MessageID = id
	}
	if of == (history.Query{}) {
		http.Error(w, "the request lacks the parameter client, or message", http.StatusBadRequest)
		return
	}
	list, next, err := h.ListDeliveries(q.Context(), of, q.FormValue("after"), limit)
	if err != nil {
		fail(w, err, "")
		return
	}
	page := deliveryPage{Deliveries: make([]Delivery, 0, len(list)), Next: next}
	for i := range list {
		page.Deliveries = append(page.Deliveries, delivery(&list[i]))
	}
	answer(w, page)
}

func delivery(d *history.Delivery) Delivery {
	return Delivery{
		Message: d.MessageID.String(), Client: d.ClientID, Topic: d.Topic, QoS: d.QoS, State: string(d.State),
		Created: d.Created.UTC(), Node: d.Host, Retained: !d.Retained.IsZero(), Group: d.Group,
		PacketID: d.PacketID, SID: d.SID, Seq: d.Seq,
	}
}
