package wire

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"

	"rewindmq/schema"
)

var drawVersion = rapid.SampledFrom([]Version{V31, V311, V5})

// drawString gives strings that MQTT can carry, also with control characters and beyond the BMP.
var drawString = rapid.Custom(func(t *rapid.T) string {
	s := rapid.StringN(0, 20, 60).Draw(t, "s")
	return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "")
})

var drawFilled = rapid.Custom(func(t *rapid.T) string { return drawString.Draw(t, "s") + "x" })

var drawTopic = rapid.Custom(func(t *rapid.T) string {
	return strings.NewReplacer("+", "", "#", "").Replace(drawString.Draw(t, "s")) + "/x"
})

// drawBytes gives nil, empty and other slices; drawOrNil no empty ones.
var drawBytes = rapid.Custom(func(t *rapid.T) []byte {
	return rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")
})

func drawOrNil(t *rapid.T, name string) []byte { return orNil(drawBytes.Draw(t, name)) }

func drawUser(t *rapid.T, v Version) []schema.UserProperty {
	if v != V5 {
		return nil
	}
	var user []schema.UserProperty
	for range rapid.IntRange(0, 3).Draw(t, "user") {
		user = append(user, schema.UserProperty{Key: drawString.Draw(t, "key"), Value: drawString.Draw(t, "value")})
	}
	return user
}

// drawMessage gives the properties of a message whose payload is UTF-8 when the format says so.
func drawMessage(t *rapid.T, v Version) *schema.Properties {
	if v != V5 {
		return nil
	}
	m := &schema.Properties{HasPayloadFormat: rapid.Bool().Draw(t, "format"), User: drawUser(t, v)}
	if rapid.Bool().Draw(t, "type") {
		m.ContentType = drawFilled.Draw(t, "content type")
	} else {
		m.EmptyContentType = rapid.Bool().Draw(t, "empty type")
	}
	if rapid.Bool().Draw(t, "response") {
		m.ResponseTopic = drawTopic.Draw(t, "response topic")
	}
	if rapid.Bool().Draw(t, "correlation") {
		m.CorrelationData = drawBytes.Draw(t, "correlation data")
		if m.CorrelationData == nil {
			m.CorrelationData = []byte{}
		}
	}
	if reflect.DeepEqual(*m, schema.Properties{}) {
		return nil
	}
	return m
}

func drawConnect(t *rapid.T) *Connect {
	c := &Connect{
		Version: drawVersion.Draw(t, "version"), ClientID: drawFilled.Draw(t, "id"), CleanStart: rapid.Bool().Draw(t, "clean"),
		KeepAlive: rapid.Uint16().Draw(t, "keep alive"), RequestProblemInfo: true,
	}
	if c.HasUsername = rapid.Bool().Draw(t, "has user"); c.HasUsername {
		c.Username = drawString.Draw(t, "user")
	}
	if c.HasPassword = (c.HasUsername || c.Version == V5) && rapid.Bool().Draw(t, "has password"); c.HasPassword {
		c.Password = drawBytes.Draw(t, "password")
	}
	if rapid.Bool().Draw(t, "will") {
		c.Will = &Will{
			Topic: drawTopic.Draw(t, "will topic"), Payload: drawBytes.Draw(t, "will payload"),
			QoS: rapid.ByteMax(2).Draw(t, "will qos"), Retain: rapid.Bool().Draw(t, "will retain"),
			Properties: drawMessage(t, c.Version),
		}
		if c.Version == V5 {
			c.Will.Delay = rapid.Uint32().Draw(t, "delay")
			if c.Will.HasExpiry = rapid.Bool().Draw(t, "has will expiry"); c.Will.HasExpiry {
				c.Will.MessageExpiry = rapid.Uint32().Draw(t, "will expiry")
			}
		}
	}
	if c.Version != V5 {
		return c
	}
	if c.HasSessionExpiry = rapid.Bool().Draw(t, "has expiry"); c.HasSessionExpiry {
		c.SessionExpiry = rapid.Uint32().Draw(t, "expiry")
	}
	c.ReceiveMaximum, c.TopicAliasMaximum = rapid.Uint16().Draw(t, "window"), rapid.Uint16().Draw(t, "aliases")
	c.MaximumPacketSize = rapid.Uint32().Draw(t, "size")
	c.RequestProblemInfo, c.RequestResponseInfo = rapid.Bool().Draw(t, "problem"), rapid.Bool().Draw(t, "response")
	if rapid.Bool().Draw(t, "auth") {
		c.AuthMethod, c.AuthData = drawFilled.Draw(t, "method"), drawOrNil(t, "data")
	}
	c.User = drawUser(t, c.Version)
	return c
}

