package broker

import (
	"testing"
	"testing/synctest"
	"time"

	"rewindmq/store/storetest"
	"rewindmq/wire"
)

// A peer that does not close its side holds back nothing of its session: its will comes,
// and its client id is free, while the broker still waits for it.
func TestSessionEndsBeforeItsPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := openBubble(t, storetest.NewMemory(storetest.Options{Lanes: 1}), Options{})
		defer u.close()
		sub, _, _ := u.connect(wire.V5, wire.Connect{ClientID: "sub", CleanStart: true})
		sub.subscribe("w", 1)
		c := wire.Connect{ClientID: "dev", CleanStart: true, Will: &wire.Will{Topic: "w", Payload: []byte("gone"), QoS: 1}}
		dev, _, served := u.connect(wire.V5, c)
		begin := time.Now()
		dev.write(wire.AppendConnect(nil, &wire.Connect{Version: wire.V5, ClientID: "dev"})) // a protocol error
		expect[*wire.Disconnect](dev)
		sub.receive("gone")
		if took := time.Since(begin); took >= flushTimeout/2 {
			t.Errorf("the will came after %v", took)
		}
		if over(served) {
			t.Error("the broker did not wait for its peer")
		}
		_ = dev.nc.Close()
		<-served
	})
}
