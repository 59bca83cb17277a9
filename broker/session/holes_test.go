package session

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// The tests of this file are interleavings in which a plausible design loses,
// doubles or reorders a message, by the names they have in the list of them. Each
// says what it would look like without its rule, and fails if the rule, switched
// off, is not missed.

// hole runs a scenario with all rules on, and once with each of the rules off:
// then it must come out differently, as `without` says.
func hole(t *testing.T, scenario func(*play) string, want, without string, rules ...string) {
	t.Helper()
	t.Parallel()
	if got := scenario(newPlay(t)); got != want {
		t.Errorf("it gives: %s\nwant:     %s", got, want)
	}
	for _, r := range rules {
		if got := scenario(newPlay(t, r)); got != without {
			t.Errorf("without %s it gives: %s\nwant:                %s", r, got, without)
		}
	}
}

func (p *play) begin(filter string, qos uint8) {
	p.connect()
	p.subscribe(filter, qos)
	p.heard()
}

func (p *play) run(filter string, qos, handling uint8) {
	p.subscribeAs(schema.Subscription{Filter: filter, QoS: qos, RetainHandling: handling})
}

// S2: a retained message lies far ahead of the vector. If recovery advanced the
// vector by its record, everything between would be lost.
func TestHole_S2_RetainedRecordDoesNotAdvance(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.close(ReasonDetached)
		p.publish("a", "m1", 1)
		p.publish("a", "m2", 1)
		p.retain("b", "r", 1)
		p.hold[DoReplay] = true
		p.connect()
		p.run("b", 1, 0)
		p.heard()
		p.again()
		return p.heard()
	}, "r qos 1 id 1 dup retain, m1 qos 1 id 2, m2 qos 1 id 3", "r qos 1 id 1 dup retain", "retained-marks")
}

// S3: m1 was acknowledged under id 1, which is not noted; the id is given to m2;
// crash. If both were in doubt under 1, the window would be full for ever.
func TestHole_S3_RecordSettlesItsID(t *testing.T) {
	hole(t, func(p *play) string {
		p.o.Window = 1
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.ack(Puback, 1)
		p.publish("a", "m2", 1)
		p.heard()
		p.again()
		p.ack(Puback, 1)
		p.publish("a", "m3", 1)
		return p.heard()
	}, "m2 qos 1 id 1 dup, m3 qos 1 id 1", "m2 qos 1 id 1 dup", "id-settles")
}

// S4: saved with a window in flight, then many more were sent and acknowledged;
// crash. At most a window is repeated.
func TestHole_S4_AtMostAWindowIsRepeated(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 1)
	for i := range 3 {
		p.publish("a", fmt.Sprintf("m%d", i+1), 1)
	}
	p.save()
	for i := range 9 {
		p.ack(Puback, uint16(i%3+1))
		p.publish("a", fmt.Sprintf("m%d", i+4), 1)
	}
	p.heard()
	p.again()
	p.want("m10 qos 1 id 1 dup, m11 qos 1 id 2 dup, m12 qos 1 id 3 dup")
}

// S5: one message is acknowledged after the last save, then silence, then
// SIGKILL. Without a save that acknowledgements cause, it comes again.
func TestHole_S5_AcknowledgementsAreSaved(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.tick()
		p.ack(Puback, 1)
		p.tick()
		p.heard()
		p.again()
		return p.heard()
	}, "", "m1 qos 1 id 1 dup", "save-acks")
}

// S6: the message was taken, its record is not there yet, the cursor is saved;
// crash. If the saved place had moved with the taking, the message would be lost.
func TestHole_S6_PlaceMovesWithTheRecord(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.hold[DoRecord] = true
		p.publish("a", "m1", 1)
		p.save()
		p.heard()
		p.again()
		return p.heard()
	}, "m1 qos 1 id 1", "", "taken-after")
}