func drawPublish(t *rapid.T, v Version, server bool) *Publish {
	p := &Publish{
		Topic: drawTopic.Draw(t, "topic"), Payload: drawBytes.Draw(t, "payload"), QoS: rapid.ByteMax(2).Draw(t, "qos"),
		Retain: rapid.Bool().Draw(t, "retain"), Properties: drawMessage(t, v),
	}
	if p.QoS > 0 {
		p.PacketID, p.Dup = rapid.Uint16Min(1).Draw(t, "packet id"), rapid.Bool().Draw(t, "dup")
	}
	if v == V5 {
		if p.HasExpiry = rapid.Bool().Draw(t, "has expiry"); p.HasExpiry {
			p.MessageExpiry = rapid.Uint32().Draw(t, "expiry")
		}
		if p.TopicAlias = rapid.Uint16().Draw(t, "alias"); p.TopicAlias != 0 && rapid.Bool().Draw(t, "alias alone") {
			p.Topic = ""
		}
		if server {
			p.SubscriptionIDs = rapid.SliceOfN(rapid.Uint32Range(1, maxVarint), 0, 3).Draw(t, "subscriptions")
		}
	}
	return p
}

func drawConnack(t *rapid.T, v Version) *Connack {
	c := &Connack{SessionPresent: rapid.Bool().Draw(t, "present")}
	if !c.SessionPresent {
		c.Code = rapid.SampledFrom([]ReasonCode{
			Success, UnsupportedProtocolVersion, ClientIdentifierNotValid, ServerUnavailable, BadUserNameOrPassword, NotAuthorized,
		}).Draw(t, "code")
	}
	if v != V5 {
		return c
	}
	if rapid.Bool().Draw(t, "has expiry") {
		expiry := rapid.Uint32().Draw(t, "expiry")
		c.SessionExpiry = &expiry
	}
	if rapid.Bool().Draw(t, "has keep alive") {
		keepAlive := rapid.Uint16().Draw(t, "keep alive")
		c.ServerKeepAlive = &keepAlive
	}
	if rapid.Bool().Draw(t, "has qos") {
		qos := rapid.ByteMax(1).Draw(t, "qos")
		c.MaximumQoS = &qos
	}
	c.ReceiveMaximum, c.TopicAliasMaximum = rapid.Uint16().Draw(t, "window"), rapid.Uint16().Draw(t, "aliases")
	c.MaximumPacketSize, c.AssignedClientID = rapid.Uint32().Draw(t, "size"), drawString.Draw(t, "id")
	c.RetainUnavailable, c.WildcardUnavailable = rapid.Bool().Draw(t, "retain"), rapid.Bool().Draw(t, "wildcard")
	c.SubscriptionIDUnavailable, c.SharedUnavailable = rapid.Bool().Draw(t, "ids"), rapid.Bool().Draw(t, "shared")
	c.ResponseInfo, c.ServerReference = drawString.Draw(t, "info"), drawString.Draw(t, "reference")
	c.AuthMethod, c.AuthData = drawString.Draw(t, "method"), drawOrNil(t, "data")
	c.ReasonString, c.User = drawString.Draw(t, "reason"), drawUser(t, v)
	return c
}

