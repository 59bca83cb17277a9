package storetest

import (
	"slices"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// claims bends what claims answer.
func claims(fn func(b *broken, got *store.Claimed)) func(*broken) {
	return func(b *broken) {
		b.claimed = func(b *broken, got []store.Claimed) {
			for i := range got {
				if got[i].Err == nil {
					fn(b, &got[i])
				}
			}
		}
	}
}

// asksWith bends what is asked of the store.
func asksWith(fn func(b *broken, ask *store.Claim)) func(*broken) {
	return func(b *broken) {
		b.asks = func(b *broken, asks []store.Claim) {
			for i := range asks {
				fn(b, &asks[i])
			}
		}
	}
}

// writes bends what is written.
func writes[W store.Write](fn func(b *broken, w W) (store.Write, bool)) func(*broken) {
	return func(b *broken) {
		b.write = func(b *broken, w store.Write) (store.Write, bool) {
			if x, ok := w.(W); ok {
				return fn(b, x)
			}
			return w, true
		}
	}
}

func ignores[W store.Write]() func(*broken) {
	return writes(func(_ *broken, w W) (store.Write, bool) { return w, false })
}

func breaks(rule string) func(*broken) { return func(b *broken) { b.m.Break(rule) } }

// puts bends each subscription that is put.
func puts(fn func(s *schema.Subscription)) func(*broken) {
	return writes(func(_ *broken, w store.PutSubscriptions) (store.Write, bool) {
		w.Subscriptions = slices.Clone(w.Subscriptions)
		for i := range w.Subscriptions {
			fn(&w.Subscriptions[i])
		}
		return w, true
	})
}

func sessionFaults() []fault {
	return []fault{
		{"the new session begins at the head", "Session/New", claims(func(b *broken, got *store.Claimed) {
			if !got.Present {
				got.Cursor.After = schema.At(1, 77)
			}
		})},
		{"names are not case sensitive", "Session/New", asksWith(func(_ *broken, ask *store.Claim) {
			if ask.ClientID == "C" {
				ask.ClientID = "c"
			}
		})},
		{"present is not told", "Session/Resumed", claims(func(_ *broken, got *store.Claimed) { got.Present = false })},
		{"released is not told", "Session/Resumed", claims(func(_ *broken, got *store.Claimed) { got.Released = false })},
		{"subscriptions are not sorted", "Session/Resumed", claims(func(_ *broken, got *store.Claimed) { slices.Reverse(got.Subscriptions) })},
		{"a clean start resumes", "Session/CleanStart", asksWith(func(_ *broken, ask *store.Claim) { ask.CleanStart = false })},
		{"a clean start keeps the sid", "Session/CleanStart", claims(func(b *broken, got *store.Claimed) {
			if !got.Present && got.SID == got.Epoch && got.Epoch > uint64(newClock().Now().UnixMilli()) {
				got.SID--
			}
		})},
		{"a clean start keeps subscriptions", "Session/CleanStart", breaks("sid")},
		{"a clean start keeps inbound", "Session/Q3_CleanStartForgetsInbound", breaks("sid")},
		{"expiry 0 is resumed", "Session/S14_ExpiryZeroEnds", asksWith(func(_ *broken, ask *store.Claim) { ask.Expiry = max(ask.Expiry, 1) })},
		{"sessions end too early", "Session/ExpiryByClock", asksWith(func(_ *broken, ask *store.Claim) {
			if ask.Expiry == 100 {
				ask.Expiry = 80
			}
		})},
		{"sessions end too late", "Session/ExpiryByClock", asksWith(func(_ *broken, ask *store.Claim) {
			if ask.Expiry == 100 {
				ask.Expiry = 200
			}
		})},
		{"no expiry is 136 years", "Session/ExpiryByClock", asksWith(func(_ *broken, ask *store.Claim) {
			if ask.Expiry == schema.NoExpiry {
				ask.Expiry--
			}
		})},
		{"Release does not set the expiry", "Session/ExpiryAtRelease", writes(func(_ *broken, w store.Release) (store.Write, bool) {
			w.SetExpiry = false
			return w, true
		})},
		{"the expiry counts from the claim", "Session/ConnectedNeverExpires", claims(func(b *broken, got *store.Claimed) {
			b.model(func(m *Model) { m.sessions[got.ClientID].gone = m.now; m.sessions[got.ClientID].owner = 0 })
		})},
		{"epochs start again after deletion", "Session/S9_EpochsRise", asksWith(func(b *broken, _ *store.Claim) {
			b.model(func(m *Model) { m.floor = 0 })
		})},
		{"an epoch does not rise", "Session/S9_EpochsRise", func(b *broken) {
			b.ended = func(b *broken, got []schema.Owner) []schema.Owner {
				b.model(func(m *Model) {
					m.floor = 0
					for _, d := range m.sessions {
						d.epoch--
					}
				})
				return got
			}
		}},
		{"leftovers count", "Session/S9_LeftoversDoNotCount", breaks("sid")},
		{"leftover IDs are kept", "Session/S9_LeftoversDoNotCount", claims(func(_ *broken, got *store.Claimed) {
			for i := range got.Subscriptions {
				got.Subscriptions[i].ID = schema.ID{1}
			}
		})},
		{"epochs start again after Reopen", "Session/EpochsRiseReopen", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { m.floor = 0 }) }
		}},
		{"sessions are gone after Reopen", "Session/EpochsRiseReopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.model(func(m *Model) {
					for _, id := range m.Clients() {
						m.floor = max(m.floor, m.sessions[id].epoch)
						m.forget(id)
					}
				})
			}
		}},
		{"a batch is answered backwards", "Session/Batch", func(b *broken) {
			b.claimed = func(_ *broken, got []store.Claimed) { slices.Reverse(got) }
		}},
		{"two claims get one epoch", "Session/AtOnce", func(b *broken) {
			first := uint64(0)
			b.claimed = func(b *broken, got []store.Claimed) {
				b.model(func(*Model) {
					if first == 0 {
						first = got[0].Epoch
					}
					got[0].Epoch = first
				})
			}
		}},
		{"all but lane 1 is forgotten", "Session/Cursor", writes(func(_ *broken, w store.SaveCursor) (store.Write, bool) {
			w.Cursor.After = schema.At(1, 5)
			return w, true
		})},
		{"the retained mark of a flight is forgotten", "Session/Cursor", flights(func(f *schema.Flight) { f.Retained = schema.ID{} })},
		{"the time of a flight is forgotten", "Session/Cursor", flights(func(f *schema.Flight) { f.Created = time.Time{} })},
		{"received is forgotten", "Session/Cursor", flights(func(f *schema.Flight) { f.Received = false })},
		{"a stale save counts", "Session/CursorNeverBack", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if s, ok := w.(store.SaveCursor); ok {
					b.model(func(m *Model) { m.cursors[s.ClientID].Seq = 0 })
				}
				return w, true
			}
		}},
		{"a save with the same seq is stale", "Session/CursorNeverBack", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				s, ok := w.(store.SaveCursor)
				do := true
				if ok {
					b.model(func(m *Model) { do = s.Cursor.Seq > m.cursors[s.ClientID].Seq })
				}
				return w, do
			}
		}},
		{"a save forgets inbound", "Session/Q1_Inbound", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if s, ok := w.(store.SaveCursor); ok {
					b.model(func(m *Model) { m.cursors[s.ClientID].Inbound = nil })
				}
				return w, true
			}
		}},
		{"a claim forgets inbound", "Session/Q1_Inbound", claims(func(_ *broken, got *store.Claimed) { got.Cursor.Inbound = nil })},
		{"inbound entries stay", "Session/Q1_Inbound", ignores[store.DeleteInbound]()},
		{"inbound entries add up", "Session/Q1_Inbound", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				p, ok := w.(store.PutInbound)
				if ok {
					b.model(func(m *Model) { m.cursors[p.ClientID].Inbound = append(m.cursors[p.ClientID].Inbound, p.Inbound) })
				}
				return w, !ok
			}
		}},
		{"a replacement gets a new ID", "Session/Subscriptions", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if p, ok := w.(store.PutSubscriptions); ok {
					b.model(func(m *Model) {
						for _, s := range p.Subscriptions {
							delete(m.subs[p.ClientID], s.Filter)
						}
					})
				}
				return w, true
			}
		}},
		{"since is lost", "Session/Subscriptions", puts(func(s *schema.Subscription) { s.Since = schema.Cursor{} })},
		{"since is kept for one lane", "Session/Subscriptions", puts(func(s *schema.Subscription) { s.Since = schema.At(s.Since.Newest(), 0) })},
		{"before is lost", "Session/Subscriptions", puts(func(s *schema.Subscription) { s.Before = nil })},
		{"run is lost", "Session/Subscriptions", puts(func(s *schema.Subscription) { s.Run = nil })},
		{"no local is lost", "Session/Subscriptions", puts(func(s *schema.Subscription) { s.NoLocal = false })},
		{"a replacement changes nothing", "Session/Subscriptions", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				p, ok := w.(store.PutSubscriptions)
				do := true
				if ok {
					b.model(func(m *Model) { do = m.subs[p.ClientID][p.Subscriptions[0].Filter] == nil })
				}
				return w, do
			}
		}},
		{"half of a batch of subscriptions is stored", "Session/Subscriptions", writes(func(_ *broken, w store.PutSubscriptions) (store.Write, bool) {
			w.Subscriptions = w.Subscriptions[:max(1, len(w.Subscriptions)/2)]
			return w, true
		})},
		{"unsubscribing does nothing", "Session/Subscriptions", ignores[store.DeleteSubscriptions]()},
		{"the end of a session is not told", "Session/EndExpired", func(b *broken) {
			b.ended = func(*broken, []schema.Owner) []schema.Owner { return nil }
		}},
		{"sessions end though connected", "Session/EndExpired", func(b *broken) {
			b.ended = func(b *broken, got []schema.Owner) []schema.Owner {
				b.model(func(m *Model) {
					if _, _, ok := m.Owner("connected"); ok {
						m.forget("connected")
					}
				})
				return got
			}
		}},
		{"leftovers are counted", "Session/Counts", func(b *broken) {
			b.counts = func(b *broken, c store.Counts) store.Counts {
				b.model(func(m *Model) {
					c.Subscriptions = 0
					for _, subs := range m.subs {
						c.Subscriptions += len(subs)
					}
				})
				return c
			}
		}},
		{"only connected sessions are counted", "Session/Counts", func(b *broken) {
			b.counts = func(b *broken, c store.Counts) store.Counts {
				b.model(func(m *Model) {
					for _, d := range m.sessions {
						if d.owner == 0 {
							c.Sessions--
						}
					}
				})
				return c
			}
		}},
		{"Watch tells of own claims", "Session/WatchNeverYieldsOwn", func(b *broken) {
			b.watch = func(*broken) []store.Lost { return []store.Lost{{ClientID: "c", Epoch: 1}} }
		}},
		{"Watch does not hear its ctx", "Session/WatchNeverYieldsOwn", func(b *broken) {
			b.watch = func(*broken) []store.Lost { return nil }
		}},
		{"inbound is not durable", "Session/DurableAcrossReopen", volatileInbound},
		{"Reopen forgets the subscriptions", "Session/DurableAcrossReopen", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { clear(m.subs) }) }
		}},
		{"Reopen brings subscriptions back", "Session/DurableAcrossReopen", writes(func(b *broken, w store.DeleteSubscriptions) (store.Write, bool) {
			return w, false
		})},
	}
}

