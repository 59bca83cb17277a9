package lane

import (
	"testing"
	"time"

	"rewindmq/schema"
	"rewindmq/store"
)

// begun gives a writer with a lane, and what it wants to be done with the Appends.
func begun(o Options) *Writer {
	o.Batch, o.BatchBytes, o.NewID = max(o.Batch, 500), 1<<20, func() schema.ID { return schema.ID{1} }
	if o.Hold == 0 {
		o.Hold, o.MaxPayload, o.MaxSize = time.Minute, 1<<20, 2<<20
	}
	w := NewWriter(o)
	w.Opened(NewID(1, 7), schema.ID{9}, time.Unix(0, 0))
	return w
}

func appendOf(p *store.Publisher, n int) *Pending {
	out := &Pending{Pub: p, Queued: time.Unix(0, 0), Context: &simContext{}, Answers: make([]store.Appended, n)}
	for i := range n {
		out.Msgs = append(out.Msgs, &schema.Message{ID: schema.ID{2, byte(i)}, Topic: "t"})
	}
	return out
}

// A batch in doubt is looked up, what stands there is stored, and the rest is
// numbered from behind it.
func TestWriterWalk(t *testing.T) {
	t.Parallel()
	w, now := begun(Options{}), Env{Now: time.Unix(1, 0), Node: schema.ID{9}}
	p := appendOf(&store.Publisher{}, 3)
	if a := w.Next(now); a.Do != Wait {
		t.Fatalf("%+v", a)
	}
	w.Offer(p)
	if a := w.Next(now); a.Do != Insert || a.N != 1 || w.Len() != 3 {
		t.Fatalf("%+v", a)
	}
	w.Wrote(Verdict{Stored: 1, Doubt: true}, 0)
	if a := w.Next(now); a.Do != Look || a.N != 2 {
		t.Fatalf("%+v", a)
	}
	if w.Doubt() != now.Now || len(w.Answered()) > 0 {
		t.Fatalf("in doubt since %v", w.Doubt())
	}
	w.Looked([]Doc{
		{ID: p.Msgs[1].ID, Lane: w.Lane(), N: 2, TS: 5, Counts: true},
		{ID: schema.ID{3}, Lane: w.Lane(), N: 3, Stop: Stopper, Counts: true},
	})
	if a := w.Next(now); a.Do != Insert || a.N != 4 || w.Len() != 1 || w.Message(0) != p.Msgs[2] {
		t.Fatalf("%+v, %d", a, w.Len())
	}
	w.Wrote(Verdict{Stored: 1}, 8)
	if a := w.Next(now); a.Do != Wait || !w.Doubt().IsZero() {
		t.Fatalf("%+v, in doubt since %v", a, w.Doubt())
	}
	out := w.Answered()
	if len(out) != 1 || out[0] != p {
		t.Fatalf("%v", out)
	}
	for i, n := range []uint64{1, 2, 4} {
		if a := p.Answers[i]; a.Outcome != store.Stored || a.Mark != (schema.Mark{Lane: 1, N: n}) {
			t.Errorf("%d: %+v", i, a)
		}
	}
}

// When append.hold is over, a stopper decides: in doubt it is the answer, and what
// stands there in the end settles the lane.
func TestWriterGivesUp(t *testing.T) {
	t.Parallel()
	w, e := begun(Options{}), Env{Now: time.Unix(1, 0), Node: schema.ID{9}}
	pub := &store.Publisher{}
	p := appendOf(pub, 1)
	w.Offer(p)
	w.Next(e)
	w.Wrote(Verdict{Doubt: true}, 0)
	w.Next(e)
	w.Looked(nil)
	if a := w.Next(e); a.Do != Rest || a.Rest != firstRest {
		t.Fatalf("%+v", a)
	}
	e.Now = e.Now.Add(2 * time.Minute)
	a := w.Next(e)
	if a.Do != Put || a.N != 1 || a.Kind != Stopper || a.ID.IsZero() {
		t.Fatalf("%+v", a)
	}
	w.Stopped(Verdict{Doubt: true})
	if out := w.Answered(); len(out) != 1 || p.Answers[0].Outcome != store.InDoubt || !pub.Failed() {
		t.Fatalf("%v %+v", out, p.Answers)
	}
	w.Next(e)
	w.Looked([]Doc{{ID: a.ID, Lane: w.Lane(), N: 1, Stop: Stopper, Counts: true}})
	q := appendOf(&store.Publisher{}, 1)
	q.Queued = e.Now
	w.Offer(q)
	if a := w.Next(e); a.Do != Insert || a.N != 2 || w.Len() != 1 || w.Message(0) != q.Msgs[0] {
		t.Fatalf("%+v", a)
	}
}

// L7: nothing is sent behind a document that retention may take while that is under way:
// the lane is retired, and what waits goes into another.
func TestWriterLeavesALaneThatMayBeEmptied(t *testing.T) {
	t.Parallel()
	w, e := begun(Options{Fresh: time.Minute}), Env{Now: time.Unix(0, 0), Node: schema.ID{9}}
	w.Opened(NewID(1, 7), schema.ID{9}, e.Now)
	append1 := func() {
		p := appendOf(&store.Publisher{}, 1)
		p.Queued = e.Now
		w.Offer(p)
	}
	for range 3 { // each is behind one that was just sent
		e.Now = e.Now.Add(time.Minute)
		append1()
		if a := w.Next(e); a.Do != Insert || a.Lane.Number() != 1 {
			t.Fatalf("%+v", a)
		}
		w.Wrote(Verdict{Stored: 1}, 0)
		if a := w.Next(e); a.Do != Wait {
			t.Fatalf("%+v", a)
		}
	}
	if id, n := w.Last(); id != NewID(1, 7) || n != 3 {
		t.Errorf("%v, %d", id, n)
	}
	e.Now = e.Now.Add(time.Minute + 1)
	append1()
	if a := w.Next(e); a.Do != Retire || a.Lane != NewID(1, 7) {
		t.Fatalf("%+v", a)
	}
	if a := w.Next(e); a.Do != Open {
		t.Fatalf("%+v", a)
	}
	w.Opened(NewID(2, 8), schema.ID{9}, e.Now)
	if a := w.Next(e); a.Do != Insert || a.Lane != NewID(2, 8) || a.N != 1 {
		t.Fatalf("%+v", a)
	}
}

// BenchmarkWriter is what the decisions cost for each message: 50 publishers, one
// message each, in one batch.
func BenchmarkWriter(b *testing.B) {
	w, e := begun(Options{}), Env{Now: time.Unix(1, 0), Node: schema.ID{9}}
	list := make([]*Pending, 50)
	for i := range list {
		list[i] = appendOf(&store.Publisher{}, 1)
	}
	b.ReportAllocs()
	for range b.N/50 + 1 {
		for _, p := range list {
			p.taken, p.settled = 0, 0
			w.Offer(p)
		}
		if w.Next(e).Do != Insert {
			b.Fatal("no batch")
		}
		w.Wrote(Verdict{Stored: w.Len()}, 0)
		w.Answered()
		w.Next(e)
	}
}