func drawSubscribe(t *rapid.T, v Version) *Subscribe {
	s := &Subscribe{PacketID: rapid.Uint16Min(1).Draw(t, "packet id"), User: drawUser(t, v)}
	if v == V5 {
		s.SubscriptionID = rapid.Uint32Max(maxVarint).Draw(t, "subscription id")
	}
	for range rapid.IntRange(1, 4).Draw(t, "filters") {
		f := Filter{Topic: drawFilled.Draw(t, "filter"), QoS: rapid.ByteMax(2).Draw(t, "qos")}
		if v == V5 {
			f.NoLocal, f.RetainAsPublished = rapid.Bool().Draw(t, "no local"), rapid.Bool().Draw(t, "as published")
			f.RetainHandling = rapid.ByteMax(2).Draw(t, "handling")
		}
		s.Filters = append(s.Filters, f)
	}
	return s
}

func drawCodes(t *rapid.T, codes ...ReasonCode) []ReasonCode {
	return rapid.SliceOfN(rapid.SampledFrom(codes), 1, 5).Draw(t, "codes")
}

// drawPacket gives any packet, its version, and whether a server sends it.
func drawPacket(t *rapid.T) (p Packet, v Version, server bool) {
	v = drawVersion.Draw(t, "version")
	id := rapid.Uint16Min(1).Draw(t, "id")
	switch kind := rapid.SampledFrom([]PacketType{
		CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP,
		DISCONNECT, AUTH,
	}).Draw(t, "type"); kind {
	case CONNECT:
		c := drawConnect(t)
		return c, c.Version, false
	case CONNACK:
		return drawConnack(t, v), v, true
	case PUBLISH:
		server = rapid.Bool().Draw(t, "server")
		return drawPublish(t, v, server), v, server
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		a := &Ack{Type: kind, ID: id}
		if v == V5 {
			a.Code = rapid.SampledFrom([]ReasonCode{Success, NoMatchingSubscribers, QuotaExceeded}).Draw(t, "code")
			if kind == PUBREL || kind == PUBCOMP {
				a.Code = rapid.SampledFrom([]ReasonCode{Success, PacketIdentifierNotFound}).Draw(t, "code")
			}
			a.Reason, a.User = drawString.Draw(t, "reason"), drawUser(t, v)
		}
		return a, v, rapid.Bool().Draw(t, "server")
	case SUBSCRIBE:
		return drawSubscribe(t, v), v, false
	case SUBACK:
		codes := []ReasonCode{Success, GrantedQoS1, GrantedQoS2, UnspecifiedError}
		if v == V5 {
			codes = append(codes, TopicFilterInvalid, QuotaExceeded)
		}
		return &Suback{PacketID: id, Codes: drawCodes(t, codes...)}, v, true
	case UNSUBSCRIBE:
		return &Unsubscribe{
			PacketID: id, Filters: rapid.SliceOfN(drawFilled, 1, 4).Draw(t, "filters"), User: drawUser(t, v),
		}, v, false
	case UNSUBACK:
		u := &Unsuback{PacketID: id}
		if v == V5 {
			u.Codes = drawCodes(t, Success, NoSubscriptionExisted, NotAuthorized)
		}
		return u, v, true
	case PINGREQ:
		return &Pingreq{}, v, false
	case PINGRESP:
		return &Pingresp{}, v, true
	case DISCONNECT:
		d := &Disconnect{}
		if v == V5 {
			d.Code = rapid.SampledFrom([]ReasonCode{Success, DisconnectWithWill, QuotaExceeded}).Draw(t, "code")
			if d.HasSessionExpiry = rapid.Bool().Draw(t, "has expiry"); d.HasSessionExpiry {
				d.SessionExpiry = rapid.Uint32().Draw(t, "expiry")
			}
			d.Reason, d.User = drawString.Draw(t, "reason"), drawUser(t, v)
		}
		return d, v, false
	default:
		return &Auth{
			Code:   rapid.SampledFrom([]ReasonCode{Success, ContinueAuthentication, ReAuthenticate}).Draw(t, "code"),
			Method: drawString.Draw(t, "method"), Data: drawOrNil(t, "data"), Reason: drawString.Draw(t, "reason"), User: drawUser(t, V5),
		}, V5, rapid.Bool().Draw(t, "server")
	}
}

