package embedded

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

// session is a session that a connection of this run holds. The committer owns
// it; Claim fills in what it read before it returns, and until then nobody
// writes with its epoch.
type session struct {
	id  uint64 // the number in the keys
	doc *document
	// saved is the seq of the saved cursor, last that of the newest record.
	saved, last uint64
	// days tells which epoch of the log holds the records from a seq on, for
	// those above saved: by seq, ascending, mostly one entry.
	days []dayFrom
	// place is the cursor that this connection has saved last, if the session has
	// a shared subscription: what it leaves goes back without a read.
	place *place
	// received are the seqs whose PUBREC is noted outside the cursor.
	received map[uint64]struct{}
	// lost: a newer claim has taken the session. read: Claim has filled in what
	// is stored; the committer does not look at it before.
	lost, read atomic.Bool
}

type dayFrom struct {
	seq   uint64
	epoch uint32
}

// record notes that a record was written.
func (s *session) record(seq uint64, epoch uint32) {
	s.last = max(s.last, seq)
	if n := len(s.days); n == 0 || s.days[n-1].epoch != epoch {
		s.days = append(s.days, dayFrom{seq, epoch})
	}
}

// from gives the epoch that holds the first record above seq, or now, when
// there is none; and forgets the days below.
func (s *session) from(seq uint64, now uint32) uint32 {
	for len(s.days) > 1 && s.days[1].seq <= seq+1 {
		s.days = s.days[1:]
	}
	if seq >= s.last || len(s.days) == 0 {
		s.days = nil
		return now
	}
	return s.days[0].epoch
}

// holds gives the session of an owner, or ErrSessionLost (promise 6).
func (c *committer) holds(o schema.Owner) (*session, error) {
	s := c.owned[o.ClientID]
	if s == nil || s.doc.sid != o.SID || s.doc.epoch != o.Epoch {
		return nil, fmt.Errorf("%w: client %q, epoch %d", store.ErrSessionLost, o.ClientID, o.Epoch)
	}
	return s, nil
}

// document gives a session's document as the batch will leave it; nil: none.
func (c *committer) document(clientID string) (*document, error) {
	if s := c.owned[clientID]; s != nil {
		return s.doc, nil
	}
	key := stringKey(nil, keyClient, clientID)
	value, err := c.get(key)
	if err != nil || value == nil {
		return nil, err
	}
	d, err := readDocument(value)
	if err != nil {
		return nil, corrupt(key, err)
	}
	return d, nil
}

// putDocument stages a document in place of the old one, with what leads to it:
// the marker of a held session, and the times at which it has to be looked at.
// next nil deletes it; then no epoch up to its own is given again (S9).
func (c *committer) putDocument(clientID string, old, next *document) {
	key := stringKey(nil, keyClient, clientID)
	if next == nil {
		if old != nil {
			c.deleteRead(key)
			c.state.floor = max(c.state.floor, old.epoch)
		}
	} else {
		c.setRead(key, putDocument(nil, next))
	}
	c.marker(stringKey(nil, keyOwned, clientID), old != nil && old.owned, next != nil && next.owned)
	was, had := old.endsAt()
	is, has := next.endsAt()
	c.agenda(keyEnd, clientID, was, had, is, has)
	was, had = old.willAt()
	is, has = next.willAt()
	c.agenda(keyWill, clientID, was, had, is, has)
}

func (c *committer) marker(key []byte, was, is bool) {
	switch {
	case is && !was:
		c.set(key, nil)
	case was && !is:
		c.delete(key)
	}
}

func (c *committer) agenda(prefix byte, clientID string, was time.Time, had bool, is time.Time, has bool) {
	if had && has && was.Equal(is) {
		return
	}
	if had {
		c.delete(agendaKey(nil, prefix, agendaTime(was), clientID))
	}
	if has {
		c.set(agendaKey(nil, prefix, agendaTime(is), clientID), nil)
	}
}

