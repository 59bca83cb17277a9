package session

import (
	"slices"

	"rewindmq/schema"
	"rewindmq/store"
)

// subscription is one of the session's, with what is not stored of it.
type subscription struct {
	schema.Subscription
	stored bool
	moved  bool // it stands in retainedRuns.moved
	// safe is the place of the run that may be stored: it follows the records,
	// as after does. Run.Next follows what was taken.
	safe string
}

// request is a SUBSCRIBE or UNSUBSCRIBE that waits for its turn.
type request struct {
	id          uint16
	behind      uint64                // the client's message that it came behind, as Session.read counts
	subscribe   []schema.Subscription // valid ones, in order
	codes       []Code                // the whole answer; those of `subscribe` are set when granted
	unsubscribe []string
}

func (s *Session) setSubscription(sub *subscription) {
	if _, shared := schema.CutShare(sub.Filter); shared {
		s.setShared(sub)
		return
	}
	if s.subs == nil {
		s.subs = make(map[string]*subscription)
	}
	s.deleteSubscription(sub.Filter)
	s.subs[sub.Filter], s.filters = sub, nil
	if sub.Run != nil {
		s.beginRun(sub)
	}
	if schema.Wildcard(sub.Filter) != "" {
		s.wild.add(sub)
	}
}

// deleteSubscription takes one out; sweepRuns is to follow.
func (s *Session) deleteSubscription(filter string) bool {
	if s.shared[filter] != nil {
		delete(s.shared, filter)
		return true
	}
	old := s.subs[filter]
	if old == nil {
		return false
	}
	delete(s.subs, filter)
	s.filters = nil
	s.dropRun(old)
	if schema.Wildcard(filter) != "" {
		s.wild.remove(old)
	}
	return true
}

// Subscribed tells whether filter is subscribed to, for limits.
func (s *Session) Subscribed(filter string) bool { return s.subscribed(filter) != nil }

// OnSubscribe takes a SUBSCRIBE: its valid filters with their options, and the
// codes of the whole answer in order, in which those of the valid filters hold
// the QoS granted.
func (s *Session) OnSubscribe(id uint16, subs []schema.Subscription, codes []Code) {
	s.requests = append(s.requests, request{id: id, behind: s.read, subscribe: subs, codes: codes})
	s.nextRequest()
}

// OnUnsubscribe takes an UNSUBSCRIBE.
func (s *Session) OnUnsubscribe(id uint16, filters []string) {
	s.requests = append(s.requests, request{id: id, unsubscribe: filters})
	s.nextRequest()
}

// maximumWrites bounds the session writes under way for requests.
const maximumWrites = 64

// MayRequest tells whether a SUBSCRIBE or UNSUBSCRIBE may be read: the caller keeps
// to it, so that neither waiting requests nor their writes grow without bound, and
// Subscriptions speaks for all that were read before.
func (s *Session) MayRequest() bool {
	return s.closing || len(s.requests) == 0 && s.writes.len() < maximumWrites
}

// Requests gives the number of requests that wait.
func (s *Session) Requests() int { return len(s.requests) }

// nextRequest begins with the first request. Requests are done one at a time:
// an UNSUBSCRIBE does not overtake the SUBSCRIBE before it.
func (s *Session) nextRequest() {
	for len(s.requests) > 0 && !s.asking && !s.closing {
		r := s.requests[0]
		if len(r.subscribe) > 0 {
			s.asking = true
			s.ask()
			return
		}
		s.requests = s.requests[1:]
		if r.unsubscribe != nil {
			s.unsubscribe(r)
			continue
		}
		s.do(Action{Do: SendSuback, PacketID: r.id, Codes: r.codes}) // nothing valid in it
	}
	if len(s.requests) == 0 {
		s.requests = nil
	}
}

// ask asks for the place of the first SUBSCRIBE, once the store has answered for
// everything that the client published before it: that lies before the
// subscription, as it came before.
func (s *Session) ask() {
	if !s.asking || s.asked || s.closing || s.answered < s.requests[0].behind {
		return
	}
	// The hub matches the filters from before Head is read, so that nothing that
	// commits after Head is processed without them.
	var filters []string
	known := map[string]bool{}
	for i := range s.requests[0].subscribe {
		if filter := s.requests[0].subscribe[i].Filter; !isShared(filter) && !known[filter] {
			known[filter] = true
			filters = append(filters, filter)
		}
	}
	s.asked = true
	if len(filters) > 0 {
		s.do(Action{Do: DoFilters, Filters: filters})
	}
	s.do(Action{Do: DoHead})
}

func isShared(filter string) bool {
	_, shared := schema.CutShare(filter)
	return shared
}

// OnHead brings what DoHead asked for; on an error the connection ends.
func (s *Session) OnHead(head schema.Cursor, err error) {
	s.asking, s.asked = false, false
	if s.closing || len(s.requests) == 0 {
		s.finish()
		return
	}
	if err != nil {
		s.Close(ReasonStore)
		return
	}
	r := s.requests[0]
	s.requests = s.requests[1:]
	// What was acknowledged before SUBSCRIBE was sent is not after the place
	// (R1, R7, S-47); what the hub has offered before the filter was known is
	// not either.
	place := s.o.H().Clone()
	if s.on(ruleSince) {
		place.Merge(head)
		place.Merge(s.taken)
	}
	if s.rises(r.subscribe) && s.on(ruleSaveRise) {
		s.saving = false // one that is under way may say less
		s.save()
	}
	// Each filter by itself, as if it had come in a SUBSCRIBE of its own [MQTT-3.8.4-5]:
	// of several with the same one the last stands, in place of those before.
	subs := make([]*subscription, len(r.subscribe))
	for i := range r.subscribe {
		subs[i] = s.subscribe(&r.subscribe[i], place)
	}
	subs = slices.DeleteFunc(subs, func(sub *subscription) bool { return s.subscribed(sub.Filter) != sub })
	docs := make([]schema.Subscription, len(subs))
	for i, sub := range subs {
		docs[i] = sub.document(s)
	}
	if s.sweepRuns(); slices.ContainsFunc(subs, func(sub *subscription) bool { return sub.Run != nil }) {
		s.do(Action{Do: DoWaitFor, Place: place})
	}
	s.write(written{kind: wroteSubscribe, subs: subs, id: r.id, codes: r.codes}, store.PutSubscriptions{Owner: s.o.Owner, Subscriptions: docs})
	s.nextRequest()
	s.drainIngest()
}

