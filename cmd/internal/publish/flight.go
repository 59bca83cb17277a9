package publish

import (
	"container/list"
	"fmt"

	"github.com/eclipse/paho.golang/packets"

	"rewindmq/cmd/internal/link"
)

// Message is one application message from a source.
type Message struct {
	// Row is its number in the source, from 1.
	Row int64
	// End is where it ends in the source, in bytes.
	End int64
	// Payload belongs to the message; nobody changes it.
	Payload []byte
}

// entry is a message between its first PUBLISH and its last acknowledgement.
type entry struct {
	Message
	id uint16
	// received: PUBREC has come, so the server owns the message and only PUBREL may be sent [MQTT-4.3.3-6].
	received bool
	// again: this session has tried the PUBLISH before, so the next one has DUP=1 [MQTT-3.3.1-1].
	again bool
	// sent: something was sent for it on the present connection.
	sent bool
}

// flight is the client's half of the QoS 1 and 2 protocol as a plain state machine: what came in changes it, and it
// says which packet is next. It does no I/O and is for one goroutine.
//
// Invariant: a message leaves the flight only by its final acknowledgement, a refusal, or the proof that the server
// owns it; nothing else forgets a message.
// Invariant: order holds the entries as they were offered, and resend walks it from the front, before anything new:
// so what a new connection repeats comes in the original order [MQTT-4.6.0-1], [MQTT-4.6.0-3].
// Invariant: active <= quota, repeated packets included [MQTT-3.3.4-9].
type flight struct {
	qos    byte
	quota  int // how many entries may be under way on this connection: the server's Receive Maximum
	active int // entries with sent set
	order  *list.List
	byID   map[uint16]*list.Element
	next   *list.Element // the next entry that this connection has to repeat; nil: none is left
	lastID uint16
}

func newFlight(qos byte) *flight {
	return &flight{qos: qos, order: list.New(), byID: map[uint16]*list.Element{}}
}

// connected begins a new connection. present says whether the server still has the session. If it has not, what it
// had confirmed by PUBREC is complete, for the server stored it before; the rest is in doubt and is sent again as new.
func (f *flight) connected(present bool, receiveMaximum uint16) (complete []Message, doubtful int) {
	f.quota, f.active = int(receiveMaximum), 0
	for el := f.order.Front(); el != nil; {
		e, after := el.Value.(*entry), el.Next()
		e.sent = false
		if !present && e.received {
			complete = append(complete, e.Message)
			f.remove(el)
		} else if !present {
			e.again = false // for the server's new session it is the first attempt [MQTT-3.3.1-2]
			doubtful++
		}
		el = after
	}
	f.next = f.order.Front()
	return complete, doubtful
}

// resend returns the entry that has to be repeated now, or nil when none is left or the quota is used up.
func (f *flight) resend() *entry {
	for f.next != nil && f.active < f.quota {
		e := f.next.Value.(*entry)
		f.next = f.next.Next()
		if !e.sent {
			f.send(e)
			return e
		}
	}
	return nil
}

// room says whether a new message may be offered.
func (f *flight) room() bool { return f.next == nil && f.active < f.quota && len(f.byID) < 65535 }

// offer takes a new message. REQUIRES: room.
func (f *flight) offer(m Message) *entry {
	for {
		f.lastID++
		if _, taken := f.byID[f.lastID]; !taken && f.lastID != 0 {
			break
		}
	}
	e := &entry{Message: m, id: f.lastID}
	f.byID[e.id] = f.order.PushBack(e)
	f.send(e)
	return e
}

func (f *flight) send(e *entry) {
	if !e.sent {
		e.sent = true
		f.active++
	}
}

func (f *flight) remove(el *list.Element) {
	e := f.order.Remove(el).(*entry)
	delete(f.byID, e.id)
	if e.sent {
		f.active--
	}
}

// drop removes an entry that is settled.
func (f *flight) drop(el *list.Element) *Message {
	if el == f.next {
		f.next = el.Next()
	}
	m := el.Value.(*entry).Message
	f.remove(el)
	return &m
}

// answer is what follows from a packet of the server.
type answer struct {
	// done is the message that this packet settled; refused: with that reason code, so it is not stored.
	done    *Message
	refused byte
	// release is to be sent, when it is not nil.
	release *packets.Pubrel
}

// onPuback settles a QoS 1 message. An unknown id is left over from before and is ignored.
func (f *flight) onPuback(id uint16, code byte) (answer, error) {
	el, known := f.byID[id]
	if !known {
		return answer{}, nil
	}
	if f.qos != 1 {
		return answer{}, fmt.Errorf("%w: PUBACK for a QoS 2 message", link.ErrProtocol)
	}
	a := answer{done: f.drop(el)}
	if code >= 0x80 {
		a.refused = code
	}
	return a, nil
}

// onPubrec moves a QoS 2 message on to PUBREL, or settles it when the server refused it [MQTT-4.3.3-4].
func (f *flight) onPubrec(id uint16, code byte) (answer, error) {
	el, known := f.byID[id]
	if !known {
		if code >= 0x80 {
			return answer{}, nil
		}
		return answer{release: &packets.Pubrel{PacketID: id, ReasonCode: 0x92}}, nil
	}
	if f.qos != 2 {
		return answer{}, fmt.Errorf("%w: PUBREC for a QoS 1 message", link.ErrProtocol)
	}
	if code >= 0x80 {
		return answer{done: f.drop(el), refused: code}, nil
	}
	e := el.Value.(*entry)
	e.received = true
	f.send(e)
	return answer{release: &packets.Pubrel{PacketID: id}}, nil
}

// onPubcomp settles a QoS 2 message. The reason code does not matter: PUBREC has come, so the message is stored, and
// "packet identifier not found" says that the server had finished it before.
func (f *flight) onPubcomp(id uint16) (answer, error) {
	el, known := f.byID[id]
	if !known {
		return answer{}, nil
	}
	if !el.Value.(*entry).received {
		return answer{}, fmt.Errorf("%w: PUBCOMP before PUBREC", link.ErrProtocol)
	}
	return answer{done: f.drop(el)}, nil
}
