package broker

import (
	"errors"
	"strings"

	"rewindmq/wire"
)

// aliasesOut bounds how many topics are named by number towards a client, whatever it
// allows: each costs the memory of its topic.
const aliasesOut = 64

// aliases are the topic aliases of one connection, in one direction each. They
// end with it [MQTT-3.3.2-7].
type aliases struct {
	in  []string          // by alias-1
	top int               // of in: the Topic Alias Maximum that CONNACK tells
	out map[string]uint16 // topic to alias
	max int               // of out
}

// resolve gives an incoming message its topic. An alias that was never set is a
// protocol error (section 3.3.4), one above the maximum has a code of its own
// [MQTT-3.3.2-8, MQTT-3.3.2-9].
func (a *aliases) resolve(p *wire.Publish) error {
	switch {
	case p.TopicAlias == 0:
		return nil
	case int(p.TopicAlias) > a.top:
		return &wire.Error{Code: wire.TopicAliasInvalid, Err: errors.New("topic alias above the maximum")}
	}
	i := int(p.TopicAlias) - 1
	if p.Topic == "" {
		if i >= len(a.in) || a.in[i] == "" {
			return &wire.Error{Code: wire.ProtocolError, Err: errors.New("topic alias that was never set")}
		}
		p.Topic = a.in[i]
		return nil
	}
	for len(a.in) <= i {
		a.in = append(a.in, "")
	}
	a.in[i] = strings.Clone(p.Topic) // [MQTT-3.3.2-12]
	return nil
}

// shorten names a topic by its alias, once the client has been told it. What is
// sent again bears its full topic: the alias is of this connection only. An alias costs
// bytes where it is told, and where the topic is shorter: never beyond most, which the
// client takes (0: anything) [MQTT-3.1.2-24].
func (a *aliases) shorten(p *wire.Publish, most int) {
	if a.max == 0 || p.Dup {
		return
	}
	topic := p.Topic
	alias, known := a.out[topic]
	switch {
	case known:
		p.TopicAlias, p.Topic = alias, ""
	case len(a.out) == a.max:
		return
	default:
		p.TopicAlias = uint16(len(a.out) + 1)
	}
	if most > 0 && wire.PublishSize(wire.V5, p) > most {
		p.TopicAlias, p.Topic = 0, topic
		return
	}
	if !known {
		if a.out == nil {
			a.out = make(map[string]uint16)
		}
		a.out[strings.Clone(topic)] = p.TopicAlias
	}
}