// S6, the other half: what leaves before its record is there is sent, after a
// crash, as if it never had been: the same message as new, with DUP=0.
func TestHole_S6_RecordBeforeTheBytes(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 2)
		p.hold[DoRecord] = true
		p.publish("a", "m1", 2)
		p.again()
		return p.heard()
	}, "m1 qos 2 id 1", "m1 qos 2 id 1, m1 qos 2 id 1", "record-first")
}

// S7: m1 is too large for the client and skipped; crash; the client returns with
// a larger limit. Without a record of the drop it comes now.
func TestHole_S7_DroppedStaysDropped(t *testing.T) {
	hole(t, func(p *play) string {
		p.o.MaximumPacketSize = 5
		p.begin("a", 1)
		p.publish("a", "m1 is too large", 1)
		p.heard()
		p.crash()
		p.o.MaximumPacketSize = 0
		p.connect()
		p.publish("a", "m2", 1)
		return p.heard()
	}, "m2 qos 1 id 1", "m1 is too large qos 1 id 1, m2 qos 1 id 2", "drop-record")
}

// S8: the records' retention passes over what is still in flight. The flight is in
// the cursor; and what PUBREC says goes there too.
func TestHole_S8_FlightOutlivesItsRecords(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 2)
	p.publish("a", "m1", 1)
	p.publish("a", "m2", 2)
	p.tick()
	p.m.ForgetRecords("c", p.s.Owner().SID, 2)
	p.heard()
	p.again()
	p.want("m1 qos 1 id 1 dup, m2 qos 2 id 2 dup")
	p.ack(Pubrec, 2)
	p.want("PUBREL 2")
	p.again()
	p.want("m1 qos 1 id 1 dup, PUBREL 2")
}

// S9: the session ended and was made anew. What is left of the old one (its
// subscriptions, its place, its records) is nobody's.
func TestHole_S9_LeftoversAreNobodys(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.tick()
		p.close(ReasonDetached)
		p.heard()
		p.cleanUp = true
		p.connect()
		p.publish("a", "m2", 1)
		return p.heard()
	}, "", "m1 qos 1 id 1 dup, m2 qos 1 id 2", "sid")
}

// S11: the old owner's record meets the fence of a claim that it has not seen. If
// it went on, the message would leave twice, as new.
func TestHole_S11_FencedOwnerIsSilent(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.hold[DoRecord] = true
		p.publish("a", "m1", 1)
		p.claim() // another node
		p.release(DoRecord)
		return p.heard()
	}, "closed: takeover, let go", "m1 qos 1 id 1", "fenced-silent")
}

// S14: a client with clean start 0 and expiry 0. Its session ended with the
// connection; it must not resume what had ended.
func TestHole_S14_ExpiryZeroEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.expiry = 0
	p.begin("a", 1)
	p.publish("a", "m1", 1)
	p.heard()
	p.again()
	if p.claimed.Present || p.s.Subscriptions() != 0 {
		t.Errorf("present %v, %d subscriptions", p.claimed.Present, p.s.Subscriptions())
	}
	p.publish("a", "m2", 1)
	p.want("")
}

// S15: a session whose queue was full reads the log until it has caught up. If it
// attached for each message, the store would be read on the live path.
func TestHole_S15_SlowSessionReadsInRounds(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window = 1
	p.begin("a", 1)
	var want []string
	for i := range 60 {
		p.publish("a", fmt.Sprint("m", i), 1)
		want = append(want, fmt.Sprintf("m%d qos 1 id 1", i))
	}
	for range 60 {
		p.ack(Puback, 1)
	}
	p.want(strings.Join(want, ", "))
	if p.replays > 5 || !p.s.Live() {
		t.Errorf("%d rounds for 60 messages, live %v", p.replays, p.s.Live())
	}
}

// S16: the cursor is saved with m1 in flight, then `received` goes into its
// record, PUBREL, PUBCOMP, SIGKILL. If the claimer read only what lies above the
// cursor's seq, it would send m1 again, and the client would take it for new.
func TestHole_S16_ReceivedIsNewerThanTheCursor(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 2)
		p.publish("a", "m1", 2)
		p.tick()
		p.ack(Pubrec, 1)
		p.ack(Pubcomp, 1)
		p.heard()
		p.again()
		return p.heard()
	}, "PUBREL 1", "m1 qos 2 id 1 dup", "flight-states")
}

