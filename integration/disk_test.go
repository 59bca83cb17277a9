package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// smallDisk mounts a file system of 64 MB and fills half of it.
func smallDisk(t *testing.T) (dir, ballast string) {
	t.Helper()
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", root).CombinedOutput(); err != nil {
		t.Skipf("F-28 needs a small file system of its own: mount: %v %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { _ = exec.Command("umount", root).Run() })
	ballast = filepath.Join(root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "data"), ballast
}

// filler publishes 1 KB messages on one connection until the broker takes no
// more, and goes on when it does again.
type filler struct {
	session
	ledger  *ledger
	qos     byte
	refused atomic.Bool
	acked   atomic.Int64
	next    int
}

// run publishes one message at a time. A refused one (v5) is sent again when room
// is closed; an unanswered one (v3) is waited for on the same connection. It ends
// after `more` messages behind that.
func (f *filler) run(ctx context.Context, addr string, room <-chan struct{}, more int) error {
	l, connack, err := connect(ctx, addr, f.session)
	if err != nil || connack.code != 0 {
		return fmt.Errorf("filler %s: %v %w", f.clientID, connack, err)
	}
	defer l.cut()
	f.ledger.publisherConnected(f.clientID)
	for left := more; left > 0; {
		k := key{stream{f.clientID, "full/" + f.clientID, f.qos}, f.next + 1}
		f.ledger.sent(k)
		code, err := f.publish(l, k)
		switch {
		case err != nil:
			return fmt.Errorf("filler %s: %w", f.clientID, err)
		case code >= 0x80:
			f.refused.Store(true)
			select {
			case <-room:
			case <-ctx.Done():
				return ctx.Err()
			}
			f.ledger.publisherConnected(f.clientID) // a new run: the refused one again
			continue
		}
		f.next++
		f.acked.Add(1)
		select {
		case <-room:
			left--
		default:
		}
	}
	return l.write([]byte{kindDisconnect << 4, 0})
}

// publish does one handshake and gives the code of PUBACK or PUBREC.
func (f *filler) publish(l *link, k key) (byte, error) {
	id := uint16(f.next%60000 + 1)
	m := message{topic: k.topic, payload: k.payload(1000), qos: k.qos}
	if err := l.write(m.packet(l.version, id, false)); err != nil {
		return 0, err
	}
	for {
		p, err := l.read(2 * time.Minute)
		switch {
		case err != nil:
			return 0, err
		case p.id != id:
			return 0, fmt.Errorf("unexpected %v", p)
		case p.code >= 0x80:
			return p.code, nil
		case p.kind == kindPuback:
			f.ledger.acknowledged(k)
			return 0, nil
		case p.kind == kindPubrec:
			f.ledger.acknowledged(k)
			if err := l.write(ackPacket(kindPubrel, id)); err != nil {
				return 0, err
			}
		case p.kind == kindPubcomp:
			return 0, nil
		default:
			return 0, fmt.Errorf("unexpected %v", p)
		}
	}
}

// The disk fills up: acknowledgements stop, connections stay, readiness says why,
// and with room it goes on without a restart.
func TestF28(t *testing.T) {
	forEachStore(t, func(t *testing.T, s backend) {
		dir, ballast := smallDisk(t)
		b := start(t, s, launch{dir: dir})
		if b.place.dir == "" {
			t.Skip("the store has no data directory")
		}
		c := newCrowd(t, b, seeded(t))
		var subs []*subscriber
		for i := range 2 {
			subs = append(subs, &subscriber{
				session: session{version: []byte{v5, v311}[i], clientID: fmt.Sprintf("sub-%d", i), expiry: 600},
				wants:   []want{{"full/#", 2}}, hold: 10,
			})
		}
		c.subscribe(subs...)
		room := make(chan struct{})
		var fillers []*filler
		var group sync.WaitGroup
		for i := range 20 {
			f := &filler{
				session: session{version: []byte{v5, v311}[i%2], clientID: fmt.Sprintf("f%02d", i), clean: true},
				ledger:  c.ledger, qos: byte(1 + i/2%2),
			}
			fillers = append(fillers, f)
			group.Go(func() { c.failed(f.run(c.ctx, b.addr, room, 20)) })
		}
		idle := b.open(transient(v5, "idle"))
		b.within(3*time.Minute, "every MQTT 5 publisher is refused", func() bool {
			for _, f := range fillers {
				if f.version == v5 && !f.refused.Load() {
					return false
				}
			}
			return true
		})
		if status, text := b.get("/readyz"); status == http.StatusOK || !strings.Contains(text, "space") {
			t.Errorf("/readyz: %d %q, want a reason", status, text)
		}
		if status := b.status("/livez"); status != http.StatusOK {
			t.Errorf("/livez: %d", status)
		}
		idle.ping() // connections stay
		full := c.ledger.acknowledgedCount()
		t.Logf("full after %d messages of 1 KB", full)
		for _, version := range []byte{v311, v5} { // and new ones are taken, or refused in order
			l, p, err := connect(c.ctx, b.addr, transient(version, "late"))
			t.Logf("a new v%d connection on the full disk: %v, %v", version, p, err)
			if err == nil {
				l.cut()
			}
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		if err := b.awaitReady(); err != nil {
			t.Errorf("/readyz after room was made: %v", err)
		}
		close(room)
		c.await("fillers", &group)
		idle.ping()
		if n := c.ledger.acknowledgedCount() - full; n < 20*19 {
			t.Errorf("%d more after room was made", n)
		}
		c.finish()
		c.auditNow()
	})
}