// same compares packets; nil and empty slices are the same where the wire does not tell them apart.
func same(a, b Packet) bool {
	normal := func(p Packet) Packet {
		switch p := p.(type) {
		case *Publish:
			c := *p
			c.Payload = orNil(c.Payload)
			if len(c.SubscriptionIDs) == 0 {
				c.SubscriptionIDs = nil
			}
			return &c
		case *Connect:
			c := *p
			c.Password = orNil(c.Password)
			if c.Will != nil {
				w := *c.Will
				w.Payload = orNil(w.Payload)
				c.Will = &w
			}
			return &c
		}
		return p
	}
	return reflect.DeepEqual(normal(a), normal(b))
}

// TestRoundTrip: what is encoded decodes to the same, in any company, and mochi's decoder takes it too.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, v, server := drawPacket(t)
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "prefix")
		all := reencode(bytes.Clone(prefix), v, p)
		if !bytes.HasPrefix(all, prefix) {
			t.Fatalf("the bytes before the packet have changed")
		}
		in := all[len(prefix):]
		r := NewReader(bytes.NewReader(append(bytes.Clone(in), 0xff)), ReaderOptions{FromServer: server})
		if _, first := p.(*Connect); !first {
			r.SetVersion(v)
		}
		got, err := r.ReadPacket()
		if err != nil {
			t.Fatalf("%#v: % x: %v", p, in, err)
		}
		if !same(p, got) {
			t.Fatalf("went in as\n%#v\ncame out as\n%#v\nfrom % x", p, got, in)
		}
		if r.Buffered() != 1 {
			t.Fatalf("%d bytes left behind the packet, want 1", r.Buffered())
		}
		if pub, ok := p.(*Publish); ok && PublishSize(v, pub) != len(in) {
			t.Fatalf("PublishSize %d, encoded %d", PublishSize(v, pub), len(in))
		}
		checkWithMochi(t, v, p, in)
	})
}

// checkWithMochi decodes in by mochi's codec, which is another reading of the same standard.
func checkWithMochi(t *rapid.T, v Version, p Packet, in []byte) {
	_, n, _ := varint(in[1:])
	pk := packets.Packet{ProtocolVersion: byte(v)}
	if err := pk.FixedHeader.Decode(in[0]); err != nil {
		t.Fatalf("mochi: header of % x: %v", in, err)
	}
	b := in[1+n:]
	pk.FixedHeader.Remaining = len(b)
	decode := map[byte]func([]byte) error{
		packets.Connect: pk.ConnectDecode, packets.Connack: pk.ConnackDecode, packets.Publish: pk.PublishDecode,
		packets.Puback: pk.PubackDecode, packets.Pubrec: pk.PubrecDecode, packets.Pubrel: pk.PubrelDecode,
		packets.Pubcomp: pk.PubcompDecode, packets.Subscribe: pk.SubscribeDecode, packets.Suback: pk.SubackDecode,
		packets.Unsubscribe: pk.UnsubscribeDecode, packets.Unsuback: pk.UnsubackDecode, packets.Pingreq: pk.PingreqDecode,
		packets.Pingresp: pk.PingrespDecode, packets.Disconnect: pk.DisconnectDecode, packets.Auth: pk.AuthDecode,
	}[pk.FixedHeader.Type]
	if err := decode(b); err != nil {
		t.Fatalf("mochi: % x: %v", in, err)
	}
	agree := true
	switch p := p.(type) {
	case *Connect:
		agree = pk.Connect.ClientIdentifier == p.ClientID && pk.Connect.Clean == p.CleanStart && pk.Connect.Keepalive == p.KeepAlive &&
			pk.Connect.WillFlag == (p.Will != nil) && string(pk.Connect.Username) == p.Username &&
			pk.Properties.SessionExpiryInterval == p.SessionExpiry && pk.Properties.ReceiveMaximum == p.ReceiveMaximum &&
			(p.Will == nil || pk.Connect.WillTopic == p.Will.Topic && bytes.Equal(pk.Connect.WillPayload, p.Will.Payload) &&
				pk.Connect.WillProperties.WillDelayInterval == p.Will.Delay)
	case *Publish:
		agree = pk.TopicName == p.Topic && bytes.Equal(pk.Payload, p.Payload) && pk.FixedHeader.Qos == p.QoS &&
			pk.FixedHeader.Retain == p.Retain && pk.FixedHeader.Dup == p.Dup && pk.PacketID == p.PacketID &&
			pk.Properties.TopicAlias == p.TopicAlias && pk.Properties.MessageExpiryInterval == p.MessageExpiry &&
			len(pk.Properties.SubscriptionIdentifier) == len(p.SubscriptionIDs)
	case *Ack:
		agree = pk.PacketID == p.ID && pk.ReasonCode == byte(p.Code) && pk.Properties.ReasonString == p.Reason
	case *Subscribe:
		agree = pk.PacketID == p.PacketID && len(pk.Filters) == len(p.Filters) && pk.Filters[0].Filter == p.Filters[0].Topic &&
			pk.Filters[0].RetainHandling == p.Filters[0].RetainHandling
	}
	if !agree {
		t.Fatalf("mochi reads % x as\n%+v\nwhich was\n%+v", in, pk, p)
	}
}

