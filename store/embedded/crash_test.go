package embedded

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/schema"
	"rewindmq/store"
)

// ledger is what clients of a log know: what was answered.
type ledger struct {
	mu       sync.Mutex
	stored   map[schema.ID]*schema.Message // acknowledged
	sent     map[schema.ID]bool            // appended, answered or not
	yielded  uint64                        // the last n that a tail gave
	sessions map[string]*known
}

// known is what is known of one session.
type known struct {
	owner   schema.Owner
	seq     uint64 // last recorded
	saved   uint64
	inbound map[uint16]schema.ID
	filters map[string]bool
	// doubt: a call was under way when the log was killed.
	doubt bool
}

func newLedger() *ledger {
	return &ledger{stored: map[schema.ID]*schema.Message{}, sent: map[schema.ID]bool{}, sessions: map[string]*known{}}
}

// load drives one log with publishers, a tail and sessions until it is killed,
// or for rounds.
func (g *ledger) load(r *rig, seed uint64, rounds int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all sync.WaitGroup
	for k := range 3 {
		all.Go(func() { g.publish(ctx, r, rand.New(rand.NewPCG(seed, uint64(k))), k, rounds) })
	}
	for k := range 3 {
		all.Go(func() { g.session(ctx, r, rand.New(rand.NewPCG(seed, uint64(10+k))), fmt.Sprintf("c%d", k), rounds) })
	}
	tail, err := r.Tail(ctx, schema.At(1, r.headN()))
	if err != nil {
		return
	}
	tailed := make(chan struct{})
	go func() {
		defer close(tailed)
		for {
			events, err := tail.Next(ctx)
			if err != nil {
				return
			}
			g.mu.Lock()
			g.yielded = max(g.yielded, events[len(events)-1].Message.Mark.N)
			g.mu.Unlock()
		}
	}()
	all.Wait()
	cancel()
	<-tailed
	_ = tail.Close()
}

func (g *ledger) publish(ctx context.Context, r *rig, rng *rand.Rand, k, rounds int) {
	p := &store.Publisher{Owner: schema.Owner{ClientID: fmt.Sprintf("p%d", k), SID: 1}}
	for range rounds {
		var msgs []*schema.Message
		for range 1 + rng.IntN(20) {
			m := r.message(fmt.Sprintf("t/%d", rng.IntN(5)), fmt.Sprintf("%0*d", 1+rng.IntN(600), rng.IntN(1000)), uint8(rng.IntN(3)))
			m.ClientID = p.ClientID
			msgs = append(msgs, m)
		}
		g.mu.Lock()
		for _, m := range msgs {
			g.sent[m.ID] = true
		}
		g.mu.Unlock()
		for i, a := range <-r.submit(ctx, p, msgs...) {
			if a.Outcome != store.Stored {
				return
			}
			c := *msgs[i]
			c.Mark = a.Mark
			g.mu.Lock()
			g.stored[c.ID] = &c
			g.mu.Unlock()
		}
	}
}

// session records, saves, subscribes and reconnects.
func (g *ledger) session(ctx context.Context, r *rig, rng *rand.Rand, client string, rounds int) {
	g.mu.Lock()
	k := g.sessions[client]
	if k == nil {
		k = &known{inbound: map[uint16]schema.ID{}, filters: map[string]bool{}}
		g.sessions[client] = k
	}
	g.mu.Unlock()
	got := r.Claim(ctx, []store.Claim{{ClientID: client, Expiry: 1000}})[0]
	if got.Err != nil {
		k.doubt = true
		return
	}
	if k.owner.SID != 0 && (!got.Present || got.Epoch <= k.owner.Epoch) {
		r.t.Errorf("%s: claimed %+v after %+v", client, got.Owner, k.owner)
	}
	k.owner, k.seq = got.Owner, got.Cursor.Seq
	for range rounds {
		if err := g.step(ctx, r, rng, k); err != nil {
			k.doubt = true
			return
		}
	}
}

func (g *ledger) step(ctx context.Context, r *rig, rng *rand.Rand, k *known) error {
	o := k.owner
	write := func(w store.Write) error { return r.Write(ctx, []store.Write{w})[0] }
	packet := uint16(1 + rng.IntN(8))
	switch rng.IntN(6) {
	case 0, 1:
		d := schema.Delivery{
			ID: r.ids.Next(time.Now()), Owner: o, Seq: k.seq + 1, Topic: "t", MessageID: schema.ID{1},
			Mark: schema.Mark{Lane: 1, N: k.seq + 1}, PacketID: packet, QoS: 1 + uint8(rng.IntN(2)),
		}
		if err := r.Record(ctx, []schema.Delivery{d})[0]; err != nil {
			return err
		}
		k.seq++
	case 2:
		if err := write(store.SaveCursor{Owner: o, Cursor: schema.SessionCursor{After: schema.At(1, k.seq), Seq: k.seq}}); err != nil {
			return err
		}
		k.saved = k.seq
	case 3:
		id := r.ids.Next(time.Now())
		if err := write(store.PutInbound{Owner: o, Inbound: schema.Inbound{PacketID: packet, MessageID: id}}); err != nil {
			return err
		}
		k.inbound[packet] = id
	case 4:
		if err := write(store.DeleteInbound{Owner: o, PacketID: packet}); err != nil {
			return err
		}
		delete(k.inbound, packet)
	case 5:
		f := fmt.Sprintf("f/%d", rng.IntN(6))
		if k.filters[f] {
			if err := write(store.DeleteSubscriptions{Owner: o, Filters: []string{f}}); err != nil {
				return err
			}
			delete(k.filters, f)
			return nil
		}
		if err := write(store.PutSubscriptions{Owner: o, Subscriptions: []schema.Subscription{{ID: schema.ID{1}, Filter: f}}}); err != nil {
			return err
		}
		k.filters[f] = true
	}
	return nil
}