// S16, the other half: PUBREL leaves before `received` is committed; crash. m1
// comes again, to a client that has completed it.
func TestHole_S16_ReceivedBeforePubrel(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 2)
		p.publish("a", "m1", 2)
		p.heard()
		p.hold[DoWrite] = true
		p.ack(Pubrec, 1)
		p.again()
		return p.heard()
	}, "m1 qos 2 id 1 dup", "PUBREL 1, m1 qos 2 id 1 dup", "rec-before-rel")
}

// S17: m1's record is pending, and the vector moves by what needs no record: the
// empty queue merges with H, or a QoS 0 message behind it. Saved, crash: m1 lost.
func TestHole_S17_NothingPassesAPendingRecord(t *testing.T) {
	for _, tt := range []struct {
		name string
		move func(*play)
	}{
		{"a merge", func(p *play) { p.publish("elsewhere", "x", 1); p.tick() }},
		{"QoS 0 behind it", func(p *play) { p.publish("a", "m2", 0) }},
		{"one that does not match any more", func(p *play) {
			p.publish("a", "m2", 1)
			p.do(func(s *Session) { s.OnUnsubscribe(1, []string{"b"}) })
			p.publish("b", "m3", 1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hole(t, func(p *play) string {
				p.begin("a", 1)
				p.subscribe("b", 1)
				p.hold[DoRecord] = true
				p.publish("a", "m1", 1)
				tt.move(p)
				p.save()
				p.heard()
				p.again()
				got, _, _ := strings.Cut(p.heard(), ",")
				return got
			}, "m1 qos 1 id 1", "", "taken-after")
		})
	}
}

// S17: m1's record is pending, the queue overflows, and the reader starts. It
// starts behind m1: else m1 would be recorded twice.
func TestHole_S17_ReaderStartsBehindWhatWasTaken(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.begin("a", 1)
	p.hold[DoRecord] = true
	for i := range 12 {
		p.publish("a", fmt.Sprint("m", i), 1)
	}
	p.release(DoRecord)
	for i := range 12 {
		p.ack(Puback, uint16(i%3+1))
	}
	var want []string
	for i := range 12 {
		want = append(want, fmt.Sprintf("m%d qos 1 id %d", i, i%3+1))
	}
	p.want(strings.Join(want, ", "))
	if n := len(p.m.Records("c", p.s.Owner().SID, 0)); n != 12 {
		t.Errorf("%d records for 12 messages", n)
	}
}

// S17: the window is full, m2 waits in the queue. A merge with H would pass it.
func TestHole_S17_MergeNeedsAnEmptyQueue(t *testing.T) {
	hole(t, func(p *play) string {
		p.o.Window = 1
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.publish("a", "m2", 1)
		p.tick()
		p.ack(Puback, 1)
		return p.heard()
	}, "m1 qos 1 id 1, m2 qos 1 id 1", "m1 qos 1 id 1", "merge-empty")
}

// S19: a record is under way when the connection ends. If the session were
// released before it is settled, the next claimer would put no fence.
func TestHole_S19_ReleasedWhenRecordsAreSettled(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.hold[DoRecord] = true
		p.publish("a", "m1", 1)
		p.close(ReasonDetached)
		p.claim()
		return fmt.Sprint(p.claimed.Released)
	}, "false", "true", "release-flushed")
}

// S22: the same for an append that is under way, or stays in doubt.
func TestHole_S22_ReleasedWhenAppendsAreSettled(t *testing.T) {
	for _, answered := range []bool{false, true} {
		t.Run(fmt.Sprint("answered ", answered), func(t *testing.T) {
			hole(t, func(p *play) string {
				p.begin("a", 1)
				p.hold[DoAppend] = true
				p.send("m1", 1, 1)
				p.close(ReasonDetached)
				if answered {
					p.do(func(s *Session) {
						if s.appends.len() > 0 {
							s.OnAppended(store.Appended{Outcome: store.InDoubt})
						}
					})
				}
				p.claim()
				return fmt.Sprint(p.claimed.Released)
			}, "false", "true", "release-appends")
		})
	}
}

