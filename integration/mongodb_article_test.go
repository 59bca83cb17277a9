package integration

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// The statements of the article that the system is made after (S-…), as far as they
// can be read off the documents in the database.

// documents gives what a filter finds in a collection, oldest first.
func (b *broker) documents(collection string, filter bson.D) []bson.Raw {
	b.t.Helper()
	cur, err := b.place.db.Collection(collection).Find(b.t.Context(), filter)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []bson.Raw
	if err := cur.All(b.t.Context(), &out); err != nil {
		b.t.Fatal(err)
	}
	return out
}

// shape checks that a document has the fields, of those types.
func shape(t *testing.T, d bson.Raw, types map[string]bson.Type) {
	t.Helper()
	for name, kind := range types {
		if v, err := d.LookupErr(name); err != nil || v.Type != kind {
			t.Errorf("%s is %v (%v), want %v: %v", name, v.Type, err, kind, d)
		}
	}
}

// S-06, S-14, S-28, S-29, S-30, S-32, S-34: each message that was taken, at any QoS,
// retained, a will, is one document of the article's shape: as it was published, under
// the name of the node that took it (of a will: that appended it), a text as a string,
// other bytes as binary.
func TestS14_OneDocumentForEachMessage(t *testing.T) {
	a, b := pair(t)
	began := time.Now()
	type sent struct {
		message
		client, host string
	}
	var all []sent
	for i, o := range []*broker{a, b} {
		for qos := range byte(3) {
			for _, retain := range []bool{false, true} {
				for _, payload := range []string{"47.8,2022-04-21T08:00:00Z", "", "\xff\x00\x01", "a\x00b", "grüß"} {
					m := message{topic: fmt.Sprintf("s14/%d/%d", i, len(all)), qos: qos, retain: retain, payload: []byte(payload)}
					all = append(all, sent{m, fmt.Sprintf("dev-%d", i), o.node})
				}
			}
		}
		dev := transient([]byte{v311, v5}[i], fmt.Sprintf("dev-%d", i))
		dev.will = &will{topic: fmt.Sprintf("s14/%d/%d", i, len(all)), payload: "gone", qos: 1}
		c := o.open(dev)
		for _, s := range all {
			if s.client == dev.clientID {
				c.publish(s.message)
			}
		}
		c.cut()
		all = append(all, sent{message{topic: dev.will.topic, qos: 1, payload: []byte("gone")}, dev.clientID, ""})
	}
	var docs []bson.Raw
	b.eventually("all of them are there", func() bool {
		docs = b.documents("message", bson.D{{Key: "topic", Value: bson.D{{Key: "$regex", Value: "^s14/"}}}})
		return len(docs) >= len(all)
	})
	if len(docs) != len(all) {
		t.Errorf("%d documents for %d messages", len(docs), len(all))
	}
	byTopic := map[string]bson.Raw{}
	for _, d := range docs {
		byTopic[d.Lookup("topic").StringValue()] = d
	}
	for _, s := range all {
		d, ok := byTopic[s.topic]
		if !ok {
			t.Errorf("no document on %s", s.topic)
			continue
		}
		kind := bson.TypeString
		if strings.HasPrefix(string(s.payload), "\xff") {
			kind = bson.TypeBinary
		}
		shape(t, d, map[string]bson.Type{
			"_id": bson.TypeObjectID, "topic": bson.TypeString, "data": kind, "clientId": bson.TypeString,
			"qos": bson.TypeInt32, "retain": bson.TypeBoolean, "created": bson.TypeDateTime, "host": bson.TypeString,
		})
		var data []byte
		if kind == bson.TypeBinary {
			_, data = d.Lookup("data").Binary()
		} else {
			data = []byte(d.Lookup("data").StringValue())
		}
		created := d.Lookup("created").Time()
		switch {
		case !bytes.Equal(data, s.payload), d.Lookup("clientId").StringValue() != s.client, byte(d.Lookup("qos").Int32()) != s.qos,
			d.Lookup("retain").Boolean() != s.retain, d.Lookup("host").StringValue() != s.host && s.host != "":
			t.Errorf("%v for %+v", d, s)
		case created.Before(began.Add(-time.Second)) || created.After(time.Now().Add(time.Second)):
			t.Errorf("created %v, the test began at %v", created, began)
		case d.Lookup("_id").ObjectID().Timestamp().Unix() != created.Unix():
			t.Errorf("_id is of %v, created %v", d.Lookup("_id").ObjectID().Timestamp(), created)
		}
	}
}

