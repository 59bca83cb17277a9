package broker

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"rewindmq/store"
	"rewindmq/wire"
)

// bubble is a house without sockets, for the time of synctest: its connections are pipes.
type bubble struct {
	*house
	serving sync.WaitGroup
	cancel  context.CancelFunc
	ended   chan error // of Run
}

// openBubble starts a broker in the bubble of the test. The test calls close.
func openBubble(t *testing.T, s store.Store, o Options) *bubble {
	t.Helper()
	o.Node = "node-1"
	b, err := New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	u := &bubble{house: &house{t: t, b: b}, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	storeCtx, stopStore := context.WithCancel(context.Background())
	u.cancel = cancel
	stored := make(chan error, 1)
	go func() { stored <- s.Run(storeCtx) }()
	go func() {
		err := b.Run(ctx)
		stopStore()
		if err := <-stored; err != nil {
			t.Errorf("the store's end: %v", err)
		}
		u.ended <- err
	}()
	<-b.Started()
	return u
}

// close ends the broker, and waits for its connections.
func (u *bubble) close() {
	u.t.Helper()
	u.cancel()
	if err := <-u.ended; err != nil {
		u.t.Errorf("end: %v", err)
	}
	u.serving.Wait()
}

// patient is the broker's end of a pipe. Its other end does not notice CloseWrite, as a
// peer that never closes.
type patient struct{ net.Conn }

func (patient) CloseWrite() error { return nil }

// dial gives a connection. served is closed when Serve has returned.
func (u *bubble) dial(v wire.Version) (p *peer, served <-chan struct{}) {
	u.t.Helper()
	mine, theirs := net.Pipe()
	end := make(chan struct{})
	u.serving.Go(func() {
		defer close(end)
		u.b.Serve("pipe", patient{theirs})
	})
	p = &peer{t: u.t, nc: mine, v: v, r: wire.NewReader(mine, wire.ReaderOptions{FromServer: true, MaxPacketSize: 8 << 20})}
	p.r.SetVersion(v)
	return p, end
}

// connect asks for a session, and gives the answer.
func (u *bubble) connect(v wire.Version, c wire.Connect) (p *peer, code wire.ReasonCode, served <-chan struct{}) {
	u.t.Helper()
	p, served = u.dial(v)
	c.Version, c.RequestProblemInfo = v, true
	p.write(wire.AppendConnect(nil, &c))
	return p, expect[*wire.Connack](p).Code, served
}

// over tells whether a channel is closed, once nothing moves any more.
func over(c <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-c:
		return true
	default:
		return false
	}
}