func flights(fn func(f *schema.Flight)) func(*broken) {
	return writes(func(_ *broken, w store.SaveCursor) (store.Write, bool) {
		w.Cursor.Flight = slices.Clone(w.Cursor.Flight)
		for i := range w.Cursor.Flight {
			fn(&w.Cursor.Flight[i])
		}
		return w, true
	})
}

func volatileInbound(b *broken) {
	b.reopened = func(b *broken) {
		b.model(func(m *Model) {
			for _, c := range m.cursors {
				c.Inbound = nil
			}
		})
	}
}

func recoverFaults() []fault {
	const reopen = "/Reopen"
	noRecords := claims(func(b *broken, got *store.Claimed) {
		cur, _ := b.saved(got.ClientID)
		got.Cursor.After, got.Cursor.Flight = cur.After, cur.Flight
	})
	var out []fault
	for _, how := range []string{"", reopen} {
		add := func(name, check string, bend func(*broken)) {
			out = append(out, fault{name + how, "Recover/" + check + how, bend})
		}
		add("a retained record advances", "S2_RetainedDoesNotAdvance", breaks("retained-marks"))
		add("a record settles nothing", "S3_IDGoesRound", breaks("id-settles"))
		add("the records of the flight are not read", "S16_ReceivedAfterSave", breaks("flight-states"))
		add("the run is not moved", "S24_RunMovesWithRecords", breaks("run-id"))
		add("PUBREC is not noted in the record", "S16_ReceivedInRecord", ignores[store.MarkReceived]())
		add("PUBREC is not noted where the record is gone", "MarkReceivedRecordGone", writes(func(b *broken, w store.MarkReceived) (store.Write, bool) {
			there := false
			b.model(func(m *Model) { there = m.record(w.ClientID, w.SID, w.Flight.Seq) != nil })
			return w, there
		}))
		add("seq begins again", "ClaimedAgain", claims(func(_ *broken, got *store.Claimed) { got.Cursor.Seq = 0 }))
		add("the vector is merged with the place of the claim", "S17_VectorOfRecordsOnly", claims(func(b *broken, got *store.Claimed) {
			at := got.Cursor.After.Clone()
			b.model(func(m *Model) { at.Merge(m.Head()) })
			got.Cursor.After = at
		}))
		add("a dropped record does not advance", "S7_DroppedStaysDropped", recordsWith(func(d *schema.Delivery) {
			if d.Dropped {
				d.MessageID = schema.ID{}
			}
		}))
		add("a dropped record is in the flight", "S7_DroppedStaysDropped", recordsWith(func(d *schema.Delivery) {
			if d.Dropped {
				d.PacketID = 9
			}
		}))
		add("what was settled comes again", "S5_SettledStaysSettled", func(b *broken) {
			writes(func(_ *broken, w store.SaveCursor) (store.Write, bool) {
				w.Cursor.Seq, w.Cursor.Flight = 0, nil
				return w, true
			})(b)
		})
		add("the state goes back by a save", "StateNeverBack", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if s, ok := w.(store.SaveCursor); ok {
					b.model(func(m *Model) {
						for _, f := range s.Cursor.Flight {
							if r := m.record(s.ClientID, s.SID, f.Seq); r != nil {
								r.Received = f.Received
							}
						}
					})
					return w, true
				}
				_, mark := w.(store.MarkReceived)
				return w, !mark || b.nowAndThen(2) == false && b.n.Load() == 1
			}
		})
	}
	add := func(name, check string, bend func(*broken)) {
		out = append(out, fault{name, "Recover/" + check, bend})
	}
	add("the claim does not read the records", "S1_S6_RecordsWithoutSave", noRecords)
	add("records are answered before they are stored", "S1_S6_RecordsWithoutSave"+reopen, recordsLater)
	add("the last record is lost by SIGKILL", "ClaimedAgain"+reopen, func(b *broken) {
		b.reopened = func(b *broken) {
			b.model(func(m *Model) {
				for _, id := range m.Clients() {
					d := m.sessions[id]
					c := m.cursors[id]
					if n := len(c.Flight); n > 0 && d != nil {
						c.Flight = c.Flight[:n-1]
					}
				}
			})
		}
	})
	return out
}