// S-16, S-17, S-19, S-20, S-23: SUBACK means that the document is there, in the
// article's shape, one for each client and filter, also of clean sessions and with the
// options of MQTT 5; UNSUBACK that it is gone; and it goes with its session.
func TestS16_SubscriptionDocuments(t *testing.T) {
	a, b := pair(t)
	of := func(client string) []bson.Raw {
		return b.documents("subscription", bson.D{{Key: "clientId", Value: client}})
	}
	dev, clean := a.open(persistent(v5, "s16")), b.open(transient(v311, "s16-clean"))
	for filter, wildcard := range map[string]string{"s16/exact": "", "/s16/+/message": "+", "s16/#": "#", "s16/+/#": "+#"} {
		dev.subscribe(want{filter, 1})
		docs := of("s16")
		i := slices.IndexFunc(docs, func(d bson.Raw) bool { return d.Lookup("topic").StringValue() == filter })
		if i < 0 {
			t.Fatalf("no document of %s after SUBACK: %v", filter, docs)
		}
		shape(t, docs[i], map[string]bson.Type{
			"_id": bson.TypeObjectID, "topic": bson.TypeString, "clientId": bson.TypeString, "qos": bson.TypeInt32, "created": bson.TypeDateTime,
		})
		if got, _ := docs[i].Lookup("wildcard").StringValueOK(); got != wildcard {
			t.Errorf("%s has the wildcard %q, want %q", filter, got, wildcard)
		}
		if _, err := docs[i].LookupErr("wildcard"); err == nil && wildcard == "" {
			t.Errorf("%s has a wildcard: %v", filter, docs[i])
		}
	}
	// Once more, from the other node: the same document.
	before := b.documents("subscription", bson.D{{Key: "clientId", Value: "s16"}, {Key: "topic", Value: "s16/#"}})
	dev = b.open(persistent(v5, "s16")).expectPresent(true)
	dev.subscribeWith([]property{{id: 0x0b, num: 7}}, want{"s16/#", 0x2c | 2}) // rh 2, rap, nl
	after := b.documents("subscription", bson.D{{Key: "clientId", Value: "s16"}, {Key: "topic", Value: "s16/#"}})
	if len(before) != 1 || len(after) != 1 {
		t.Fatalf("%d documents, then %d, want 1", len(before), len(after))
	}
	for _, name := range []string{"_id", "created"} {
		if !before[0].Lookup(name).Equal(after[0].Lookup(name)) {
			t.Errorf("%s was %v and is %v", name, before[0].Lookup(name), after[0].Lookup(name))
		}
	}
	for name, value := range map[string]int64{"qos": 2, "rh": 2, "subscriptionId": 7} {
		if n, _ := after[0].Lookup(name).AsInt64OK(); n != value {
			t.Errorf("%s is %d, want %d", name, n, value)
		}
	}
	if nl, _ := after[0].Lookup("nl").BooleanOK(); !nl {
		t.Errorf("nl is not set: %v", after[0])
	}
	if n := len(of("s16")); n != 4 {
		t.Errorf("%d documents, want 4", n)
	}
	dev.send(unsubscribePacket(v5, 99, "s16/#", "s16/exact"))
	dev.awaitID(kindUnsuback, 99)
	if n := len(of("s16")); n != 2 {
		t.Errorf("%d documents after UNSUBACK, want 2", n)
	}
	clean.subscribe(want{"s16/clean", 0})
	if n := len(of("s16-clean")); n != 1 {
		t.Errorf("%d documents of the clean session, want 1", n)
	}
	clean.cut()
	b.eventually("those of the clean session go with it", func() bool { return len(of("s16-clean")) == 0 })
	dev.disconnect()
	a.open(transient(v5, "s16")).disconnect() // clean start: the old session ends
	b.eventually("a clean start takes all", func() bool { return len(of("s16")) == 0 })
	// What a node that dies leaves of clean sessions is swept.
	a.open(transient(v5, "s16-dead")).subscribe(want{"s16/dead", 1})
	a.kill9()
	b.within(2*time.Minute, "those of a dead node's clean sessions go", func() bool { return len(of("s16-dead")) == 0 })
}

