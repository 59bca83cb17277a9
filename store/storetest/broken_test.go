package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
	"rewindmq/store/history"
)

// broken is a Memory that is wrong in one point: what is not nil replaces or bends
// what the Memory does.
type broken struct {
	*Memory
	n *atomic.Int64 // calls so far, for faults that come now and then

	append   func(b *broken, ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended))
	tail     func(b *broken, events []store.Event) []store.Event
	head     func(b *broken, h schema.Cursor) schema.Cursor
	bounds   func(b *broken, after, upTo schema.Cursor, filters []string) (schema.Cursor, schema.Cursor, []string)
	read     func(b *broken, msgs []*schema.Message) []*schema.Message
	lookup   func(b *broken, msgs []*schema.Message)
	asks     func(b *broken, asks []store.Claim)
	claimed  func(b *broken, got []store.Claimed)
	write    func(b *broken, w store.Write) (store.Write, bool) // false: answered nil, and not done
	written  func(b *broken, w store.Write, err error) error
	record   func(b *broken, batch []schema.Delivery) []error
	due      func(b *broken, limit int, got []store.DueWill) []store.DueWill
	ended    func(b *broken, got []schema.Owner) []schema.Owner
	counts   func(b *broken, c store.Counts) store.Counts
	retain   func(b *broken, msgs []*schema.Message, at schema.Cursor) ([]*schema.Message, schema.Cursor)
	retained func(b *broken, msgs []*schema.Message) []*schema.Message
	watch    func(b *broken) []store.Lost
	list     func(after string, limit int) (string, int)
	listed   func(list []store.SessionInfo) []store.SessionInfo
	looked   func(i store.SessionInfo, err error) (store.SessionInfo, error)
	asked    func(of *history.Query, after *string)
	told     func(list []history.Delivery) []history.Delivery
	wanted   func(of *history.MessageQuery, after *string, limit *int)
	found    func(list []*schema.Message, next string) ([]*schema.Message, string)
	reopened func(b *broken)
	noCtx    bool // tails do not hear their ctx
}

// nowAndThen is true for every n-th call.
func (b *broken) nowAndThen(n int64) bool { return b.n.Add(1)%n == 0 }

// model works on the model, under the lock.
func (b *broken) model(fn func(m *Model)) { b.Inspect(fn) }

func (b *broken) Append(ctx context.Context, p *store.Publisher, msgs []*schema.Message, done func([]store.Appended)) {
	if b.append != nil {
		b.append(b, ctx, p, msgs, done)
		return
	}
	b.Memory.Append(ctx, p, msgs, done)
}

type brokenTail struct {
	store.Tail
	b *broken
}

func (b *broken) Tail(ctx context.Context, after schema.Cursor) (store.Tail, error) {
	t, err := b.Memory.Tail(ctx, after)
	return &brokenTail{t, b}, err
}

func (t *brokenTail) Next(ctx context.Context) ([]store.Event, error) {
	if t.b.noCtx {
		ctx = context.WithoutCancel(ctx)
	}
	for {
		events, err := t.Tail.Next(ctx)
		if err == nil && t.b.tail != nil {
			if events = t.b.tail(t.b, slices.Clone(events)); len(events) == 0 {
				continue
			}
		}
		return events, err
	}
}

func (b *broken) Head(ctx context.Context) (schema.Cursor, error) {
	h, err := b.Memory.Head(ctx)
	if err == nil && b.head != nil {
		h = b.head(b, h.Clone())
	}
	return h, err
}

// brokenRead is read whole when it opens.
type brokenRead struct {
	store.Messages
	left []*schema.Message
}

func (b *broken) Read(ctx context.Context, after, upTo schema.Cursor, filters []string) (store.Messages, error) {
	if b.bounds != nil {
		after, upTo, filters = b.bounds(b, after.Clone(), upTo.Clone(), slices.Clone(filters))
	}
	r, err := b.Memory.Read(ctx, after, upTo, filters)
	if err != nil || b.read == nil {
		return r, err
	}
	out := &brokenRead{Messages: r}
	for {
		m, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			out.left = b.read(b, out.left)
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out.left = append(out.left, m)
	}
}

func (r *brokenRead) Next(context.Context) (*schema.Message, error) {
	if len(r.left) == 0 {
		return nil, io.EOF
	}
	m := r.left[0]
	r.left = r.left[1:]
	return m, nil
}

func (b *broken) Lookup(ctx context.Context, refs []store.Ref) ([]*schema.Message, error) {
	got, err := b.Memory.Lookup(ctx, refs)
	if b.lookup != nil {
		b.lookup(b, got)
	}
	return got, err
}

func (b *broken) Claim(ctx context.Context, asks []store.Claim) []store.Claimed {
	asks = slices.Clone(asks)
	if b.asks != nil {
		b.asks(b, asks)
	}
	got := b.Memory.Claim(ctx, asks)
	if b.claimed != nil {
		b.claimed(b, got)
	}
	return got
}