// saved gives the saved cursor of a client.
func (b *broken) saved(id string) (cur schema.SessionCursor, ok bool) {
	b.model(func(m *Model) {
		if o, _, is := m.Owner(id); is {
			cur, ok = m.Cursor(id, o.SID)
		}
	})
	return cur, ok
}

func recordsWith(fn func(d *schema.Delivery)) func(*broken) {
	return func(b *broken) {
		b.record = func(b *broken, batch []schema.Delivery) (errs []error) {
			batch = slices.Clone(batch)
			for i := range batch {
				fn(&batch[i])
			}
			b.model(func(m *Model) { errs = m.RecordBatch(batch) })
			return errs
		}
	}
}

// recordsLater keeps records in memory until the next claim; a SIGKILL takes them.
func recordsLater(b *broken) {
	var held []schema.Delivery
	b.record = func(_ *broken, batch []schema.Delivery) []error {
		held = append(held, batch...)
		return make([]error, len(batch))
	}
	b.asks = func(b *broken, _ []store.Claim) {
		b.model(func(m *Model) { m.RecordBatch(held) })
		held = nil
	}
	b.reopened = func(*broken) { held = nil }
}

func willFaults() []fault {
	dues := func(fn func(b *broken, w *store.DueWill)) func(*broken) {
		return func(b *broken) {
			b.due = func(b *broken, _ int, got []store.DueWill) []store.DueWill {
				for i := range got {
					fn(b, &got[i])
				}
				return got
			}
		}
	}
	wills := func(fn func(w *schema.Will)) func(*broken) {
		return asksWith(func(_ *broken, ask *store.Claim) {
			if ask.Will != nil {
				w := *ask.Will
				fn(&w)
				ask.Will = &w
			}
		})
	}
	releases := func(fn func(w *store.Release)) func(*broken) {
		return writes(func(_ *broken, w store.Release) (store.Write, bool) {
			fn(&w)
			return w, true
		})
	}
	return []fault{
		{"a normal release leaves the will", "Will/NormalReleaseRemoves", releases(func(w *store.Release) { w.Normal = false })},
		{"every release removes the will", "Will/DueAtOnce", releases(func(w *store.Release) { w.Normal = true })},
		{"the time of a will is that of the look", "Will/DueAtOnce", dues(func(b *broken, w *store.DueWill) { b.model(func(m *Model) { w.Will.At = m.now }) })},
		{"a due will is given once", "Will/DueAtOnce", func(b *broken) {
			b.due = func(b *broken, _ int, got []store.DueWill) []store.DueWill {
				b.model(func(m *Model) {
					for _, w := range got {
						m.takeOutWill(w.ClientID, w.Will.Key)
					}
				})
				return got
			}
		}},
		{"a will is not taken out", "Will/DueAtOnce", ignores[store.TakeOutWill]()},
		{"all wills have one key", "Will/DueAtOnce", dues(func(_ *broken, w *store.DueWill) { w.Will.Key = schema.ID{1} })},
		{"the delay is ignored", "Will/Delay", wills(func(w *schema.Will) { w.Delay = 0 })},
		{"the delay is too short", "Will/Delay", wills(func(w *schema.Will) { w.Delay -= 10 })},
		{"the delay is too long", "Will/Delay", wills(func(w *schema.Will) { w.Delay += 10 })},
		{"the delay begins with the connection", "Will/Delay", claims(func(b *broken, got *store.Claimed) {
			b.model(func(m *Model) {
				for i := range m.sessions[got.ClientID].wills {
					m.sessions[got.ClientID].wills[i].At = m.now.Add(100 * time.Second)
				}
			})
		})},
		{"who is back in time has its will published", "Will/ReturnBeforeDelay", claims(func(b *broken, got *store.Claimed) {
			if got.Present {
				got.Wills = append(got.Wills, schema.Will{Topic: "will/c"})
			}
		})},
		{"who is back in time keeps its will", "Will/ReturnBeforeDelay", func(b *broken) {
			var kept []will
			b.asks = func(b *broken, _ []store.Claim) {
				b.model(func(m *Model) {
					if d := m.sessions["c"]; d != nil {
						kept = slices.Clone(d.wills)
					}
				})
			}
			claims(func(b *broken, got *store.Claimed) {
				b.model(func(m *Model) {
					if len(m.sessions["c"].wills) == 0 {
						m.sessions["c"].wills = kept
					}
				})
			})(b)
		}},
		{"who is back too late has no will published", "Will/ReturnAfterDelay", claims(func(_ *broken, got *store.Claimed) { got.Wills = nil })},
		{"a clean start drops the old will", "Will/CleanStartPublishesOld", asksWith(func(b *broken, ask *store.Claim) {
			if ask.CleanStart {
				b.model(func(m *Model) {
					if d := m.sessions[ask.ClientID]; d != nil {
						d.wills = nil
					}
				})
			}
		})},
		{"a clean start waits for the delay", "Will/CleanStartPublishesOld", claims(func(_ *broken, got *store.Claimed) {
			got.Wills = slices.DeleteFunc(got.Wills, func(w schema.Will) bool { return w.Delay > 0 })
		})},
		{"a claim overwrites the old will", "Will/TakeOver", asksWith(func(b *broken, ask *store.Claim) {
			b.model(func(m *Model) {
				if d := m.sessions[ask.ClientID]; d != nil {
					d.wills = nil
				}
			})
		})},
		{"a will is made of the claim that finds it", "Will/TakeOver", claims(func(_ *broken, got *store.Claimed) {
			for i := range got.Wills {
				got.Wills[i].Key = schema.ID{5: byte(got.Epoch)}
			}
		})},
		{"a will waits though its session has ended", "Will/SessionEndsBeforeDelay", func(b *broken) {
			b.due = func(*broken, int, []store.DueWill) []store.DueWill { return nil }
		}},
		{"a session ends with its will in it", "Will/KeepsTheSession", breaks("will-kept")},
		{"the will of who is connected is due", "Will/ConnectedIsNotDue", func(b *broken) {
			b.due = func(b *broken, _ int, got []store.DueWill) []store.DueWill {
				b.model(func(m *Model) {
					for id, d := range m.sessions {
						for _, w := range d.wills {
							w.Will.Due, w.Will.At = true, m.now
							got = append(got, store.DueWill{ClientID: id, Will: w.Will})
						}
					}
				})
				return got
			}
		}},
		{"a will loses its properties", "Will/Fields", wills(func(w *schema.Will) { w.Properties = nil })},
		{"a will loses its expiry", "Will/Fields", wills(func(w *schema.Will) { w.HasExpiry = false })},
		{"the limit of wills is ignored", "Will/Limit", func(b *broken) {
			b.due = func(b *broken, _ int, _ []store.DueWill) (got []store.DueWill) {
				b.model(func(m *Model) { got = m.DueWills(100) })
				return got
			}
		}},
		{"F-14: wills are gone after SIGKILL", "Will/F14_Reopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.model(func(m *Model) {
					for _, d := range m.sessions {
						d.wills = nil
					}
				})
			}
		}},
		{"F-14: only persistent sessions' wills survive", "Will/F14_Reopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.model(func(m *Model) {
					for _, d := range m.sessions {
						if d.expiry == 0 {
							d.wills = nil
						}
					}
				})
			}
		}},
		{"W1: another message after SIGKILL", "Will/W1_SameMessageReopen", func(b *broken) {
			b.reopened = func(b *broken) {
				b.model(func(m *Model) {
					for _, d := range m.sessions {
						for i := range d.wills {
							d.wills[i].Key[11]++
						}
					}
				})
			}
		}},
		{"W1: another time for the claimer", "Will/W1_SameMessageReopen", claims(func(_ *broken, got *store.Claimed) {
			for i := range got.Wills {
				got.Wills[i].At = got.Wills[i].At.Add(time.Second)
			}
		})},
	}
}

