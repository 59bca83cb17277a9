package storetest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

type fault struct {
	name  string
	check string // that has to notice
	bend  func(*broken)
}

func faults() []fault {
	return slices.Concat(logFaults(), readFaults(), writeFaults(), sessionFaults(), recoverFaults(), groupFaults(), willFaults(), retainedFaults(), directoryFaults(), historyFaults(), messageFaults())
}

// tails bends what tails yield.
func tails(fn func(b *broken, e []store.Event) []store.Event) func(*broken) {
	return func(b *broken) { b.tail = fn }
}

func logFaults() []fault {
	return []fault{
		{"answered before it is synced", "Log/DurableUnderLoad", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { m.cut(3) }) }
		}},
		{"yielded before it is synced", "Log/DurableUnderLoad", yieldsUnsynced},
		{"a tail swaps two of a lane", "Log/TailUnderLoad", tails(func(_ *broken, e []store.Event) []store.Event {
			for i := range e {
				for j := i + 1; j < len(e); j++ {
					if a, b := e[i].Message, e[j].Message; a != nil && b != nil && a.Mark.Lane == b.Mark.Lane {
						e[i].Message, e[j].Message = b, a
						return e
					}
				}
			}
			return e
		})},
		{"a tail skips one", "Log/TailUnderLoad", tails(func(b *broken, e []store.Event) []store.Event {
			return slices.DeleteFunc(e, func(store.Event) bool { return b.nowAndThen(50) })
		})},
		{"a tail repeats one", "Log/TailUnderLoad", tails(func(_ *broken, e []store.Event) []store.Event {
			return append(e, e[len(e)-1])
		})},
		{"a tail's H lags", "Log/TailUnderLoad", tails(func(_ *broken, e []store.Event) []store.Event {
			for i := len(e) - 1; i > 0; i-- {
				e[i].H = e[i-1].H
			}
			return e
		})},
		{"a tail's H runs ahead", "Log/TailUnderLoad", tails(func(_ *broken, e []store.Event) []store.Event {
			for i := range e {
				e[i].H = e[len(e)-1].H
			}
			return e
		})},
		{"a resumed tail repeats its last", "Log/TailResumes", func(b *broken) { b.tail = repeatsAtOpen() }},
		{"Head too low", "Log/HeadUnderLoad", heads(func(m schema.Mark) uint64 { return max(m.N, 1) - 1 })},
		{"Head too high", "Log/HeadUnderLoad", heads(func(m schema.Mark) uint64 { return m.N + 1 })},
		{"Head stands still", "Log/HeadUnderLoad", func(b *broken) {
			var once sync.Once
			var first schema.Cursor
			b.head = func(_ *broken, h schema.Cursor) schema.Cursor {
				once.Do(func() { first = h })
				return first
			}
		}},
		{"not idempotent", "Log/IdempotentTwice", func(b *broken) { b.m.Break("idempotent") }},
		{"not idempotent at once", "Log/IdempotentAtOnce", func(b *broken) { b.m.Break("idempotent") }},
		{"idempotent until Reopen", "Log/IdempotentReopen", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { m.byID = map[schema.ID]*schema.Message{} }) }
		}},
		{"answers out of order", "Log/AnswersInOrder", func(b *broken) {
			var mu sync.Mutex
			var held []func()
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				b.Memory.Append(ctx, p, msgs, func(a []store.Appended) {
					mu.Lock()
					held = append(held, func() { done(a) })
					if len(held) < 2 {
						mu.Unlock()
						return
					}
					out := held
					held = nil
					mu.Unlock()
					out[1]()
					out[0]()
				})
			}
		}},
		{"answered twice", "Log/AnswersInOrder", dones(func(b *broken, done func([]store.Appended), a []store.Appended) {
			if done(a); b.nowAndThen(20) {
				done(a)
			}
		})},
		{"a stored mark is wrong", "Log/TailUnderLoad", dones(func(b *broken, done func([]store.Appended), a []store.Appended) {
			if len(a) > 1 {
				a[0].Mark, a[1].Mark = a[1].Mark, a[0].Mark
			}
			done(a)
		})},
		{"a failed publisher goes on", "Log/FailedPublisher", publishers(func(p *store.Publisher) *store.Publisher {
			return &store.Publisher{Owner: p.Owner, Strict: p.Strict}
		})},
		{"Fail does not reach what waits", "Log/FailWhileWaiting", publishers(func(p *store.Publisher) *store.Publisher {
			return &store.Publisher{Owner: p.Owner}
		})},
		{"L5: strict is ignored", "Log/L5_StrictFailsBehind", func(b *broken) {
			loose := map[*store.Publisher]*store.Publisher{}
			publishers(func(p *store.Publisher) *store.Publisher {
				if loose[p] == nil {
					loose[p] = &store.Publisher{Owner: p.Owner}
				}
				return loose[p]
			})(b)
		}},
		{"every refusal fails the publisher", "Log/TooLarge", func(b *broken) {
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				p.Strict = true
				b.Memory.Append(ctx, p, msgs, done)
			}
		}},
		{"refused, and stored", "Log/TooLarge", func(b *broken) {
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				b.Memory.Append(ctx, p, msgs, func(a []store.Appended) {
					for i := range a {
						if a[i].Outcome == store.Refused {
							b.model(func(m *Model) { m.Land(1, 0, msgs[i]) })
						}
					}
					done(a)
				})
			}
		}},
		{"the end of ctx refuses what is stored", "Log/AppendContextEnds", func(b *broken) {
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				b.Memory.Append(context.WithoutCancel(ctx), p, msgs, func(a []store.Appended) {
					if ctx.Err() != nil {
						for i := range a {
							a[i] = store.Appended{Outcome: store.Refused, Err: ctx.Err()}
						}
					}
					done(a)
				})
			}
		}},
		{"a tail does not hear its ctx", "Log/CallContextEnds", func(b *broken) { b.noCtx = true }},
		{"done is called by the caller", "Log/AnswersInOrder", func(b *broken) {
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				back := make(chan []store.Appended, 1)
				b.Memory.Append(ctx, p, msgs, func(a []store.Appended) { back <- a })
				if calledBy("answersInOrder.func1") {
					go func() { done(<-back) }() // an Append in done
					return
				}
				done(<-back)
			}
		}},
		{"mark and ts are not set", "Log/Content", func(b *broken) {
			b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
				copies := make([]*schema.Message, len(msgs))
				for i, m := range msgs {
					copies[i] = again(m)
				}
				b.Memory.Append(ctx, p, copies, done)
			}
		}},
		{"retain is lost", "Log/Content", changesMessages(func(m *schema.Message) { m.Retain = false })},
		{"the order of user properties is lost", "Log/Content", changesMessages(func(m *schema.Message) {
			if m.Properties != nil {
				p := *m.Properties
				p.User = slices.Clone(p.User)
				slices.Reverse(p.User)
				m.Properties = &p
			}
		})},
		{"an empty content type is lost", "Log/Content", changesMessages(func(m *schema.Message) {
			if m.Properties != nil {
				p := *m.Properties
				p.EmptyContentType = false
				m.Properties = &p
			}
		})},
		{"expiry is cut to seconds", "Log/Content", changesMessages(func(m *schema.Message) { m.Expiry = m.Expiry.Truncate(time.Second) })},
		{"the number is given again", "Log/T14_NumberingGoesOn", func(b *broken) {
			b.reopened = func(b *broken) { b.model(func(m *Model) { m.cut(1) }) }
		}},
	}
}