// S-33: a retained message outlives its document in the log, and every node.
func TestS33_RetainedWithoutItsMessage(t *testing.T) {
	a, b := pair(t)
	pub := a.open(transient(v5, "pub"))
	pub.publish(message{topic: "s33/old", qos: 1, retain: true, payload: []byte("kept")})
	pub.publish(message{topic: "s33/gone", qos: 1, retain: true, payload: []byte("cleared")})
	pub.publish(message{topic: "s33/gone", qos: 1, retain: true})
	b.eventually("the projection is stored", func() bool { return len(b.documents("retained", bson.D{{Key: "_id", Value: "s33/old"}})) == 1 })
	if _, err := a.place.db.Collection("message").DeleteMany(t.Context(), bson.D{{Key: "topic", Value: "s33/old"}}); err != nil {
		t.Fatal(err)
	}
	a.kill9()
	b.kill9()
	b.restart()
	c := b.open(transient(v311, "sub"))
	c.subscribe(want{"s33/#", 1})
	if p := c.settle(c.takePayload("kept")); !p.retain {
		t.Errorf("%v, want RETAIN=1", p)
	}
	b.publishTexts("s33/end", 1, "end")
	c.settle(c.takePayload("end"))
}

// S-31: with the setting every payload is stored as binary; what was stored as a string
// before comes with the rest, also as retained, byte by byte.
func TestS31_BinaryPayloads(t *testing.T) {
	a, b := pair(t)
	away := b.open(persistent(v5, "s31"))
	away.subscribe(want{"s31/#", 1})
	away.cut()
	send := func(text string) {
		pub := a.open(transient(v5, "pub"))
		pub.publish(message{topic: "s31/t", qos: 1, payload: []byte(text)})
		pub.publish(message{topic: fmt.Sprint("s31/kept/", len(text)), qos: 1, retain: true, payload: []byte(text)})
	}
	send("text, 21.5")
	a.kill9()
	a.args = append(a.args, "--set", "store.mongo.payload=binary")
	a.restart()
	send("more text")
	send("\xff\x00bytes")
	types := map[string]string{}
	for _, d := range a.documents("message", bson.D{{Key: "topic", Value: bson.D{{Key: "$regex", Value: "^s31/"}}}}) {
		types[string(payloadIn(t, d))] += d.Lookup("data").Type.String() + " "
	}
	want31 := map[string]string{"text, 21.5": "string string ", "more text": "binary binary ", "\xff\x00bytes": "binary binary "}
	if !maps.Equal(types, want31) {
		t.Errorf("the payloads are stored as %q, want %q", types, want31)
	}
	away = b.open(persistent(v5, "s31")).expectPresent(true)
	for _, text := range []string{"text, 21.5", "more text", "\xff\x00bytes"} {
		away.settle(away.takePayload(text))
		away.settle(away.takePayload(text))
	}
	fresh := a.open(transient(v5, "fresh"))
	fresh.subscribe(want{"s31/kept/#", 1})
	got := map[string]bool{}
	for range 3 {
		got[string(fresh.settle(fresh.take()).payload)] = true
	}
	if len(got) != 3 || !got["text, 21.5"] || !got["more text"] {
		t.Errorf("retained: %v", got)
	}
}

// payloadIn gives the bytes of a document's payload.
func payloadIn(t *testing.T, d bson.Raw) []byte {
	t.Helper()
	v := d.Lookup("data")
	if s, ok := v.StringValueOK(); ok {
		return []byte(s)
	}
	_, data, ok := v.BinaryOK()
	if !ok {
		t.Fatalf("data is a %v", v.Type)
	}
	return data
}