// A session that lets go without saving: the next owner, which finds it released,
// reads no records, and its own meet those that are there.
func TestHole_S19_SavedBeforeTheRelease(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.ack(Puback, 1)
		p.close(ReasonDetached)
		p.heard()
		p.connect()
		return p.heard()
	}, "", "closed: takeover, let go", "release-saved")
}

// S23: what is in the flight is too large for the connection on which it is sent
// again. QoS 1 is settled; a QoS 2 id is freed by a handshake, so that the next
// message under it does not look like a repetition.
func TestHole_S23_TooLargeAtTheResend(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 2)
		p.publish("a", "m1 is large", 1)
		p.publish("a", "m2 is large", 2)
		p.heard()
		p.crash()
		p.o.MaximumPacketSize, p.o.Window = 5, 2
		p.connect()
		p.publish("a", "m3", 2)
		p.ack(Pubcomp, 2)
		p.publish("a", "m4", 2)
		return p.heard()
	},
		"dropped: too_large, dropped: too_large, PUBREL 2, m3 qos 2 id 1, m4 qos 2 id 2",
		"m1 is large qos 1 id 1 dup, m2 is large qos 2 id 2 dup, closed: protocol_error, let go", "large-resend")
}

// P4: m1 is too large for one connection, and settled by that; crash; the next takes it.
// If m2 had gone out in between, m1 would come behind it.
func TestDropAtTheResendIsSavedFirst(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1 is large", 1)
		p.crash()
		p.heard()
		p.o.MaximumPacketSize = 5
		p.hold[DoWrite] = true
		p.connect()
		p.publish("a", "m2", 1)
		p.crash()
		p.o.MaximumPacketSize = 0
		p.hold[DoWrite] = false
		p.connect()
		return p.heard()
	},
		"dropped: too_large, m1 is large qos 1 id 1 dup, m2 qos 1 id 2",
		"dropped: too_large, m2 qos 1 id 2, m1 is large qos 1 id 1 dup, m2 qos 1 id 2 dup", "save-drop")
}

// S24: the run ends, its records are under way; crash. If its end had been stored,
// what was retained would never come.
func TestHole_S24_RunFollowsItsRecords(t *testing.T) {
	hole(t, func(p *play) string {
		p.retain("a", "r1", 1)
		p.connect()
		p.hold[DoRecord] = true
		p.run("#", 1, 0)
		p.again()
		return p.heard()
	}, "r1 qos 1 id 1 retain", "", "run-safe")
}

// S24: r1 was sent, and the cursor is saved beyond its record. If the place of the
// run stayed behind, r1 would come again, as new.
func TestHole_S24_PlaceBeforeTheCursor(t *testing.T) {
	scenario := func(save bool) func(p *play) string {
		return func(p *play) string {
			p.o.Window = 1
			p.retain("a", "r1", 1)
			p.retain("b", "r2", 1)
			p.connect()
			p.run("#", 1, 0)
			if save {
				p.tick()
			}
			p.heard()
			p.again()
			p.ack(Puback, 1)
			p.ack(Puback, 1)
			return p.heard()
		}
	}
	want, without := "r1 qos 1 id 1 dup retain, r2 qos 1 id 1 retain", "r1 qos 1 id 1 dup retain, r1 qos 1 id 1 retain, r2 qos 1 id 1 retain"
	t.Run("saved", func(t *testing.T) { hole(t, scenario(true), want, without, "run-before-save") })
	// Not saved: the claimer moves the place by the records, which name the run.
	t.Run("not saved", func(t *testing.T) { hole(t, scenario(false), want, without, "run-id") })
}