// lost tells what of the ledger a log does not have.
func (g *ledger) lost(r *rig) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var lost []string
	say := func(format string, args ...any) { lost = append(lost, fmt.Sprintf(format, args...)) }
	if h := r.headN(); h < g.yielded {
		say("the head is %d, a tail had yielded %d", h, g.yielded)
	}
	byID := map[schema.ID]*schema.Message{}
	byTopic := map[string][]string{}
	msgs, err := r.load(1, r.headN(), 1<<30, nil)
	for len(msgs) > 0 && err == nil {
		for _, m := range msgs {
			if byID[m.ID] != nil {
				say("%v is there twice", m.ID)
			}
			if !g.sent[m.ID] {
				say("%v was never appended", m.ID)
			}
			byID[m.ID] = m
			byTopic[m.Topic] = append(byTopic[m.Topic], string(m.Payload))
		}
		msgs, err = r.load(msgs[len(msgs)-1].Mark.N+1, r.headN(), 1<<30, nil)
	}
	if err != nil {
		say("reading: %v", err)
	}
	for id, m := range g.stored {
		if got := byID[id]; got == nil || got.Mark != m.Mark || string(got.Payload) != string(m.Payload) {
			say("%v, acknowledged at %v, is %+v", id, m.Mark, got)
		}
	}
	for topic, want := range byTopic { // the index agrees with the messages
		if got, _, err := r.tryRead(0, 1<<40, topic); err != nil || !slices.Equal(got, want) {
			say("%s: %d by index, %d by scan, %v", topic, len(got), len(want), err)
		}
	}
	return append(lost, g.lostSessions(r)...)
}

func (g *ledger) lostSessions(r *rig) []string {
	var lost []string
	for client, k := range g.sessions {
		if k.owner.SID == 0 {
			continue
		}
		got := r.Claim(context.Background(), []store.Claim{{ClientID: client, Expiry: 1000}})[0]
		if got.Err != nil || !got.Present || got.SID != k.owner.SID {
			lost = append(lost, fmt.Sprintf("%s: %+v, want sid %d", client, got, k.owner.SID))
			continue
		}
		if s := got.Cursor.Seq; s < k.seq || s > k.seq+1 || s > k.seq && !k.doubt {
			lost = append(lost, fmt.Sprintf("%s: recovered seq %d, recorded %d", client, s, k.seq))
		}
		inbound, filters := map[uint16]schema.ID{}, map[string]bool{}
		for _, i := range got.Cursor.Inbound {
			inbound[i.PacketID] = i.MessageID
		}
		for _, s := range got.Subscriptions {
			filters[s.Filter] = true
		}
		if !k.doubt && (!maps.Equal(inbound, k.inbound) || !maps.Equal(filters, k.filters)) {
			lost = append(lost, fmt.Sprintf("%s: inbound %v, want %v; filters %v, want %v", client, inbound, k.inbound, filters, k.filters))
		}
		k.owner, k.seq, k.inbound, k.filters, k.doubt = got.Owner, got.Cursor.Seq, inbound, filters, false
		_ = r.Write(context.Background(), []store.Write{store.Release{Owner: got.Owner}})
	}
	return lost
}

// Power loss at any moment, with 0, 50 or 90 % of what was not synced: all that
// was answered is there, the index agrees, no number is given again, sessions are
// as their clients know them.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	seeds := 12
	if testing.Short() || raceEnabled {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(seed), 99))
			small := func(string) (uint64, uint64, error) { return 1 << 40, 64 << 20, nil } // small memtables: they are flushed
			r := start(t, Options{FS: vfs.NewCrashableMem(), FreeSpace: small})
			g := newLedger()
			for crash := range 4 {
				ctx, stopped := context.WithCancel(context.Background())
				go func() {
					defer stopped()
					g.load(r, uint64(seed*100+crash), 1000)
				}()
				r.reach(ctx, r.headN()+50+rng.Uint64N(2000))
				next := r.crash([]int{0, 50, 90}[rng.IntN(3)], uint64(seed))
				<-ctx.Done()
				if lost := g.lost(next); len(lost) > 0 {
					t.Fatalf("crash %d: %d lost, first: %s", crash, len(lost), lost[0])
				}
				r = next
			}
		})
	}
}

// reach waits until the log has come to n, or ctx ends.
func (r *rig) reach(ctx context.Context, n uint64) {
	tail, err := r.Tail(ctx, schema.At(1, r.headN()))
	if err != nil {
		return
	}
	defer tail.Close()
	for r.headN() < n {
		if _, err := tail.Next(ctx); err != nil {
			return
		}
	}
}

// The negative control: the same harness on a log that does not sync sees loss.
func TestPowerLossIsSeenWithoutSync(t *testing.T) {
	t.Parallel()
	r := start(t, Options{FS: vfs.NewCrashableMem(), noSync: true})
	g := newLedger()
	g.load(r, 1, 30)
	r.kill()
	o := r.o
	o.FS = r.o.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	l, err := Open(o)
	if errors.Is(err, store.ErrCorrupt) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	next := run(t, o, l)
	if lost := g.lost(next); len(lost) < 100 {
		t.Errorf("%d of %d messages are missed after a power loss without syncs", len(lost), len(g.stored))
	}
}