func (b *broken) Write(ctx context.Context, writes []store.Write) []error {
	errs := make([]error, len(writes))
	for i, w := range writes {
		do := true
		if b.write != nil {
			w, do = b.write(b, w)
		}
		if do {
			errs[i] = b.Memory.Write(ctx, []store.Write{w})[0]
		}
		if b.written != nil {
			errs[i] = b.written(b, w, errs[i])
		}
	}
	return errs
}

func (b *broken) Record(ctx context.Context, batch []schema.Delivery) []error {
	if b.record != nil {
		return b.record(b, batch)
	}
	return b.Memory.Record(ctx, batch)
}

func (b *broken) DueWills(ctx context.Context, limit int) ([]store.DueWill, error) {
	got, err := b.Memory.DueWills(ctx, limit)
	if b.due != nil {
		got = b.due(b, limit, got)
	}
	return got, err
}

func (b *broken) EndExpired(ctx context.Context, limit int) ([]schema.Owner, error) {
	got, err := b.Memory.EndExpired(ctx, limit)
	if b.ended != nil {
		got = b.ended(b, got)
	}
	return got, err
}

func (b *broken) Counts(ctx context.Context) (store.Counts, error) {
	c, err := b.Memory.Counts(ctx)
	if b.counts != nil {
		c = b.counts(b, c)
	}
	return c, err
}

func (b *broken) StoreRetained(ctx context.Context, msgs []*schema.Message, at schema.Cursor) error {
	if b.retain != nil {
		msgs, at = b.retain(b, msgs, at)
	}
	return b.Memory.StoreRetained(ctx, msgs, at)
}

func (b *broken) LoadRetained(ctx context.Context, fn func(*schema.Message) error) (schema.Cursor, error) {
	if b.retained == nil {
		return b.Memory.LoadRetained(ctx, fn)
	}
	var msgs []*schema.Message
	at, err := b.Memory.LoadRetained(ctx, func(m *schema.Message) error {
		msgs = append(msgs, m)
		return nil
	})
	for _, m := range b.retained(b, msgs) {
		if err := fn(m); err != nil {
			return at, err
		}
	}
	return at, err
}

type brokenWatch struct {
	store.Watch
	b *broken
}

func (b *broken) Watch(ctx context.Context) (store.Watch, error) {
	w, err := b.Memory.Watch(ctx)
	return &brokenWatch{w, b}, err
}

func (w *brokenWatch) Next(ctx context.Context) ([]store.Lost, error) {
	if w.b.watch != nil {
		return w.b.watch(w.b), nil
	}
	return w.Watch.Next(ctx)
}

// failures collects what a check finds.
type failures struct {
	mu    sync.Mutex
	texts []string
}

func (f *failures) Helper() {}

func (f *failures) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

func (f *failures) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

// failuresOf runs one check on a store that is bent by fault; nil: by nothing.
func failuresOf(t *testing.T, name string, fault func(*broken), patience time.Duration) []string {
	t.Helper()
	i := slices.IndexFunc(checks(), func(ch item) bool { return ch.name == name })
	if i < 0 {
		t.Fatalf("no check %q", name)
	}
	cl := newClock()
	b := &broken{Memory: NewMemory(Options{Lanes: 2, Seed: 3, Now: cl.Now, MaxPayload: 10_000}), n: new(atomic.Int64)}
	if fault != nil {
		fault(b)
	}
	running(t, b.Memory)
	h := Harness{Store: b, Clock: cl.Move, MaxPayload: 10_000, Patience: patience, Trim: func(c schema.Cursor) { b.Trim(c) }}
	h.Reopen = func() store.Store {
		next := *b
		next.Memory = b.Memory.Reopen()
		if b = &next; b.reopened != nil {
			b.reopened(b)
		}
		running(t, b.Memory)
		return b
	}
	f := &failures{}
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		checks()[i].run(newCheck(f, h))
	}()
	if p := <-done; p != nil {
		t.Fatalf("%s panics: %v", name, p)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.texts
}

// The wrapper that bends nothing passes every check.
func TestUnbrokenPasses(t *testing.T) {
	t.Parallel()
	for _, ch := range checks() {
		if got := failuresOf(t, ch.name, nil, 0); len(got) > 0 {
			t.Errorf("%s: %q", ch.name, got)
		}
	}
}

// A store that is wrong in one point fails the suite.
func TestBrokenFails(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, f := range faults() {
		if names[f.name] {
			t.Errorf("two faults %q", f.name)
		}
		names[f.name] = true
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if got := failuresOf(t, f.check, f.bend, time.Second); len(got) == 0 {
				t.Errorf("%s did not notice", f.check)
			} else {
				t.Logf("%s", got[0])
			}
		})
	}
	t.Logf("%d faults", len(names))
}
