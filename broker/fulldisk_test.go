package broker

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rewindmq/store/embedded"
	"rewindmq/wire"
)

// disk is a log whose free space the test sets.
type disk struct {
	*house
	free atomic.Uint64
}

const diskReserve = 1 << 30

func openDisk(t *testing.T, o Options) *disk {
	t.Helper()
	d := &disk{}
	d.free.Store(4 * diskReserve)
	l, err := embedded.Open(embedded.Options{
		Dir: "data", FS: vfs.NewMem(), Node: "node-1", Reserve: diskReserve,
		FreeSpace: func(string) (uint64, uint64, error) { return d.free.Load(), 8 * diskReserve, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.house = openHouse(t, l, o)
	return d
}

// fill leaves so much space, and writes until the log has noticed.
func (d *disk) fill(free uint64) {
	d.t.Helper()
	d.free.Store(free)
	p := d.clean(wire.V5, "filler")
	m := wire.AppendPublish(nil, p.v, &wire.Publish{Topic: "fill", Payload: make([]byte, 1_000_000), QoS: 1, PacketID: 1})
	for range 50 {
		p.write(m)
		if expect[*wire.Ack](p).Code == wire.QuotaExceeded {
			return
		}
	}
	d.t.Fatal("nothing is refused")
}

// TestStopBelowHalfOfReserve: where no session can be written, the broker ends all the
// same, after the time that sessions have to let go.
func TestStopBelowHalfOfReserve(t *testing.T) {
	t.Parallel()
	d := openDisk(t, Options{DrainTimeout: 100 * time.Millisecond})
	d.persistent(wire.V5, "sub")
	held, _ := d.persistent(wire.V311, "held")
	d.fill(diskReserve / 4)
	held.send("t", "waits", 1, 1)
	held.ping()
	d.stop() // it tells when the broker does not end
}

// TestHeldPublisherReturns: a 3.1.1 client has messages waiting for room, its link
// breaks, and it comes back: it is served at once, as others are. It sends again what was
// not acknowledged, and this is stored in order, and once where it was refused before.
func TestHeldPublisherReturns(t *testing.T) {
	t.Parallel()
	d := openDisk(t, Options{})
	sub := d.clean(wire.V5, "sub")
	sub.subscribe("t", 1)
	dev, _ := d.persistent(wire.V311, "dev")
	dev.publish("t", "0", 1, 9)
	sub.receive("0")
	d.fill(diskReserve * 9 / 10)
	publish := func(p *peer) {
		p.send("t", "1", 1, 1)
		p.send("t", "2", 2, 2)
		p.send("t", "3", 1, 3)
		p.ping()
	}
	publish(dev)
	dev.cut()
	d.until("see the link break", func() bool {
		cl := d.b.roster.get("dev")
		return cl == nil || cl.c.closing()
	})
	dev, present := d.persistent(wire.V311, "dev") // within the patience of a read
	if !present {
		t.Error("session not present")
	}
	publish(dev)
	d.free.Store(4 * diskReserve)
	dev.ack(wire.PUBACK, 1)
	dev.ack(wire.PUBREC, 2)
	dev.ack(wire.PUBACK, 3)
	for _, want := range []string{"1", "2", "3"} {
		sub.receive(want)
	}
	sub.ping()
}