// cut takes the last n messages out of the log, as if they had never been there.
func (m *Model) cut(n int) {
	for i := len(m.order) - 1; i >= 0 && n > 0; i-- {
		if msg := m.order[i].msg; msg != nil {
			m.uncommit(i)
			n--
		}
	}
}

// uncommit takes the message at place i out, the last of its lane.
func (m *Model) uncommit(i int) {
	msg := m.order[i].msg
	l := &m.lanes[msg.Mark.Lane-1]
	l.at = l.at[:len(l.at)-1]
	delete(m.byID, msg.ID)
	m.order = slices.Delete(m.order, i, i+1)
	for k := range m.lanes {
		for j, at := range m.lanes[k].at {
			if int(at) > i {
				m.lanes[k].at[j]--
			}
		}
	}
}

// yieldsUnsynced answers a while after it has yielded; a SIGKILL between takes the
// message away.
func yieldsUnsynced(b *broken) {
	var mu sync.Mutex
	waiting := map[*schema.Message]bool{}
	b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
		b.Memory.Append(ctx, p, msgs, func(a []store.Appended) {
			mu.Lock()
			for _, m := range msgs {
				waiting[m] = true
			}
			mu.Unlock()
			a = slices.Clone(a)
			time.AfterFunc(2*time.Millisecond, func() {
				mu.Lock()
				for _, m := range msgs {
					delete(waiting, m)
				}
				mu.Unlock()
				done(a)
			})
		})
	}
	b.reopened = func(b *broken) {
		mu.Lock()
		defer mu.Unlock()
		b.model(func(m *Model) {
			for i := len(m.order) - 1; i >= 0; i-- {
				msg := m.order[i].msg
				if msg != nil && waiting[msg] && int(msg.Mark.N) == len(m.lanes[msg.Mark.Lane-1].at) {
					m.uncommit(i)
				}
			}
		})
		clear(waiting)
	}
}

