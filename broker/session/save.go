package session

import (
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// How often a cursor is written, at most.
const (
	saveEvery      = time.Second
	saveMergeEvery = 10 * time.Minute // replaying from an older vector delivers nothing twice
)

// written is a session write under way.
type written struct {
	kind  writeKind
	e     *entry
	in    *inbound
	id    uint16
	subs  []*subscription
	codes []Code
}

type writeKind uint8

const (
	wroteNothing     writeKind = iota // nobody waits for it
	wroteReceived                     // MarkReceived: PUBREL may leave
	wroteInbound                      // PutInbound: the append may go
	wroteRelease                      // DeleteInbound: PUBCOMP may leave
	wroteSubscribe                    // PutSubscriptions: SUBACK may leave
	wroteUnsubscribe                  // DeleteSubscriptions: UNSUBACK may leave
	wroteCursor                       // SaveCursor
	wroteEnd                          // Release
)

func (s *Session) write(w written, doc store.Write) {
	s.writes.push(w)
	s.do(Action{Do: DoWrite, Write: doc})
}

// OnWritten tells what became of the session write that has been under way for
// longest. lost: the session is another's.
func (s *Session) OnWritten(err error, lost bool) {
	w := s.writes.pop()
	if w.kind == wroteCursor {
		s.saving = false
		if s.dropping == dropUnderWay {
			s.dropping = dropNone
		}
	}
	if w.kind == wroteEnd {
		s.stage, s.lost = ended, s.lost || err != nil
		s.do(Action{Do: DoEnd})
		return
	}
	if err != nil {
		s.lost = true
		if lost {
			s.Close(ReasonTakenOver)
		} else {
			s.Close(ReasonStore)
		}
		s.finish()
		return
	}
	switch w.kind {
	case wroteCursor:
		s.resume()
	case wroteReceived:
		s.onReceived(w.e)
	case wroteInbound:
		s.onInboundStored(w.in)
	case wroteRelease:
		s.onInboundOut(w.id, w.in)
	case wroteSubscribe:
		s.onSubscribed(w)
	case wroteUnsubscribe:
		if !s.closing {
			s.do(Action{Do: SendUnsuback, PacketID: w.id, Codes: w.codes})
		}
	}
	s.finish()
}

// dropping is how far the save is that a drop at a resend waits for.
//
// Invariant: nothing is sent behind a delivery that was dropped at its resend until the
// saved cursor knows it. Else a crash brings it back, and a connection that takes larger
// packets gets it behind what came after it (P4).
type dropping uint8

const (
	dropNone dropping = iota
	dropWanted
	dropUnderWay // the save has begun
)

// saveDrop has a drop saved before anything more is sent.
func (s *Session) saveDrop() {
	if s.keeps() && s.on(ruleSaveDrop) {
		s.dropping = dropWanted
		s.save()
	}
}

// resume goes on behind a save.
func (s *Session) resume() {
	switch {
	case s.closing:
	case s.dropping == dropWanted: // by a drop during the save
		s.save()
	default:
		s.Pump()
	}
}

// Tick saves the cursor when it is time. h is the hub's, loaded for this call.
func (s *Session) Tick(h schema.Cursor) {
	if s.closing {
		return
	}
	s.Merge(h)
	if !s.keeps() || s.saving {
		return
	}
	since := s.o.Now().Sub(s.lastSaved)
	if since < 0 || s.Dirty() && since >= saveEvery || s.merged && since >= saveMergeEvery {
		s.save()
	}
}

// Dirty tells whether deliveries, acknowledgements or runs are not saved.
func (s *Session) Dirty() bool { return s.dirty || s.runsMoved() }

// Saved tells whether the stored cursor speaks for everything.
func (s *Session) Saved() bool { return !s.Dirty() && !s.saving }

// Save stores the cursor now, for tests and tools.
func (s *Session) Save() {
	if !s.closing && s.keeps() && !s.saving {
		s.save()
	}
}

func (s *Session) save() {
	if !s.keeps() || s.saving && !s.closing {
		return
	}
	if s.dropping == dropWanted {
		s.dropping = dropUnderWay
	}
	s.dirty, s.merged, s.saving, s.unsaved, s.lastSaved = false, false, true, 0, s.o.Now()
	s.storeRuns()
	c := schema.SessionCursor{After: s.after.Clone(), Seq: s.rseq, Flight: make([]schema.Flight, 0, s.win.len())}
	for _, e := range s.win.flight {
		// What else a clean session has in flight ends with it.
		if e.committed && (!s.o.Clean || e.Group != "") {
			f := e.Flight
			// A MarkReceived under way is committed before this write: writes go in
			// order. Its record alone would speak for it, and that has a TTL.
			f.Received = f.Received || e.receiving && s.on(ruleSaveReceiving)
			c.Flight = append(c.Flight, f)
		}
	}
	slices.SortFunc(c.Flight, func(a, b schema.Flight) int { return int(int64(a.Seq) - int64(b.Seq)) })
	s.write(written{kind: wroteCursor}, store.SaveCursor{Owner: s.o.Owner, Cursor: c})
}

// stage is how far a closing session has got.
type stage uint8

const (
	open stage = iota
	flushing
	letGo // saved, and the release is under way
	ended
)

// Close ends the connection; the session is kept [MQTT-3.1.2-23]. It waits for its records and appends, then
// saves its cursor and lets go; DoEnd follows.
func (s *Session) Close(why Reason) {
	if s.closing {
		return
	}
	s.closing, s.reason, s.stage = true, why, flushing
	s.queue, s.buffer, s.mode = nil, nil, replaying
	s.ingest, s.requests = nil, nil // not acknowledged: the client sends them again
	s.do(Action{Do: DoClose, Reason: why})
	s.finish()
}

// SetRelease tells how the connection ended, for the release: by a normal
// DISCONNECT, and with which session expiry.
func (s *Session) SetRelease(normal bool, expiry uint32, setExpiry bool) {
	s.release.Normal, s.release.Expiry, s.release.SetExpiry = normal, expiry, setExpiry
}

// LetGo tells, once DoEnd has come, whether the session was released, and how it was to
// be: without that it is another's, or still this owner's in the store.
func (s *Session) LetGo() (how store.Release, released bool) {
	how = s.release
	how.Owner = s.o.Owner
	return how, !s.lost
}

// Reason gives why the session is closing, "" while it is not.
func (s *Session) Reason() Reason { return s.reason }

// finish goes on with the end of the session as far as possible.
//
// Invariant: released is written only when no record and no append of the
// session is waiting or in doubt, and after its cursor (S19, S22).
func (s *Session) finish() {
	if s.stage != flushing {
		return
	}
	if s.recording.len() > 0 && s.on(ruleReleaseFlushed) || s.appends.len() > 0 && s.on(ruleReleaseAppends) {
		return
	}
	s.stage = letGo
	if s.lost {
		s.stage = ended
		s.do(Action{Do: DoEnd})
		return
	}
	if s.on(ruleReleaseSaved) {
		s.save()
	}
	s.release.Owner = s.o.Owner
	s.write(written{kind: wroteEnd}, s.release)
}