// Q1: the inbound entry is stored, the message is not; SIGKILL. If the resend, which
// finds the entry, got its PUBREC for that, it would be acknowledged and in no log.
func TestHole_Q1_ResendIsAppendedAgain(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.hold[DoAppend] = true
		p.send("m1", 2, 7)
		p.again()
		p.send("m1", 2, 7)
		p.send("m1", 2, 7)
		return p.heard() + " | " + p.logged()
	}, "PUBREC 7, PUBREC 7 | m1", "PUBREC 7, PUBREC 7 | ", "inbound-again")
}

// Q1, the other half: the message is stored before its entry; SIGKILL. The resend
// would get another ID: twice in the log.
func TestHole_Q1_EntryBeforeTheMessage(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.hold[DoWrite] = true
		p.send("m1", 2, 7)
		p.again()
		p.heard()
		p.send("m1", 2, 7)
		return p.logged()
	}, "m1", "m1 m1", "inbound-first")
}

// Q1: PUBCOMP leaves before the entry is gone; SIGKILL. The client gives the id to
// another message, which is taken for the old one, acknowledged and lost.
func TestHole_Q1_EntryIsOutBeforePubcomp(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.send("m1", 2, 7)
		p.hold[DoWrite] = true
		p.do(func(s *Session) { s.OnPubrel(7) })
		if !strings.Contains(p.heard(), "PUBCOMP") {
			p.release(DoWrite) // the client waits for it
		}
		p.again()
		p.send("m2", 2, 7)
		return p.logged()
	}, "m1 m2", "m1", "inbound-out")
}

// Q3, F-09: a clean start that remembers old ids would swallow the new message.
func TestHole_Q3_CleanStartForgetsIDs(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.send("old", 2, 7)
		p.close(ReasonDetached)
		p.cleanUp = true
		p.connect()
		p.send("new", 2, 7)
		return p.logged()
	}, "old new", "old", "sid")
}

// R1: m1 was acknowledged before SUBSCRIBE was sent; the hub lags behind. With
// `since` from the hub alone m1 would be delivered.
func TestHole_R1_SinceIsHead(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.lag = true
		p.publish("a", "m1", 1)
		p.subscribe("a", 1)
		p.lag = false
		p.publish("a", "m2", 1)
		first := p.heard()
		p.again()
		return first + " | " + p.heard()
	}, "m2 qos 1 id 1 | m2 qos 1 id 1 dup", "m1 qos 1 id 1, m2 qos 1 id 2 | m1 qos 1 id 1 dup, m2 qos 1 id 2 dup", "since")
}

// R2: a run is cut after the second of five messages, and cut again: the rest
// comes, each once.
func TestHole_R2_RunGoesOn(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window = 1
	for i := range 5 {
		p.retain(fmt.Sprint("t", i), fmt.Sprint("r", i), 1)
	}
	p.connect()
	p.run("#", 1, 0)
	p.ack(Puback, 1)
	p.want("r0 qos 1 id 1 retain, r1 qos 1 id 1 retain")
	p.again()
	p.ack(Puback, 1)
	p.ack(Puback, 1)
	p.want("r1 qos 1 id 1 dup retain, r2 qos 1 id 1 retain, r3 qos 1 id 1 retain")
	p.tick()
	p.again()
	p.ack(Puback, 1)
	p.ack(Puback, 1)
	p.want("r3 qos 1 id 1 dup retain, r4 qos 1 id 1 retain")
}

// R2: retain handling 1, and a crash between the store and SUBACK. The client asks
// again: its subscription, which is there, but whose run is not finished, counts
// as new. And if it does not ask again, the run goes on by itself.
func TestHole_R2_HandlingOneAfterACrash(t *testing.T) {
	t.Parallel()
	for _, asks := range []bool{false, true} {
		p := newPlay(t)
		p.retain("a", "r", 1)
		p.connect()
		p.hold[SendSuback], p.hold[DoRecord] = true, true
		p.run("#", 1, 1)
		p.crash()
		p.behind(schema.Cursor{}) // so that the run does not begin
		p.connect()
		if asks {
			p.run("#", 1, 1)
		}
		p.want("")
		p.lag = false
		p.flow()
		p.want("r qos 1 id 1 retain")
		p.ack(Puback, 1)
		p.run("#", 1, 1) // finished: not new
		p.want("")
	}
}

