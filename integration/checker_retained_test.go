package integration

import "maps"

// look is what a new subscriber gets of retained messages.
type look struct {
	filter string
	must   map[stream]int // the newest that was acknowledged before
	got    []event
	end    int64 // when the last topic came, which was written before and is not any more; 0: not yet
}

// lastTopic is behind all others in the order in which retained messages come.
const lastTopic = "k9r/z"

// beginLook is called before SUBSCRIBE is sent. Each topic has one stream.
func (l *ledger) beginLook(filter string) *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := &look{filter: filter, must: map[stream]int{}}
	for _, pub := range l.pubs {
		for a := range pub.acked {
			if matches(filter, a.topic) {
				k.must[a.stream] = max(k.must[a.stream], a.seq)
			}
		}
	}
	return k
}

// arrived notes a PUBLISH, and tells whether each topic has come.
func (k *look) arrived(l *ledger, p packet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := event{at: l.tick(), kind: p.kind, topic: p.topic, retain: p.retain, qos: p.qos, dup: p.dup}
	e.key, _ = parseKey(p.payload)
	k.got = append(k.got, e)
	if e.topic == lastTopic {
		k.end = e.at
	}
	return k.whole()
}

func (k *look) whole() bool {
	came := map[stream]bool{}
	for _, e := range k.got {
		came[e.key.stream] = true
	}
	for s := range maps.Keys(k.must) {
		if !came[s] {
			return false
		}
	}
	return true
}

// checkLook: of each topic comes the last acknowledged value, or one behind it; once
// with RETAIN=1, and that first. Only where the topic was written meanwhile there may be
// none: the log brings it.
func (l *ledger) checkLook(k *look) []fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &checker{l: l}
	came := map[stream]bool{}
	for _, e := range k.got {
		pub := l.pubs[e.key.pub]
		first := !came[e.key.stream] && k.must[e.key.stream] > 0
		switch {
		case pub == nil || pub.sends[e.key] == 0 || e.topic != e.key.topic:
			c.add(faultPhantom, k.filter, "%v was never sent on %s", e.key, e.topic)
		case pub.never[e.key]:
			c.add(faultPhantom, k.filter, "%v is a will that was cancelled", e.key)
		case e.key.seq < k.must[e.key.stream]:
			c.add(faultLost, k.filter, "%v (RETAIN=%t) is older than %d, which was acknowledged before SUBSCRIBE", e.key, e.retain, k.must[e.key.stream])
		case first && !e.retain && (e.topic == lastTopic || k.end > 0 && pub.firstSent()[e.key] > k.end):
			c.add(faultLost, k.filter, "%v comes live, and nothing came before that with RETAIN=1", e.key)
		case e.retain && came[e.key.stream]:
			c.add(faultDuplicated, k.filter, "%v with RETAIN=1 comes after another one", e.key)
		}
		came[e.key.stream] = true
	}
	for s := range maps.Keys(k.must) {
		if !came[s] {
			c.add(faultLost, k.filter, "nothing came for %v, of which %d was acknowledged", s, k.must[s])
		}
	}
	return c.faults
}

// checkLast holds a look, when all was quiet, against the log: of each topic the last
// message that was to be retained, and with RETAIN=1.
func (l *ledger) checkLast(k *look, a audit) []fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &checker{l: l}
	last, got := map[string]key{}, map[string]key{}
	for _, m := range a.messages {
		if m.retain && matches(k.filter, m.topic) {
			last[m.topic], _ = parseKey(m.payload)
		}
	}
	for _, e := range k.got {
		got[e.topic] = e.key
		if !e.retain {
			c.add(faultFlow, k.filter, "%v has RETAIN=0", e.key)
		}
	}
	for _, topic := range sortedKeys(last) {
		if got[topic] != last[topic] {
			c.add(faultLog, k.filter, "%s: %v is retained, the last in the log is %v", topic, got[topic], last[topic])
		}
	}
	for _, topic := range sortedKeys(got) {
		if _, ok := last[topic]; !ok {
			c.add(faultLog, k.filter, "%s: %v is retained and not in the log", topic, got[topic])
		}
	}
	return c.faults
}
