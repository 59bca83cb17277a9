package bench

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkMongoLive is one stream of messages at a fixed rate for ten seconds,
// from ten clients on one broker to one clean subscriber of all on the same. It
// reports the lag from the write of PUBLISH to its arrival, in the first third and
// in the last: growth is the ratio of their medians. Targets: no growth; at
// 10,000/s p99 under 20 times the p50 of an idle system. Beside it, in turns: the same
// documents and records at the same rate through a plain program, until their events
// come from a plain change stream.
func BenchmarkMongoLive(b *testing.B) {
	for _, c := range []struct {
		rate int
		args []string
	}{
		{10_000, nil},
		{25_000, []string{"--set", "store.records=window"}},
	} {
		b.Run(fmt.Sprint("rate=", c.rate), func(b *testing.B) {
			d := newDatabase(b, 1)
			addr := d.broker(c.args...)
			plain := &plainProgram{b: b, messages: d.like("message"), records: d.like("publishedMessage")}
			r := rounds{}
			for b.Loop() {
				lag := live(b, addr, c.rate, 10*time.Second)
				third := len(lag) / 3
				first, last := slices.Clone(lag[:third]), slices.Clone(lag[2*third:])
				slices.Sort(first)
				slices.Sort(last)
				slices.Sort(lag)
				r.add("p50-ms", quantile(lag, 0.5))
				r.add("p99-ms", quantile(lag, 0.99))
				r.add("first-p50-ms", quantile(first, 0.5))
				r.add("last-p50-ms", quantile(last, 0.5))
				r.add("growth", quantile(last, 0.5)/quantile(first, 0.5))
				if raw := plain.live(c.rate, 10*time.Second); raw != nil {
					slices.Sort(raw)
					r.add("plain-p50-ms", quantile(raw, 0.5))
					r.add("plain-p99-ms", quantile(raw, 0.99))
				}
			}
			r.report(b)
			b.ReportMetric(idleMedian(b, addr), "idle-p50-ms")
		})
	}
}

// idleMedian is the median from PUBLISH to PUBLISH with nothing else going on. The first
// seconds do not count: the broker is still on its way back from the load.
func idleMedian(b *testing.B, addr string) float64 {
	pub, sub := connect(b, addr, "idle-pub", true), connect(b, addr, "idle-sub", true)
	sub.subscribe("idle", 1)
	var took []time.Duration
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		if time.Since(start) < 3*time.Second {
			took = took[:0]
		}
		began := time.Now()
		pub.write(publish("idle", 1, []byte(reading)))
		id, _, err := delivered(sub.read())
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		sub.write(puback(nil, id))
		pub.acks()
	}
	slices.Sort(took)
	return quantile(took, 0.5)
}

const liveClients = 10

// live runs the stream and gives the lag of each message in the order of arrival.
func live(b *testing.B, addr string, rate int, during time.Duration) []time.Duration {
	sub := connect(b, addr, "live-sub", true)
	sub.subscribe("live/#", 1)
	total := rate * int(during/time.Second)
	lag := make([]time.Duration, 0, total)
	epoch := time.Now()
	var all sync.WaitGroup
	all.Go(func() {
		var acks []byte
		for range total {
			id, payload, err := delivered(sub.read())
			if err != nil {
				b.Error(err)
				return
			}
			sent, _, _ := strings.Cut(string(payload), ",")
			ns, _ := strconv.ParseInt(sent, 10, 64)
			lag = append(lag, time.Since(epoch)-time.Duration(ns))
			acks = puback(acks, id)
			if sub.in.Buffered() == 0 || len(acks) > 1000 {
				sub.write(acks)
				acks = acks[:0]
			}
		}
	})
	for i := range liveClients {
		p := connect(b, addr, fmt.Sprint("live", i), true)
		all.Go(func() { p.pace(epoch, i, rate/liveClients, total/liveClients) })
	}
	all.Wait()
	sub.disconnect()
	return lag
}

// pace publishes at a fixed rate, whatever the broker does, as far as the window of
// 1,000 lets it; the payload begins with the time of its write, since epoch.
func (p *peer) pace(epoch time.Time, i, rate, n int) {
	acked := make(chan int, 1<<16)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(acked)
		for left := n; left > 0; {
			k := p.acks()
			if k < 0 {
				return
			}
			left -= k
			acked <- k
		}
	})
	topic := fmt.Sprint("live/", i)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	sent, open := 0, 0
	var out []byte
	for sent < n {
		<-tick.C
		for more := true; more; {
			select {
			case k, ok := <-acked:
				open -= k
				more = ok
			default:
				more = false
			}
		}
		due := min(int(time.Since(begin).Seconds()*float64(rate)), n)
		out = out[:0]
		for ; sent < due && open < 1000; open++ {
			sent++
			out = append(out, publish(topic, uint16(sent%1000+1), fmt.Appendf(nil, "%d,%s", time.Since(epoch).Nanoseconds(), reading[:48]))...)
		}
		if len(out) > 0 {
			p.write(out)
		}
	}
	reader.Wait()
}
