package session

import (
	"slices"
	"strings"

	"rewindmq/schema"
)

// fewWildcards is up to how many subscriptions with wildcards are compared with a
// topic one by one: that is as fast as the levels, and costs no memory.
const fewWildcards = 16

// wildcards holds the subscriptions whose filters have wildcards: few in a row, many by
// their levels. The hub waits while a session matches a message, so what that costs
// follows the topic, and not the number of filters that one client has.
//
// Invariant: many is nil, or few is empty.
type wildcards struct {
	few  []*subscription // in the order of their making
	many *levels
}

// add takes a subscription in. REQUIRES: none with its filter is there.
func (w *wildcards) add(sub *subscription) {
	if w.many == nil && len(w.few) < fewWildcards {
		w.few = append(w.few, sub)
		return
	}
	if w.many == nil {
		w.many = &levels{below: make(map[edge]*level)}
		for _, o := range w.few {
			w.many.add(o)
		}
		w.few = nil
	}
	w.many.add(sub)
}

// remove takes a subscription out. Half of few is what makes them few again: not each
// turn of a client about the bound changes the form.
func (w *wildcards) remove(sub *subscription) {
	if w.many == nil {
		w.few = slices.DeleteFunc(w.few, func(o *subscription) bool { return o == sub })
		return
	}
	if w.many.remove(sub); w.many.n <= fewWildcards/2 {
		w.few, w.many = w.many.all(), nil
	}
}

// levels are subscriptions by the levels of their filters. To match a topic it visits
// at each level what has this level's name and what has `+`, as far as there are filters:
// for a topic of n levels 2^(n+1) at most, however many filters there are. That is
// the number of filters that can match it.
type levels struct {
	n     int // subscriptions
	root  level
	below map[edge]*level // one for all levels: a map for each would cost more than it holds
}

// edge leads from a level to one below it. No topic has `+` for a level, so that name
// stands for the wildcard.
type edge struct {
	from *level
	name string
}

// level stands for the levels of a filter from the root to here.
type level struct {
	here *subscription // whose filter ends here
	all  *subscription // whose filter goes on with `#`
	kids int           // edges that begin here
}

func (l *levels) add(sub *subscription) {
	l.n++
	at := &l.root
	for rest, more := sub.Filter, true; more; {
		var name string
		if name, rest, more = strings.Cut(rest, "/"); name == "#" {
			at.all = sub
			return
		}
		next := l.below[edge{at, name}]
		if next == nil {
			next = new(level)
			at.kids++
			// A copy, else the level of one long filter would keep all of it.
			l.below[edge{at, strings.Clone(name)}] = next
		}
		at = next
	}
	at.here = sub
}

func (l *levels) remove(sub *subscription) { l.removeAt(&l.root, sub, sub.Filter) }

// removeAt goes down along what is left of the filter, and cuts off what has become
// empty on its way back.
func (l *levels) removeAt(at *level, sub *subscription, rest string) {
	name, rest, more := strings.Cut(rest, "/")
	if name == "#" {
		if at.all == sub {
			at.all = nil
			l.n--
		}
		return
	}
	next := l.below[edge{at, name}]
	switch {
	case next == nil:
		return
	case more:
		l.removeAt(next, sub, rest)
	case next.here == sub:
		next.here = nil
		l.n--
	}
	if next.here == nil && next.all == nil && next.kids == 0 {
		delete(l.below, edge{at, name})
		at.kids--
	}
}

// all gives all subscriptions, by filter.
func (l *levels) all() []*subscription {
	out := make([]*subscription, 0, l.n)
	gather := func(at *level) {
		for _, sub := range [...]*subscription{at.here, at.all} {
			if sub != nil {
				out = append(out, sub)
			}
		}
	}
	gather(&l.root)
	for _, at := range l.below {
		gather(at)
	}
	slices.SortFunc(out, func(a, b *subscription) int { return strings.Compare(a.Filter, b.Filter) })
	return out
}

// match adds those that match the message's topic. A filter that begins with a wildcard
// does not match a topic that begins with `$` [MQTT-4.7.2-1].
func (l *levels) match(s *Session, m *schema.Message, r *match) {
	if m.Topic == "" || m.Topic[0] != '$' {
		l.visit(&l.root, m.Topic, true, s, m, r)
		return
	}
	name, rest, more := strings.Cut(m.Topic, "/")
	if next := l.below[edge{&l.root, name}]; next != nil {
		l.visit(next, rest, more, s, m, r)
	}
}

// visit takes what the filters that have led to a level have for the rest of the topic.
// more: there is a rest.
func (l *levels) visit(at *level, rest string, more bool, s *Session, m *schema.Message, r *match) {
	if at.all != nil { // also the parent level: sport/# matches sport
		r.add(s, at.all, m)
	}
	if !more {
		if at.here != nil {
			r.add(s, at.here, m)
		}
		return
	}
	if at.kids == 0 {
		return
	}
	name, rest, more := strings.Cut(rest, "/")
	if next := l.below[edge{at, name}]; next != nil {
		l.visit(next, rest, more, s, m, r)
	}
	if next := l.below[edge{at, "+"}]; next != nil {
		l.visit(next, rest, more, s, m, r)
	}
}