// repeatsAtOpen yields the first event of each call twice, one call in three.
func repeatsAtOpen() func(b *broken, e []store.Event) []store.Event {
	return func(b *broken, e []store.Event) []store.Event {
		if b.nowAndThen(3) {
			return slices.Insert(e, 0, e[0])
		}
		return e
	}
}

func heads(n func(schema.Mark) uint64) func(*broken) {
	return func(b *broken) {
		b.head = func(_ *broken, h schema.Cursor) schema.Cursor {
			marks := slices.Clone(h.Marks())
			for i := range marks {
				marks[i].N = n(marks[i])
			}
			return schema.NewCursor(h.Newest(), marks)
		}
	}
}

func dones(fn func(b *broken, done func([]store.Appended), a []store.Appended)) func(*broken) {
	return func(b *broken) {
		b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
			b.Memory.Append(ctx, p, msgs, func(a []store.Appended) { fn(b, done, a) })
		}
	}
}

func publishers(fn func(*store.Publisher) *store.Publisher) func(*broken) {
	return func(b *broken) {
		b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
			b.Memory.Append(ctx, fn(p), msgs, done)
		}
	}
}

func changesMessages(fn func(*schema.Message)) func(*broken) {
	return func(b *broken) {
		b.append = func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
			changed := make([]*schema.Message, len(msgs))
			for i, m := range msgs {
				c := *m
				fn(&c)
				changed[i] = &c
			}
			b.Memory.Append(ctx, p, changed, func(a []store.Appended) {
				for i, m := range changed {
					msgs[i].Mark, msgs[i].TS = m.Mark, m.TS
				}
				done(a)
			})
		}
	}
}

