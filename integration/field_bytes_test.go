package integration

import (
	"context"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// openWS connects over WebSocket without sending anything.
func (b *broker) openWS() *websocket.Conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "ws://"+b.ws+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		b.t.Fatalf("WebSocket: %v", err)
	}
	if got := resp.Header.Get("Sec-Websocket-Protocol"); got != "mqtt" { // [MQTT-6.0.0-4]
		b.t.Errorf("WebSocket: subprotocol %q, want mqtt", got)
	}
	b.t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

// frames sends each part as one binary message.
func (b *broker) frames(c *websocket.Conn, parts ...[]byte) {
	b.t.Helper()
	for _, part := range parts {
		if err := c.Write(b.t.Context(), websocket.MessageBinary, part); err != nil {
			b.t.Fatalf("WebSocket: %v", err)
		}
	}
}

// Packets are found wherever the bytes are cut [MQTT-6.0.0-1, 6.0.0-2; 3.1.1:
// 3.1.4-5, 3.1.3-8].
func TestF22(t *testing.T) {
	const flow = "101200044d5154540402003c00066465762d3232820a000100056632322f2301320a00056632322f61000278c000"
	// CONNACK first, then the three answers and the message. (PUBLISH follows
	// SUBSCRIBE on one connection: the subscription has to be there for it.)
	answers := func(t *testing.T, c *client) {
		t.Helper()
		c.accepted()
		kinds := map[byte]int{}
		for range 4 {
			p, err := c.read(5 * time.Second)
			if err != nil {
				t.Fatalf("got packets by type %v, then %v; want one each of 3, 4, 9, 13", kinds, err)
			}
			kinds[p.kind]++
			switch {
			case p.kind == kindPuback && p.id != 2, p.kind == kindPublish && (p.topic != "f22/a" || string(p.payload) != "x"):
				t.Errorf("got %v", p)
			}
		}
		for _, kind := range []byte{kindSuback, kindPuback, kindPingresp, kindPublish} {
			if kinds[kind] != 1 {
				t.Errorf("got packets by type %v, want one each of 3, 4, 9, 13", kinds)
			}
		}
	}
	forEachStore(t, func(t *testing.T, s backend) {
		b := start(t, s)
		t.Run("a", func(t *testing.T) {
			for range rounds(250) {
				c := b.dial(v311, "dev-22")
				c.sendHex(flow)
				answers(t, c)
				c.disconnect()
			}
		})
		t.Run("a, the broker answers late", func(t *testing.T) {
			b.pause()
			c := b.dial(v311, "dev-22")
			c.sendHex(flow)
			elapse(t, 500*time.Millisecond)
			b.resume()
			answers(t, c)
			c.disconnect()
		})
		t.Run("b", func(t *testing.T) {
			c := b.dial(v311, "dev-22")
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for _, one := range fromHex(flow) {
				<-tick.C
				c.send([]byte{one})
			}
			answers(t, c)
			c.disconnect()
		})
		t.Run("c", func(t *testing.T) { websocketFrames(t, b) })
		t.Run("d", func(t *testing.T) {
			w := b.open(transient(v311, "watch"))
			w.subscribe(want{"f22/no", 1})
			c := b.dial(v311, "empty")
			c.sendHex("100c00044d5154540400003c0000" + "320b00066632322f6e6f000279")
			if rest := c.closed(); len(rest) != 1 || rest[0].kind != kindConnack || rest[0].code != 2 || rest[0].present {
				t.Errorf("got %v, want CONNACK 2 and the end", rest)
			}
			b.publishTexts("f22/no", 1, "end")
			w.settle(w.takePayload("end"))
		})
		b.stop()
		for _, m := range b.place.audit(t).messages {
			if m.topic == "f22/no" && string(m.payload) != "end" {
				t.Errorf("%q was processed behind a refused CONNECT", m.payload)
			}
		}
	})
}

func websocketFrames(t *testing.T, b *broker) {
	w := b.open(transient(v311, "watch"))
	w.subscribe(want{"f22/#", 0})
	ws := b.openWS()
	hello := transient(v311, "ws").packet()
	b.frames(ws, hello[:1], hello[1:])
	if kind, data, err := ws.Read(t.Context()); err != nil || kind != websocket.MessageBinary || string(data) != string(fromHex("20020000")) {
		t.Fatalf("WebSocket: got %v %x %v, want CONNACK in a binary frame", kind, data, err)
	}
	b.frames(ws, fromHex("300800056632322f7731300800056632322f7732300800056632322f7733"))
	for _, payload := range []string{"1", "2", "3"} {
		if p := w.take(); p.topic != "f22/w" || string(p.payload) != payload {
			t.Errorf("got %v, want %s", p, payload)
		}
	}
	text := b.openWS()
	if err := text.Write(t.Context(), websocket.MessageText, hello); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, data, err := text.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("a text frame was answered with %x, %v", data, err)
	}
	w.disconnect()
}