// S-34, S-35, S-40: each delivery is one document of the article's shape, under the
// name of the node that delivered; a repeat adds none, a retained message that comes
// again for a new SUBSCRIBE does; and no record names a message that is not there.
func TestS35_DeliveryDocuments(t *testing.T) {
	a, b := pair(t)
	pub := a.open(transient(v5, "pub"))
	pub.publish(message{topic: "s35/kept", qos: 1, retain: true, payload: []byte("kept")})
	dev := persistent(v5, "s35")
	c := b.open(dev)
	c.subscribe(want{"s35/#", 2})
	c.settle(c.takePayload("kept"))
	c.subscribe(want{"s35/#", 2})
	c.settle(c.takePayload("kept"))
	for i := range 6 {
		pub.publish(message{topic: "s35/t", qos: byte(1 + i%2), payload: fmt.Append(nil, i)})
	}
	var open []packet
	for i := range 6 {
		open = append(open, c.takePayload(fmt.Sprint(i)))
	}
	c.cut()
	c = a.open(dev).expectPresent(true)
	c.expectResent(open)
	for _, p := range open {
		c.settle(p)
	}
	pub.publish(message{topic: "s35/t", qos: 1, payload: []byte("by A")})
	c.settle(c.takePayload("by A"))
	c.disconnect()

	names := map[string]string{} // _id of the message: payload
	for _, d := range a.documents("message", bson.D{{Key: "topic", Value: bson.D{{Key: "$regex", Value: "^s35/"}}}}) {
		names[d.Lookup("_id").ObjectID().Hex()] = d.Lookup("data").StringValue()
	}
	got := map[string]int{}
	for _, d := range a.documents("publishedMessage", bson.D{{Key: "clientId", Value: "s35"}}) {
		if _, err := d.LookupErr("messageId"); err != nil {
			continue // a fence
		}
		shape(t, d, map[string]bson.Type{
			"_id": bson.TypeObjectID, "clientId": bson.TypeString, "topic": bson.TypeString, "messageId": bson.TypeObjectID,
			"host": bson.TypeString, "created": bson.TypeDateTime,
		})
		text, ok := names[d.Lookup("messageId").ObjectID().Hex()]
		if !ok {
			t.Errorf("no such message: %v", d)
		}
		got[text]++
		host := b.node
		if text == "by A" {
			host = a.node
		}
		if d.Lookup("host").StringValue() != host {
			t.Errorf("%q was delivered by %v, want %s", text, d.Lookup("host"), host)
		}
	}
	want := map[string]int{"kept": 2, "0": 1, "1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "by A": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("records: %v, want %v", got, want)
	}
}

// S-18, S-37, S-41, S-45: everything that counts is in the database. All brokers are
// killed, and others with other names come: sessions, subscriptions, a backlog, what
// was in flight both ways, retained messages and wills that are not yet due go on.
func TestS41_OtherBrokers(t *testing.T) {
	a, b := pair(t)
	watch := persistent(v5, "watch")
	b.open(watch).subscribe(want{"s41/#", 2})
	dev := session{version: v5, clientID: "s41", expiry: 600, will: &will{topic: "s41/will", payload: "gone", qos: 1, delay: 3}}
	c := a.open(dev)
	c.subscribe(want{"s41/dev/+", 2})
	pub := b.open(persistent(v5, "pub"))
	pub.publish(message{topic: "s41/kept", qos: 1, retain: true, payload: []byte("kept")})
	var open []packet
	for i := range 4 {
		pub.publish(message{topic: "s41/dev/a", qos: byte(1 + i%2), payload: fmt.Append(nil, i)})
		open = append(open, c.takePayload(fmt.Sprint(i)))
	}
	pub.send(message{topic: "s41/half", qos: 2, payload: []byte("half")}.packet(v5, 77, false))
	pub.awaitID(kindPubrec, 77)
	a.kill9() // its session is nobody's for a while
	for i := 4; i < 8; i++ {
		pub.publish(message{topic: "s41/dev/a", qos: 1, payload: fmt.Append(nil, i)})
	}
	b.kill9()

	x := a.another("other")
	p := x.open(persistent(v5, "pub")).expectPresent(true)
	p.send(message{topic: "s41/half", qos: 2, payload: []byte("half")}.packet(v5, 77, true))
	p.awaitID(kindPubrec, 77)
	p.ack(kindPubrel, 77)
	p.awaitID(kindPubcomp, 77)
	w := x.open(watch).expectPresent(true)
	// In the order of the log; what may have been sent before the kill has DUP.
	list := []string{"kept", "0", "1", "2", "3", "half", "4", "5", "6", "7"}
	gather(t, w, append(list, "gone"))
	dev.will = nil
	c = x.open(dev).expectPresent(true)
	c.expectResent(open)
	for _, p := range open {
		c.settle(p)
	}
	for i := 4; i < 8; i++ {
		c.settle(c.takePayload(fmt.Sprint(i)))
	}
	c.subscribe(want{"s41/kept", 1})
	if p := c.settle(c.takePayload("kept")); !p.retain {
		t.Errorf("%v, want RETAIN=1", p)
	}
	c.nothing()
}