// R3: the run has still to pass b when b's new value is delivered live. Without
// looking at its place it would bring that a second time.
func TestHole_R3_RunLeavesOutWhatTheLogBrings(t *testing.T) {
	hole(t, func(p *play) string {
		p.o.Window = 1
		p.retain("a", "a1", 1)
		p.retain("b", "b1", 1)
		p.connect()
		p.run("#", 1, 0)
		p.retain("b", "b2", 1)
		p.ack(Puback, 1)
		p.ack(Puback, 1)
		p.ack(Puback, 1)
		return p.heard()
	}, "a1 qos 1 id 1 retain, b2 qos 1 id 1", "a1 qos 1 id 1 retain, b2 qos 1 id 1, b2 qos 1 id 1 retain", "run-since")
}

// R3: the session comes, with a run that has still to pass b, from a node on which
// b's new value was delivered, to one whose hub is not so far: its projection has
// the old value, which would come after the new one.
func TestHole_R3_RunWaitsForWhatWasTakenElsewhere(t *testing.T) {
	hole(t, func(p *play) string {
		p.o.Window = 1
		p.retain("a", "a1", 1)
		p.retain("aa", "aa1", 1)
		p.retain("b", "b1", 1)
		old := p.h
		p.connect()
		p.run("#", 1, 0)
		p.retain("b", "b2", 1)
		p.ack(Puback, 1)
		p.tick()
		p.heard()
		p.crash()
		p.behind(old)
		p.connect()
		p.ack(Puback, 1)
		p.ack(Puback, 1)
		p.lag = false
		p.flow()
		p.ack(Puback, 1)
		return p.heard()
	},
		"b2 qos 1 id 1 dup, aa1 qos 1 id 1 retain",
		"b2 qos 1 id 1 dup, aa1 qos 1 id 1 retain, b1 qos 1 id 1 retain", "run-waits")
}

// behind makes the hub stand at an earlier place.
func (p *play) behind(h schema.Cursor) {
	p.lag, p.h, p.tail = true, h, p.m.Tail(h)
	p.retained = map[string]*schema.Message{}
	p.m.Messages(func(m *schema.Message) bool {
		if !h.After(m.Mark) {
			p.project(m)
		}
		return true
	})
}

// R3: what was retained before SUBSCRIBE may not be in the projection yet. The run
// waits for the hub: else it finds nothing, and ends.
func TestHole_R3_RunWaitsForTheHub(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.lag = true
		p.retain("a", "r", 1)
		p.run("#", 1, 0)
		p.lag = false
		p.flow()
		return p.heard()
	}, "r qos 1 id 1 retain", "", "run-waits")
}

// R6: QoS 1, replaced by 0, replaced by 1, while the backlog waits: judged by the 0
// it would be dropped.
func TestHole_R6_BacklogKeepsItsQoS(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.close(ReasonDetached)
		p.heard()
		p.publish("a", "m1", 1)
		p.hold[DoReplay] = true
		p.connect()
		p.subscribe("a", 0)
		p.release(DoReplay)
		p.subscribe("a", 1)
		p.publish("a", "m2", 1)
		return p.heard()
	}, "m1 qos 1 id 1, m2 qos 1 id 2", "dropped: qos0_offline, m2 qos 1 id 1", "before")
}

// R6, the other way: m1 was delivered at QoS 0, which leaves no record, and then the
// QoS rises; crash. Without a save before that, the replay from the old vector
// brings m1 again, at the higher QoS.
func TestHole_R6_SavedBeforeTheQoSRises(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 0)
		p.publish("a", "m1", 2)
		p.subscribe("a", 2)
		p.again()
		return p.heard()
	}, "m1 qos 0", "m1 qos 0, m1 qos 2 id 1", "save-rise")
}