// agendaTime gives the time in a key; the zero time is before everything.
func agendaTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixNano(), 0)
}

// endSession stages the removal of what belongs to a session, but for its
// records, which are the history of deliveries, and its wills, which the caller
// has decided.
func (c *committer) endSession(id uint64) error {
	if _, ok := c.touched[id]; ok {
		// An iteration would not see what the batch holds of it.
		if err := c.commit(); err != nil {
			return err
		}
	}
	var shared []string
	for _, prefix := range []byte{keySubscription, keyInbound, keyReceived} {
		p := sessionKey(nil, prefix, id)
		err := c.l.scan(p, nil, func(key, _ []byte) error {
			c.delete(key)
			if prefix == keySubscription {
				c.state.subscriptions--
				if filter := string(key[len(p):]); isShared(filter) {
					shared = append(shared, filter)
				}
			}
			return nil
		})
		if err != nil {
			return c.l.engine.fail(err)
		}
	}
	for _, filter := range shared {
		if err := c.leaveGroup(filter); err != nil {
			return c.l.engine.fail(err)
		}
	}
	c.delete(sessionKey(nil, keyCursor, id))
	c.state.sessions--
	return nil
}

// Write implements store.Sessions.
func (l *Log) Write(ctx context.Context, writes []store.Write) []error {
	errs := make([]error, len(writes))
	err := l.do(ctx, "write", &call{stage: func(c *committer) error {
		for i, w := range writes {
			errs[i] = c.write(w)
		}
		return nil
	}})
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

func (c *committer) write(w store.Write) error {
	if w, ok := w.(store.TakeOutWill); ok {
		return c.takeOutWill(w)
	}
	s, err := c.holds(store.OwnerOf(w))
	if err != nil {
		return err
	}
	switch w := w.(type) {
	case store.SaveCursor:
		return c.saveCursor(s, w)
	case store.PutInbound:
		c.touch(s.id)
		c.set(inboundKey(nil, s.id, w.Inbound.PacketID), append([]byte{encoding}, w.Inbound.MessageID[:]...))
	case store.DeleteInbound:
		c.touch(s.id)
		c.delete(inboundKey(nil, s.id, w.PacketID))
	case store.MarkReceived:
		c.markReceived(s, w.Flight.Seq)
	case store.PutSubscriptions:
		return c.putSubscriptions(s, w)
	case store.DeleteSubscriptions:
		return c.deleteSubscriptions(s, w)
	case store.Release:
		return c.release(s, w)
	default:
		return fmt.Errorf("embedded: unknown write %T", w)
	}
	return nil
}

// touch notes that the batch holds keys of a session.
func (c *committer) touch(id uint64) { c.touched[id] = struct{}{} }

// saveCursor stores where a session stands. It never goes back.
func (c *committer) saveCursor(s *session, w store.SaveCursor) error {
	if w.Cursor.Seq < s.saved {
		return fmt.Errorf("%w: client %q: cursor of seq %d after %d", store.ErrSessionLost, w.ClientID, w.Cursor.Seq, s.saved)
	}
	s.saved, s.last = w.Cursor.Seq, max(s.last, w.Cursor.Seq)
	p := place{SessionCursor: w.Cursor, from: s.from(w.Cursor.Seq, c.epoch.id)}
	// PUBREC never goes back (S16): what is noted outside the cursor is put into
	// it, and the note is dropped.
	if len(s.received) > 0 {
		p.Flight = append([]schema.Flight(nil), p.Flight...)
		for i := range p.Flight {
			if _, ok := s.received[p.Flight[i].Seq]; ok {
				p.Flight[i].Received = true
			}
		}
		for seq := range s.received {
			if seq <= s.saved {
				c.delete(receivedKey(nil, s.id, seq))
				delete(s.received, seq)
			}
		}
	}
	if s.doc.shared {
		kept := p
		kept.Flight = slices.Clone(p.Flight)
		s.place = &kept
	}
	c.touch(s.id)
	c.set(sessionKey(nil, keyCursor, s.id), putPlace(nil, &p))
	return nil
}

// markReceived notes a PUBREC by the seq of its delivery, beside the record:
// so it outlives the record (S8).
func (c *committer) markReceived(s *session, seq uint64) {
	if _, ok := s.received[seq]; ok {
		return
	}
	if s.received == nil {
		s.received = make(map[uint64]struct{})
	}
	s.received[seq] = struct{}{}
	c.touch(s.id)
	c.set(receivedKey(nil, s.id, seq), []byte{encoding})
}

func (c *committer) putSubscriptions(s *session, w store.PutSubscriptions) error {
	for i := range w.Subscriptions {
		sub := w.Subscriptions[i]
		if sub.Filter == "" || len(sub.Filter) > 65535 {
			return fmt.Errorf("embedded: client %q: %w: %d bytes", w.ClientID, schema.ErrFilter, len(sub.Filter))
		}
	}
	c.touch(s.id)
	for i := range w.Subscriptions {
		sub := w.Subscriptions[i]
		key := subscriptionKey(nil, s.id, sub.Filter)
		value, err := c.get(key)
		if err == nil && value != nil {
			var old schema.Subscription
			if err = readSubscription(&old, value); err != nil {
				err = corrupt(key, err)
			}
			sub.ID, sub.Created = old.ID, old.Created
		}
		if err != nil {
			// Some may be staged: all or none means that the log stops.
			return c.l.engine.fail(err)
		}
		if value == nil {
			c.state.subscriptions++
			if isShared(sub.Filter) {
				if err := c.share(s, w.ClientID, &sub); err != nil {
					return c.l.engine.fail(err)
				}
			}
		}
		sub.Owner = w.Owner
		c.setRead(key, putSubscription(nil, &sub))
	}
	return nil
}

func (c *committer) deleteSubscriptions(s *session, w store.DeleteSubscriptions) error {
	c.touch(s.id)
	for _, filter := range w.Filters {
		key := subscriptionKey(nil, s.id, filter)
		value, err := c.get(key)
		if err != nil {
			return c.l.engine.fail(err)
		}
		if value != nil {
			c.state.subscriptions--
			c.deleteRead(key)
			if isShared(filter) {
				if err := c.leaveGroup(filter); err != nil {
					return c.l.engine.fail(err)
				}
			}
		}
	}
	return nil
}

// release lets go of a session whose connection has ended.
func (c *committer) release(s *session, w store.Release) error {
	if err := c.handBack(w.ClientID, s); err != nil {
		return err
	}
	next := s.doc.clone()
	if w.SetExpiry {
		next.expiry = w.Expiry
	}
	if err := c.letGo(w.ClientID, s.doc, next, w.Normal, true); err != nil {
		return err
	}
	if k := c.waiting[w.ClientID]; k != nil {
		delete(c.waiting, w.ClientID)
		c.claimNow(k)
	}
	return nil
}

// letGo stages the end of a connection: normal tells that its will is removed,
// clean that it ended in order.
func (c *committer) letGo(clientID string, old, next *document, normal, clean bool) error {
	next.owned, next.clean, next.released = false, clean, c.now
	delete(c.owned, clientID)
	c.disconnectWills(next, normal)
	if next.expiry != 0 {
		c.putDocument(clientID, old, next)
		return nil
	}
	if err := c.endSession(next.session); err != nil {
		return err
	}
	c.putEnded(clientID, old, next)
	return nil
}

// putEnded stages the document of a session that has ended: gone, unless it has
// wills that are still to be appended.
func (c *committer) putEnded(clientID string, old, next *document) {
	if len(next.wills) == 0 {
		c.putDocument(clientID, old, nil)
		return
	}
	next.session, next.owned = 0, false
	c.putDocument(clientID, old, next)
}

// readSession reads what a claimed session has, brought up to its records.
func (l *Log) readSession(clientID string, s *session) ([]schema.Subscription, schema.SessionCursor, error) {
	var cursor schema.SessionCursor
	subs, err := l.readSubscriptions(clientID, s.id)
	if err != nil {
		return nil, cursor, err
	}
	key := sessionKey(nil, keyCursor, s.id)
	value, err := l.get(key)
	if err != nil {
		return nil, cursor, err
	}
	if value == nil {
		return nil, cursor, corrupt(key, errMissing)
	}
	p, err := readPlace(value)
	if err != nil {
		return nil, cursor, corrupt(key, err)
	}
	s.saved, s.last = p.Seq, p.Seq
	if err := l.readReceived(s); err != nil {
		return nil, cursor, err
	}
	records, err := l.readRecords(s, p)
	if err != nil {
		return nil, cursor, err
	}
	cursor = p.SessionCursor
	runs := make(map[schema.ID]string)
	cursor.Recover(records, func(f schema.Flight) bool { _, ok := s.received[f.Seq]; return ok }, runs)
	for i := range subs {
		if r := subs[i].Run; r != nil {
			r.Next = max(r.Next, runs[r.ID])
		}
	}
	cursor.Inbound, err = l.readInbound(s.id)
	return subs, cursor, err
}

// readRecords reads the records above the saved cursor, by seq. Only the epochs
// from the one on that is noted beside the cursor can hold any.
func (l *Log) readRecords(s *session, p *place) ([]schema.Delivery, error) {
	var records []schema.Delivery
	for _, e := range l.epochs.list() {
		if e.id < p.from || e.recordsGone {
			continue
		}
		prefix := appendU64(epochKey(nil, keyDelivery, e.id), s.id)
		from := appendU64(bytes.Clone(prefix), p.Seq+1)
		err := l.scan(prefix, from, func(key, value []byte) error {
			d := schema.Delivery{Seq: beU64(key[len(key)-8:])}
			if err := readDelivery(&d, value); err != nil {
				return corrupt(key, err)
			}
			if _, ok := s.received[d.Seq]; ok {
				d.Received = true
			}
			s.record(d.Seq, e.id)
			records = append(records, d)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	sort.SliceStable(records, func(i, k int) bool { return records[i].Seq < records[k].Seq })
	return records, nil
}

func (l *Log) readSubscriptions(clientID string, id uint64) ([]schema.Subscription, error) {
	return readSubscriptionsIn(l.db, clientID, id)
}

func readSubscriptionsIn(from pebble.Reader, clientID string, id uint64) ([]schema.Subscription, error) {
	var subs []schema.Subscription
	prefix := sessionKey(nil, keySubscription, id)
	err := scanIn(from, prefix, after(prefix), -1, func(key, value []byte) error {
		s := schema.Subscription{Filter: string(key[len(prefix):])}
		s.ClientID = clientID
		if err := readSubscription(&s, value); err != nil {
			return corrupt(key, err)
		}
		subs = append(subs, s)
		return nil
	})
	return subs, err
}

func (l *Log) readInbound(id uint64) ([]schema.Inbound, error) {
	var in []schema.Inbound
	err := l.scan(sessionKey(nil, keyInbound, id), nil, func(key, value []byte) error {
		r := decode(value)
		i := schema.Inbound{PacketID: beU16(key[len(key)-2:]), MessageID: r.id()}
		if err := r.end(); err != nil || len(key) != 11 {
			return corrupt(key, errShort)
		}
		in = append(in, i)
		return nil
	})
	return in, err
}

func (l *Log) readReceived(s *session) error {
	s.received = make(map[uint64]struct{})
	return l.scan(sessionKey(nil, keyReceived, s.id), nil, func(key, _ []byte) error {
		s.received[beU64(key[len(key)-8:])] = struct{}{}
		return nil
	})
}