// S-46, S-47, S-21, S-38: a new subscription gets the retained message of each topic
// and nothing of the history, also at another node and when it is made again; empty
// levels count.
func TestS46_FirstSubscribe(t *testing.T) {
	a, b := pair(t)
	pub := a.open(transient(v5, "pub"))
	for i := range 10 {
		pub.publish(message{topic: "/s46/x/message", qos: 1, payload: fmt.Append(nil, i)})
	}
	pub.publish(message{topic: "/s46/x/message", qos: 1, retain: true, payload: []byte("retained")})
	pub.publish(message{topic: "/s46/x/message", qos: 1, payload: []byte("last of before")})
	c := b.open(persistent(v5, "sub"))
	for range 2 {
		c.subscribe(want{"/s46/+/message", 1})
		if p := c.settle(c.takePayload("retained")); !p.retain {
			t.Errorf("%v, want RETAIN=1", p)
		}
	}
	for _, topic := range []string{"s46/x/message", "/s46/x/y/message", "/s46/message", "/s46/x/message/"} {
		pub.publish(message{topic: topic, qos: 1, payload: []byte("not wanted")})
	}
	pub.publish(message{topic: "/s46//message", qos: 1, payload: []byte("empty level")})
	c.settle(c.takePayload("empty level"))
	c.nothing()
}

// S-24, S-25: a wildcard subscription made at one node is effective at the other when
// SUBACK is read; and no node reads the database for a publish or a live delivery: the
// tail reads many messages at a time, and the subscriptions are in memory.
func TestS24_NoReadForAPublish(t *testing.T) {
	a, b := pair(t)
	dev := persistent(v311, "s24")
	c := a.open(dev)
	c.subscribe(want{"s24/+/reading", 0}, want{"$SYS/none", 0})
	clean := b.open(transient(v5, "s24-clean"))
	clean.subscribe(want{"s24/#", 0})
	pub := b.open(transient(v311, "pub"))
	pub.publish(message{topic: "s24/x/reading", qos: 1, payload: []byte("first")})
	c.settle(c.takePayload("first"))
	clean.settle(clean.takePayload("first"))

	db := a.place.db
	for _, cmd := range []bson.D{
		{{Key: "create", Value: "system.profile"}, {Key: "capped", Value: true}, {Key: "size", Value: 32 << 20}},
		{{Key: "profile", Value: 2}, {Key: "filter", Value: bson.D{{Key: "$or", Value: bson.A{
			bson.D{{Key: "op", Value: "query"}},
			bson.D{{Key: "command.aggregate", Value: bson.D{{Key: "$exists", Value: true}}}},
			bson.D{{Key: "command.count", Value: bson.D{{Key: "$exists", Value: true}}}},
			bson.D{{Key: "command.distinct", Value: bson.D{{Key: "$exists", Value: true}}}},
		}}}}},
	} {
		if err := db.RunCommand(t.Context(), cmd).Err(); err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
	}
	n := max(1000, size(20_000))
	pub.publishAll(n, 200, func(i int) message {
		return message{topic: fmt.Sprintf("s24/%d/reading", i), qos: 1, payload: fmt.Append(nil, i)}
	})
	for i := range n {
		c.takePayload(fmt.Sprint(i))
		clean.takePayload(fmt.Sprint(i))
	}
	reads := map[string]int{}
	all := 0
	for _, d := range b.documents("system.profile", bson.D{}) {
		ns := d.Lookup("ns").StringValue()
		reads[ns]++
		all++
	}
	t.Logf("%d messages, %d reads: %v", n, all, reads)
	if all > n/2 {
		t.Errorf("%d reads for %d messages", all, n)
	}
	if m := reads[db.Name()+".subscription"]; m > n/10 { // who has members of groups is looked up every few seconds
		t.Errorf("%d reads of subscriptions", m)
	}
}