func readFaults() []fault {
	reads := func(fn func(msgs []*schema.Message) []*schema.Message) func(*broken) {
		return func(b *broken) {
			b.read = func(_ *broken, msgs []*schema.Message) []*schema.Message { return fn(msgs) }
		}
	}
	moved := func(c schema.Cursor, by int) schema.Cursor {
		marks := slices.Clone(c.Marks())
		for i := range marks {
			if by > 0 || marks[i].N > 0 {
				marks[i].N += uint64(by)
			}
		}
		return schema.NewCursor(c.Newest(), marks)
	}
	return []fault{
		{"a read includes upTo+1", "Read/Bounds", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				return after, moved(upTo, 1), f
			}
		}},
		{"a read misses what stands at upTo", "Read/Exact", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				return after, moved(upTo, -1), f
			}
		}},
		{"a read includes what stands at after", "Read/Exact", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				return moved(after, -1), upTo, f
			}
		}},
		{"a read misses the first", "Read/Bounds", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				return moved(after, 1), upTo, f
			}
		}},
		{"a read goes on to the head", "Read/UnderLoad", func(b *broken) {
			b.bounds = func(b *broken, after, _ schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				var h schema.Cursor
				b.model(func(m *Model) { h = m.Head() })
				return after, h, f
			}
		}},
		{"a cut read begins at its lowest lane", "Read/T7_CutAndResumed", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				low := ^uint64(0)
				for _, m := range after.Marks() {
					low = min(low, m.N)
				}
				marks := slices.Clone(after.Marks())
				for i := range marks {
					marks[i].N = low
				}
				return schema.NewCursor(after.Newest(), marks), upTo, f
			}
		}},
		{"# matches $ topics", "Read/Filters", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				if slices.Contains(f, "#") {
					f = append(f, "$SYS/#", "$x/#")
				}
				return after, upTo, f
			}
		}},
		{"no filter is every filter", "Read/Bounds", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				if len(f) == 0 {
					f = []string{"#"}
				}
				return after, upTo, f
			}
		}},
		{"the last filter is forgotten", "Read/Filters", func(b *broken) {
			b.bounds = func(_ *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				if len(f) > 1 {
					f = f[:len(f)-1]
				}
				return after, upTo, f
			}
		}},
		{"a# does not match its parent", "Read/Filters", reads(func(msgs []*schema.Message) []*schema.Message {
			return slices.DeleteFunc(msgs, func(m *schema.Message) bool { return m.Topic == "ab" })
		})},
		{"a read repeats one", "Read/Exact", reads(func(msgs []*schema.Message) []*schema.Message {
			if len(msgs) > 3 {
				msgs = append(msgs, msgs[len(msgs)-1])
			}
			return msgs
		})},
		{"a read skips one", "Read/Exact", reads(func(msgs []*schema.Message) []*schema.Message {
			if len(msgs) > 3 {
				msgs = slices.Delete(msgs, 2, 3)
			}
			return msgs
		})},
		{"a read is sorted by topic", "Read/Exact", reads(func(msgs []*schema.Message) []*schema.Message {
			slices.SortStableFunc(msgs, func(a, b *schema.Message) int { return bytes.Compare([]byte(a.Topic), []byte(b.Topic)) })
			return msgs
		})},
		{"Lookup answers backwards", "Read/Lookup", func(b *broken) {
			b.lookup = func(_ *broken, msgs []*schema.Message) { slices.Reverse(msgs) }
		}},
		{"Lookup fills its holes", "Read/Lookup", func(b *broken) {
			b.lookup = func(_ *broken, msgs []*schema.Message) {
				for i := range msgs {
					if msgs[i] == nil {
						msgs[i] = msgs[0]
					}
				}
			}
		}},
		{"what was trimmed is not counted", "Read/Trimmed", func(b *broken) {
			b.bounds = func(b *broken, after, upTo schema.Cursor, f []string) (schema.Cursor, schema.Cursor, []string) {
				b.model(func(m *Model) {
					for i := range m.lanes {
						if n, ok := after.N(schema.Lane(i + 1)); ok && n < m.lanes[i].trimmed {
							after.Advance(schema.Mark{Lane: schema.Lane(i + 1), N: m.lanes[i].trimmed})
						}
					}
				})
				return after, upTo, f
			}
		}},
	}
}

// owned gives w in the name of the present owner, whoever that is.
func owned(b *broken, w store.Write) store.Write {
	o := store.OwnerOf(w)
	b.model(func(m *Model) {
		if present, _, ok := m.Owner(o.ClientID); ok {
			o = present
		}
	})
	switch w := w.(type) {
	case store.SaveCursor:
		w.Owner = o
		return w
	case store.PutInbound:
		w.Owner = o
		return w
	case store.DeleteInbound:
		w.Owner = o
		return w
	case store.MarkReceived:
		w.Owner = o
		return w
	case store.PutSubscriptions:
		w.Owner = o
		return w
	case store.DeleteSubscriptions:
		w.Owner = o
		return w
	case store.Release:
		w.Owner = o
		return w
	}
	return w
}

