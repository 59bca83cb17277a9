package integration

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// valve stands between a broker and one member, as proxy does, and tells the
// connections of the broker's change streams from the others: by the name under
// which they introduce themselves. Each kind can be held (nothing passes, both ends
// stay open, nothing is lost) and shut (cut, and refused from then on). Safe for
// concurrent use.
type valve struct {
	l     net.Listener
	to    string
	all   sync.WaitGroup
	mu    sync.Mutex
	turns sync.Cond // of mu
	open  map[net.Conn]kindOfLink
	held  [2]bool
	cut   [2]bool
	gone  bool
}

type kindOfLink int

const (
	plainLinks  kindOfLink = iota
	streamLinks            // of the client that has the change streams
)

func valveTo(t *testing.T, to string) *valve {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &valve{l: l, to: to, open: map[net.Conn]kindOfLink{}}
	v.turns.L = &v.mu
	v.all.Go(v.accept)
	t.Cleanup(func() {
		_ = l.Close()
		v.mu.Lock()
		v.gone = true
		for c := range v.open {
			_ = c.Close()
		}
		v.turns.Broadcast()
		v.mu.Unlock()
		v.all.Wait()
	})
	return v
}

func (v *valve) uri() string { return "mongodb://" + v.l.Addr().String() + "/?directConnection=true" }

// hold keeps back what connections of these kinds send and are sent, or lets it
// pass.
func (v *valve) hold(yes bool, kinds ...kindOfLink) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range kinds {
		v.held[k] = yes
	}
	v.turns.Broadcast()
}

// shut cuts the connections of these kinds and takes no more, or takes them again.
func (v *valve) shut(yes bool, kinds ...kindOfLink) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range kinds {
		v.cut[k] = yes
		if !yes {
			continue
		}
		for c, of := range v.open {
			if of == k {
				_ = c.Close()
			}
		}
	}
	v.turns.Broadcast()
}

func (v *valve) accept() {
	for {
		down, err := v.l.Accept()
		if err != nil {
			return
		}
		v.mu.Lock()
		v.open[down] = plainLinks // until it has said who it is
		v.all.Go(func() { v.serve(down) })
		v.mu.Unlock()
	}
}

// serve reads the greeting, which has the client's name, and joins the ends.
func (v *valve) serve(down net.Conn) {
	defer v.close(down)
	first := make([]byte, 64<<10)
	n, err := down.Read(first)
	if err != nil {
		return
	}
	kind := plainLinks
	if bytes.Contains(first[:n], []byte(" tail\x00")) {
		kind = streamLinks
	}
	up, err := net.Dial("tcp", v.to)
	if err != nil {
		return
	}
	defer v.close(up)
	v.mu.Lock()
	if v.gone || v.cut[kind] {
		v.mu.Unlock()
		return
	}
	v.open[down], v.open[up] = kind, kind
	v.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		v.copy(down, up, kind, nil)
		_ = down.Close()
	})
	v.copy(up, down, kind, first[:n])
	_ = up.Close()
	back.Wait()
}

// copy moves bytes until an end closes; begin goes first.
func (v *valve) copy(to, from net.Conn, kind kindOfLink, begin []byte) {
	buf := make([]byte, 64<<10)
	for {
		if len(begin) > 0 {
			v.mu.Lock()
			for v.held[kind] && !v.cut[kind] && !v.gone {
				v.turns.Wait()
			}
			v.mu.Unlock()
			if _, err := to.Write(begin); err != nil {
				return
			}
		}
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		begin = buf[:n]
	}
}

func (v *valve) close(c net.Conn) {
	_ = c.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.open, c)
}