// R6: the same, where a replacement does not raise the QoS, but has the highest one so far
// hold for what has been passed at QoS 0 meanwhile.
func TestHole_R6_SavedBeforeTheHighestHoldsLonger(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.subscribe("a", 0)
		p.publish("a", "m1", 2)
		p.subscribe("a", 0)
		p.again()
		return p.heard()
	}, "m1 qos 0", "m1 qos 0, m1 qos 1 id 1", "save-rise")
}

// T6: the session has settled up to m3, and comes to a hub that stands at m1. It
// offers m2 and m3 again.
func TestHole_T6_HubBehindTheSession(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		old := p.h
		p.publish("a", "m2", 1)
		p.publish("a", "m3", 1)
		for id := range uint16(3) {
			p.ack(Puback, id+1)
		}
		p.tick()
		p.heard()
		p.crash()
		p.behind(old)
		p.connect()
		p.lag = false
		p.flow()
		p.publish("a", "m4", 1)
		return p.heard()
	}, "m4 qos 1 id 1", "m2 qos 1 id 1, m3 qos 1 id 2, m4 qos 1 id 3", "offer-after")
}

// T7: a replay over several lanes is cut anywhere, resumed, and cut again. Its
// place is a vector: one number would repeat, or leave holes.
func TestHole_T7_ReplayIsCutAnywhere(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		p := newPlay(t)
		p.rng = rand.New(rand.NewPCG(seed, 7))
		p.begin("a", 1)
		p.close(ReasonDetached)
		p.s = nil
		n := 0
		for range 3 { // three lanes, that take turns
			p.m.OpenLane(p.node)
		}
		lanes := p.m.LanesOf(p.node)
		for range 24 {
			n++
			k := lanes[p.rng.IntN(len(lanes))]
			gen, _ := p.m.Lane(k)
			p.m.Land(k, gen, &schema.Message{ID: p.m.NewID(), Topic: "a", Payload: fmt.Append(nil, "m", n), QoS: 1, ClientID: fmt.Sprint("pub", k)})
		}
		p.flow()
		for p.crash(); ; p.crash() {
			p.connect()
			for range 1 + p.rng.IntN(8) {
				for _, e := range p.s.win.flight {
					if e.sent && p.rng.IntN(2) == 0 {
						p.ack(Puback, e.PacketID)
						break
					}
				}
				if p.rng.IntN(5) == 0 {
					p.tick()
				}
			}
			if p.s.Live() && p.s.InFlight() == 0 {
				break
			}
		}
		count := map[schema.ID]int{}
		for _, r := range p.m.Records("c", p.s.Owner().SID, 0) {
			if !r.MessageID.IsZero() {
				count[r.MessageID]++
			}
		}
		p.m.Messages(func(m *schema.Message) bool {
			if count[m.ID] != 1 {
				t.Errorf("seed %d: %s was recorded %d times", seed, m.Payload, count[m.ID])
			}
			return true
		})
	}
}

// T9: m3 commits while the replay reads m2: it is behind the reader's end and in
// the buffer; it comes once, in its turn.
func TestHole_T9_CommittedWhileReading(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.Window = 1
	p.begin("a", 1)
	p.close(ReasonDetached)
	p.heard()
	p.publish("a", "m1", 1)
	p.publish("a", "m2", 1)
	p.connect()
	p.publish("a", "m3", 1)
	for range 4 {
		p.ack(Puback, 1)
	}
	p.want("m1 qos 1 id 1, m2 qos 1 id 1, m3 qos 1 id 1")
}