func retainedFaults() []fault {
	loads := func(fn func(msgs []*schema.Message) []*schema.Message) func(*broken) {
		return func(b *broken) {
			b.retained = func(_ *broken, msgs []*schema.Message) []*schema.Message { return fn(msgs) }
		}
	}
	stores := func(fn func(b *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor)) func(*broken) {
		return func(b *broken) { b.retain = fn }
	}
	lastWins := stores(func(b *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
		b.model(func(m *Model) {
			for _, msg := range msgs {
				delete(m.retained, msg.Topic)
			}
		})
		return msgs, at
	})
	noTombstones := stores(func(b *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
		b.model(func(m *Model) {
			for topic, msg := range m.retained {
				if len(msg.Payload) == 0 {
					delete(m.retained, topic)
				}
			}
		})
		return msgs, at
	})
	return []fault{
		{"R4: the last written wins", "Retained/R4_AnyOrder", lastWins},
		{"tombstones are forgotten", "Retained/Tombstone", noTombstones},
		{"tombstones are forgotten at Reopen", "Retained/Reopen", noTombstones},
		{"an empty payload clears nothing", "Retained/Tombstone", stores(func(_ *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
			return slices.DeleteFunc(slices.Clone(msgs), func(m *schema.Message) bool { return len(m.Payload) == 0 }), at
		})},
		{"retained in no order", "Retained/Reopen", loads(func(msgs []*schema.Message) []*schema.Message {
			slices.Reverse(msgs)
			return msgs
		})},
		{"the checkpoint stands still", "Retained/Checkpoint", stores(func(_ *broken, msgs []*schema.Message, _ schema.Cursor) ([]*schema.Message, schema.Cursor) {
			return msgs, schema.Cursor{}
		})},
		{"the checkpoint is beyond", "Retained/Checkpoint", stores(func(_ *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
			at = at.Clone()
			at.Advance(schema.Mark{Lane: at.Newest(), N: 99})
			return msgs, at
		})},
		{"a retained message loses its properties", "Retained/Content", stores(func(_ *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
			out := make([]*schema.Message, len(msgs))
			for i, m := range msgs {
				c := *m
				c.Properties = nil
				out[i] = &c
			}
			return out, at
		})},
		{"a retained message loses its ts", "Retained/Content", stores(func(_ *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor) {
			out := make([]*schema.Message, len(msgs))
			for i, m := range msgs {
				c := *m
				c.TS = 0
				out[i] = &c
			}
			return out, at
		})},
		{"an empty store retains something", "Retained/Empty", loads(func(msgs []*schema.Message) []*schema.Message {
			return append(msgs, &schema.Message{Topic: "x", Payload: []byte("x")})
		})},
		{"retained is gone after SIGKILL", "Retained/Reopen", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { clear(m.retained) }) }
		}},
		{"the checkpoint is gone after SIGKILL", "Retained/Reopen", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { m.checkpoint = schema.Cursor{} }) }
		}},
	}
}