// TestPublishSizeOfTheImpossible: what cannot be encoded is larger than any limit, and is not encoded.
func TestPublishSizeOfTheImpossible(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", math.MaxUint16+1)
	for name, p := range map[string]*Publish{
		"topic":            {Topic: long},
		"content type":     {Topic: "t", Properties: &schema.Properties{ContentType: long}},
		"response topic":   {Topic: "t", Properties: &schema.Properties{ResponseTopic: long}},
		"correlation data": {Topic: "t", Properties: &schema.Properties{CorrelationData: []byte(long)}},
		"user key":         {Topic: "t", Properties: &schema.Properties{User: []schema.UserProperty{{Key: long}}}},
		"user value":       {Topic: "t", Properties: &schema.Properties{User: []schema.UserProperty{{Value: long}}}},
		"sum":              {Topic: "t", Payload: make([]byte, maxVarint)},
	} {
		if got := PublishSize(V5, p); got != math.MaxInt {
			t.Errorf("%s: size %d", name, got)
		}
		if got := AppendPublish([]byte{1}, V5, p); len(got) != 1 {
			t.Errorf("%s: %d bytes were appended", name, len(got)-1)
		}
		if p.Properties != nil && PublishSize(V311, p) != len(AppendPublish(nil, V311, p)) {
			t.Errorf("%s: below MQTT 5 the property does not count", name)
		}
	}
}