// L5: m1 is refused, and its publisher cannot be told (3.1.1): the connection
// closes, and m2 behind it, refused too, gets no answer.
func TestHole_L5_WhatIsBehindFailsToo(t *testing.T) {
	t.Parallel()
	p := newPlay(t)
	p.o.CanRefuse = false
	p.connect()
	p.hold[DoAppend] = true
	p.send("m1", 1, 1)
	p.send("m2", 1, 2)
	p.do(func(s *Session) {
		s.OnAppended(store.Appended{Outcome: store.Refused, Err: store.ErrTooLarge})
		s.OnAppended(store.Appended{Outcome: store.Refused, Err: store.ErrPublisherFailed})
	})
	p.want("closed: refused, let go")
}

// L9: an append is stored, its answer is lost. A reason code >= 0x80 would make the
// client send it again, under another ID. There is no answer in doubt.
func TestHole_L9_NoAnswerInDoubt(t *testing.T) {
	t.Parallel()
	for qos := range uint8(3) {
		p := newPlay(t)
		p.connect()
		p.hold[DoAppend] = true
		p.send("m1", qos, 1)
		p.do(func(s *Session) { s.OnAppended(store.Appended{Outcome: store.InDoubt}) })
		p.want("closed: in_doubt, let go")
		if p.claim(); p.claimed.Released {
			t.Errorf("QoS %d: released with an append in doubt", qos)
		}
	}
}

// L10: a QoS 2 message waits for its inbound entry; the QoS 1 message behind it
// would go first.
func TestHole_L10_QoS1DoesNotOvertakeQoS2(t *testing.T) {
	hole(t, func(p *play) string {
		p.connect()
		p.hold[DoWrite] = true
		p.send("m1", 2, 1)
		p.send("m2", 1, 2)
		p.send("m3", 0, 0)
		p.release(DoWrite)
		return p.logged()
	}, "m1 m2 m3", "m2 m3 m1", "in-order")
}

// W3: a will with the time of a CONNECT eight days ago would be gone, by a
// retention of seven, before anybody read it. It has the time when it fell due,
// and its expiry counts from there.
func TestHole_W3_WillHasTheTimeItFellDue(t *testing.T) {
	t.Parallel()
	connected := time.Unix(2_000_000, 0).UTC()
	due := connected.Add(8 * 24 * time.Hour)
	w := schema.Will{Key: schema.ID{5: 1}, Topic: "w", At: due, Due: true, Expiry: 60, HasExpiry: true}
	m := store.WillMessage("c", "node", &w)
	if !m.Created.Equal(due) || m.ID.Seconds() != due.Unix() || !m.Expiry.Equal(due.Add(time.Minute)) {
		t.Errorf("created %v, id %v, expiry %v", m.Created, m.ID, m.Expiry)
	}
	if n := store.WillMessage("c", "another", &w); n.ID != m.ID {
		t.Errorf("two who publish it make %v and %v of it", m.ID, n.ID)
	}
}

// A client that acknowledges twice: with the lowest free id, which is that of the
// message just acknowledged, the second PUBACK would settle the next message,
// which it may not have.
func TestHole_S3_LongestFree(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 1)
		p.publish("a", "m1", 1)
		p.ack(Puback, 1)
		p.publish("a", "m2", 1)
		p.ack(Puback, 1)
		p.tick()
		p.heard()
		p.again()
		return p.heard()
	}, "m2 qos 1 id 2 dup", "", "longest-free")
}

// P3: PUBREC is being noted while a cursor is saved, and the records go after that: the
// cursor alone says that the client has m1.
func TestSavedWhileReceiving(t *testing.T) {
	hole(t, func(p *play) string {
		p.begin("a", 2)
		p.publish("a", "m1", 2)
		p.hold[DoWrite] = true
		p.ack(Pubrec, 1)
		p.save()
		p.release(DoWrite)
		o := p.s.Owner()
		c, _ := p.m.Cursor("c", o.SID)
		p.m.ForgetRecords("c", o.SID, c.Seq)
		p.again()
		return p.heard()
	},
		"m1 qos 2 id 1, PUBREL 1, PUBREL 1",
		"m1 qos 2 id 1, PUBREL 1, m1 qos 2 id 1 dup", "save-receiving")
}