// writeFaults: for each kind of write a store that ignores its epoch, one that
// does not note that its owner was released, and one that changes nothing but
// forgets to say so.
func writeFaults() []fault {
	var out []fault
	kindOf := func(w store.Write) string {
		switch w.(type) {
		case store.SaveCursor:
			return "SaveCursor"
		case store.PutInbound:
			return "PutInbound"
		case store.DeleteInbound:
			return "DeleteInbound"
		case store.MarkReceived:
			return "MarkReceived"
		case store.PutSubscriptions:
			return "PutSubscriptions"
		case store.DeleteSubscriptions:
			return "DeleteSubscriptions"
		case store.Release:
			return "Release"
		}
		return ""
	}
	for _, k := range kinds() {
		ignore, released := func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if kindOf(w) == k.name {
					w = owned(b, w)
				}
				return w, true
			}
		}, func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				if kindOf(w) != k.name {
					return w, true
				}
				b.model(func(m *Model) { _ = m.Write(w) })
				return w, false
			}
		}
		silent := func(b *broken) {
			b.written = func(_ *broken, w store.Write, err error) error {
				if kindOf(w) == k.name {
					return nil
				}
				return err
			}
		}
		if k.name == "Record" {
			ignore, released, silent = recordIgnores, recordAfterRelease, recordSilent
		}
		out = append(out,
			fault{k.name + " ignores the epoch", "Fence/OlderEpoch", ignore},
			fault{k.name + " ignores the epoch of the run before", "Fence/Reopen", ignore},
			fault{k.name + " does not say that it is lost", "Fence/OlderEpoch", silent},
		)
		if k.name != "Release" {
			out = append(out, fault{k.name + " goes on after Release", "Fence/AfterRelease", released})
		}
	}
	return append(
		out,
		fault{"a greater epoch counts", "Fence/Strangers", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				var present schema.Owner
				b.model(func(m *Model) { present, _, _ = m.Owner(store.OwnerOf(w).ClientID) })
				if store.OwnerOf(w).Epoch > present.Epoch && present.SID == store.OwnerOf(w).SID {
					w = owned(b, w)
				}
				return w, true
			}
		}},
		fault{"the sid is not looked at", "Fence/Strangers", func(b *broken) {
			b.write = func(b *broken, w store.Write) (store.Write, bool) {
				var present schema.Owner
				b.model(func(m *Model) { present, _, _ = m.Owner(store.OwnerOf(w).ClientID) })
				if store.OwnerOf(w).Epoch == present.Epoch {
					w = owned(b, w)
				}
				return w, true
			}
		}},
		fault{"a fenced record ends the batch", "Fence/RecordOfTheBatchGoesOn", func(b *broken) {
			b.record = func(b *broken, batch []schema.Delivery) []error {
				errs := make([]error, len(batch))
				for i := range batch {
					if i > 0 && errs[i-1] != nil {
						errs[i] = errs[i-1]
						continue
					}
					errs[i] = b.Memory.Record(context.Background(), batch[i:i+1])[0]
				}
				return errs
			}
		}},
		fault{"a record again is a collision", "Fence/RecordIdempotent", func(b *broken) {
			b.record = func(b *broken, batch []schema.Delivery) []error {
				errs := make([]error, len(batch))
				for i := range batch {
					b.model(func(m *Model) {
						if m.record(batch[i].ClientID, batch[i].SID, batch[i].Seq) != nil {
							errs[i] = store.ErrSessionLost
						}
					})
					if errs[i] == nil {
						errs[i] = b.Memory.Record(context.Background(), batch[i:i+1])[0]
					}
				}
				return errs
			}
		}},
	)
}

func recordIgnores(b *broken) {
	b.record = func(b *broken, batch []schema.Delivery) []error {
		batch = slices.Clone(batch)
		b.model(func(m *Model) {
			for i := range batch {
				if o, _, ok := m.Owner(batch[i].ClientID); ok {
					batch[i].Owner = o
				}
			}
		})
		return b.Memory.Record(context.Background(), batch)
	}
}

func recordAfterRelease(b *broken) {
	b.record = func(b *broken, batch []schema.Delivery) (errs []error) {
		b.model(func(m *Model) { errs = m.RecordBatch(batch) })
		return errs
	}
}

func recordSilent(b *broken) {
	b.record = func(b *broken, batch []schema.Delivery) []error {
		b.Memory.Record(context.Background(), batch)
		return make([]error, len(batch))
	}
}
