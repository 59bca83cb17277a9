package subscribe

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"
)

// Format writes one message as it is to appear on standard output.
type Format func(b *bytes.Buffer, p *packets.Publish, at time.Time) error

// Formats are the names that NewFormat takes.
var Formats = [...]string{"text", "json", "csv"}

// NewFormat returns the format with a name of Formats. withTopic puts the topic and a space before each payload of
// text and csv; in json the topic is always there.
func NewFormat(name string, withTopic bool) (Format, error) {
	switch name {
	case "text", "csv":
		return func(b *bytes.Buffer, p *packets.Publish, _ time.Time) error {
			if withTopic {
				b.WriteString(p.Topic + " ")
			}
			b.Write(p.Payload)
			b.WriteByte('\n')
			return nil
		}, nil
	case "json":
		return writeJSON, nil
	default:
		return nil, fmt.Errorf("subscribe: %q is no output format, it is one of %v", name, Formats)
	}
}

// message is the JSON form of a message, one per line.
type message struct {
	Time    time.Time `json:"time"` // when it was received
	Topic   string    `json:"topic"`
	QoS     byte      `json:"qos"`
	Retain  bool      `json:"retain"`
	Dup     bool      `json:"dup,omitempty"`
	Payload string    `json:"payload"`
	// Base64 says that the payload is not UTF-8 and therefore in base64.
	Base64 bool `json:"base64,omitempty"`
	// User are the user properties in their order, as pairs, since a key may come more than once.
	User [][2]string `json:"userProperties,omitempty"`
}

func writeJSON(b *bytes.Buffer, p *packets.Publish, at time.Time) error {
	m := message{Time: at, Topic: p.Topic, QoS: p.QoS, Retain: p.Retain, Dup: p.Duplicate, Payload: string(p.Payload)}
	if !utf8.Valid(p.Payload) {
		m.Payload, m.Base64 = base64.StdEncoding.EncodeToString(p.Payload), true
	}
	if p.Properties != nil {
		for _, u := range p.Properties.User {
			m.User = append(m.User, [2]string{u.Key, u.Value})
		}
	}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return fmt.Errorf("subscribe: encode a message of %s: %w", p.Topic, err)
	}
	return nil
}