// rises tells whether a subscription is replaced by one of a higher QoS, or by one of
// which the highest QoS so far holds for longer than it did. Then the cursor is saved
// before: what QoS 0 has passed left no record, and a replay from an older vector would
// bring it again, at the higher QoS.
func (s *Session) rises(subs []schema.Subscription) bool {
	return slices.ContainsFunc(subs, func(want schema.Subscription) bool {
		old := s.subs[want.Filter]
		return old != nil && (old.QoS < want.QoS || old.Before != nil && old.QoS < old.Before.QoS)
	})
}

// subscribe makes one subscription of a SUBSCRIBE. A replaced one keeps its
// place in the log, and its new options hold at once; only for what lies before
// the replacement the highest QoS so far still holds (R6) [MQTT-3.8.4-3,
// MQTT-3.8.4-4].
func (s *Session) subscribe(want *schema.Subscription, place schema.Cursor) *subscription {
	now := s.o.Now()
	sub := &subscription{Subscription: *want}
	sub.ID, sub.Owner, sub.Created, sub.Since = s.o.NewID(now), s.o.Owner, now, place
	old := s.subscribed(want.Filter)
	fresh := old == nil || old.Run != nil // a run that is not finished counts as new (R2)
	if old != nil {
		sub.ID, sub.Created, sub.Since = old.ID, old.Created, old.Since
		q := old.QoS
		if old.Before != nil {
			q = max(q, old.Before.QoS)
		}
		sub.Before = &schema.Before{QoS: q, UpTo: place}
	}
	_, shared := schema.CutShare(want.Filter)
	// [MQTT-3.3.1-9, MQTT-3.3.1-10, MQTT-3.3.1-11] No retained messages for a shared
	// subscription (section 4.8.2).
	switch {
	case shared:
	case want.RetainHandling == 0 || want.RetainHandling == 1 && fresh:
		sub.Run = &schema.Run{ID: s.o.NewID(now), Place: place}
	case old != nil && old.Run != nil: // what the one before has asked for goes on
		run := *old.Run
		s.handOver(old, sub, &run)
	}
	s.setSubscription(sub)
	return sub
}

// handOver lets the run of a subscription go on for the one that replaces it. What of it
// is in the line counts for that: a cursor that is saved beyond its records would else
// leave its place behind (S24).
func (s *Session) handOver(old, sub *subscription, run *schema.Run) {
	for i := range s.line {
		st := &s.line[i]
		if st.kind < stepRunAt || st.sub != old || st.run != old.Run {
			continue
		}
		if st.sub, st.run = sub, run; st.kind == stepRunEnd { // it will come to its end again
			st.kind, st.next = stepRunAt, run.Next
		}
	}
	sub.Run, sub.safe = run, old.safe
}

// document gives the subscription as it is stored.
func (sub *subscription) document(s *Session) schema.Subscription {
	d := sub.Subscription
	d.Owner = s.o.Owner
	if d.Run != nil {
		run := *d.Run
		if s.on(ruleRunSafe) {
			run.Next = sub.safe
		}
		d.Run = &run
	}
	return d
}

// onSubscribed: the documents are committed; SUBACK follows [MQTT-3.8.4-1], with
// the identifier of its SUBSCRIBE [MQTT-3.8.4-2, MQTT-2.2.1-6].
func (s *Session) onSubscribed(w written) {
	for _, sub := range w.subs {
		sub.stored = true
		if s.shared[sub.Filter] == sub && !s.closing {
			s.do(Action{Do: DoJoin, Group: sub.Filter})
		}
	}
	if !s.closing {
		s.do(Action{Do: SendSuback, PacketID: w.id, Codes: w.codes})
	}
	s.Pump()
}

// unsubscribe takes filters out that are the same byte by byte [MQTT-3.10.4-1]. No
// delivery begins for them any more [MQTT-3.10.4-2]; the flight stays
// [MQTT-3.10.4-3]. UNSUBACK bears the identifier, also when there was nothing to
// take out [MQTT-3.10.4-5].
func (s *Session) unsubscribe(r request) {
	codes := make([]Code, len(r.unsubscribe))
	for i, f := range r.unsubscribe {
		shared := s.shared[f] != nil
		if !s.deleteSubscription(f) {
			codes[i] = NoSubscriptionFound
		}
		if shared {
			s.do(Action{Do: DoPart, Group: f})
		}
	}
	s.sweepRuns()
	s.do(Action{Do: DoUnfilter, Filters: r.unsubscribe})
	s.write(written{kind: wroteUnsubscribe, id: r.id, codes: codes}, store.DeleteSubscriptions{Owner: s.o.Owner, Filters: r.unsubscribe})
}