// TestAppendBelowV5 checks what an older version makes of codes and reasons.
func TestAppendBelowV5(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ got, want []byte }{
		"ack without code":    {AppendAck(nil, V311, PUBACK, 0x1234, QuotaExceeded), raw(t, "40 02 1234")},
		"PUBREL":              {AppendAck(nil, V311, PUBREL, 1, Success), raw(t, "62 02 0001")},
		"SUBACK failures":     {AppendSuback(nil, V311, 1, []ReasonCode{GrantedQoS2, NotAuthorized}), raw(t, "90 04 0001 02 80")}, // [MQTT-3.9.3-2]
		"UNSUBACK":            {AppendUnsuback(nil, V31, 1, []ReasonCode{Success}), raw(t, "b0 02 0001")},
		"no DISCONNECT":       {AppendDisconnect(nil, V311, SessionTakenOver, "x"), nil},
		"client DISCONNECT":   {AppendClientDisconnect(nil, V311, &Disconnect{Code: DisconnectWithWill}), raw(t, "e0 00")},
		"banned":              {AppendConnack(nil, V311, &Connack{Code: Banned}), raw(t, "20 02 00 05")},
		"busy":                {AppendConnack(nil, V31, &Connack{Code: ServerBusy}), raw(t, "20 02 00 03")},
		"session present":     {AppendConnack(nil, V311, &Connack{SessionPresent: true, ReceiveMaximum: 9}), raw(t, "20 02 01 00")},
		"no session refused":  {AppendConnack(nil, V311, &Connack{SessionPresent: true, Code: NotAuthorized}), raw(t, "20 02 00 05")}, // [MQTT-3.2.2-4]
		"v5 ack, short":       {AppendAck(nil, V5, PUBCOMP, 1, Success), raw(t, "70 02 0001")},
		"v5 ack with code":    {AppendAck(nil, V5, PUBREC, 1, QuotaExceeded), raw(t, "50 03 0001 97")},
		"v5 DISCONNECT":       {AppendDisconnect(nil, V5, KeepAliveTimeout, ""), raw(t, "e0 01 8d")},
		"v5 redirect":         {AppendRedirect(nil, V5, UseAnotherServer, "b:1"), raw(t, "e0 08 9c 06 1c 0003 623a31")},
		"no redirect":         {AppendRedirect(nil, V311, UseAnotherServer, "b:1"), nil},
		"v5 with reason":      {AppendDisconnect(nil, V5, ServerBusy, "a\x00\xff"), raw(t, "e0 08 89 06 1f 0003 613f3f")},
		"v5 code of CONNACK":  {AppendDisconnect(nil, V5, ClientIdentifierNotValid, ""), raw(t, "e0 01 80")}, // [MQTT-3.14.2-1]
		"no packet id":        {AppendSubscribe(nil, V5, &Subscribe{}), nil},
		"v5 SUBACK":           {AppendSuback(nil, V5, 1, []ReasonCode{NotAuthorized}), raw(t, "90 04 0001 00 87")},
		"v5 UNSUBACK":         {AppendUnsuback(nil, V5, 1, []ReasonCode{NoSubscriptionExisted}), raw(t, "b0 04 0001 00 11")},
		"v5 session present":  {AppendConnack(nil, V5, &Connack{SessionPresent: true}), raw(t, "20 03 01 00 00")},
		"PINGREQ, PINGRESP":   {AppendPingresp(AppendPingreq(nil)), raw(t, "c000 d000")},
		"DUP only with QoS":   {AppendPublish(nil, V311, &Publish{Topic: "t", Dup: true}), raw(t, "30 03 0001 74")}, // [MQTT-3.3.1-2]
		"no properties below": {AppendPublish(nil, V311, &Publish{Topic: "t", TopicAlias: 1, HasExpiry: true}), raw(t, "30 03 0001 74")},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: got % x, want % x", name, c.got, c.want)
		}
	}
}

// TestReasonStringIsCut: at a whole character, and never above maxReason.
func TestReasonStringIsCut(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := reasonString(string(rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "bytes")) + rapid.StringN(0, 200, -1).Draw(t, "text"))
		if len(s) > maxReason || !validString([]byte(s)) {
			t.Fatalf("%d bytes: %+q", len(s), s)
		}
	})
	if got := reasonString("x" + strings.Repeat("é", 200)); got != "x"+strings.Repeat("é", maxReason/2-1) {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for i := range 256 {
		if name := ReasonCode(i).String(); name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != "" {
			t.Errorf("reason code %#x: %q", i, name)
		}
	}
	for want, got := range map[string]string{
		"malformed_packet": MalformedPacket.String(), "qos_not_supported": QoSNotSupported.String(), "unknown": ReasonCode(0x7f).String(),
		"bad_user_name_or_password": BadUserNameOrPassword.String(), "3.1.1": V311.String(), "PUBACK": PUBACK.String(),
		"wire: PUBLISH: topic_alias_invalid: topic alias is 0": (&Error{Code: TopicAliasInvalid, Packet: PUBLISH, Err: errAliasZero}).Error(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
