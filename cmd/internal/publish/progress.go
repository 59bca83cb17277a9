package publish

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Meter shows the progress of a run to people: a bar on a terminal, else a plain line every five seconds. It is for one
// goroutine.
type Meter struct {
	w     io.Writer
	total int64 // bytes of the source; 0: not known
	noun  string
	bar   *progressbar.ProgressBar
	last  time.Duration
}

// lineEvery is how often the plain line comes.
const lineEvery = 5 * time.Second

// NewMeter returns a meter that writes to w. total is the size of the source in bytes, or 0 when nobody knows it;
// noun says what one message is.
func NewMeter(w io.Writer, total int64, noun string, terminal bool) *Meter {
	m := &Meter{w: w, total: total, noun: noun}
	if terminal {
		size := total
		if size == 0 {
			size = -1
		}
		m.bar = progressbar.NewOptions64(size,
			progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("publishing"), progressbar.OptionShowBytes(true),
			progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(true))
	}
	return m
}

// Update shows how far the run is. What a display cannot show does no harm to the run, so there is no error.
func (m *Meter) Update(r Result) {
	if m.bar != nil {
		m.bar.Describe(count(r.Acked, m.noun) + " acknowledged")
		_ = m.bar.Set64(r.End)
		return
	}
	if r.Elapsed-m.last >= lineEvery {
		m.last = r.Elapsed
		_, _ = fmt.Fprintln(m.w, m.line(r))
	}
}

// Finish removes the bar.
func (m *Meter) Finish() {
	if m.bar != nil {
		_ = m.bar.Finish()
	}
}

func (m *Meter) line(r Result) string {
	text := fmt.Sprintf("%s acknowledged, %d in flight, %.0f/s", count(r.Acked, m.noun), r.Rows-r.Acked, r.PerSecond())
	if m.total > 0 && r.End > 0 {
		left := time.Duration(float64(r.Elapsed) * float64(m.total-r.End) / float64(r.End))
		text += fmt.Sprintf(", %.1f %%, %v left", 100*float64(r.End)/float64(m.total), left.Round(time.Second))
	}
	return text
}

// PerSecond returns the acknowledged messages per second.
func (r Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Acked) / r.Elapsed.Seconds()
}

// count returns a number with its noun.
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Summary returns the result as one line; noun says what one message is.
func (r Result) Summary(qos byte, noun string) string {
	verb := "acknowledged"
	if qos == 0 {
		verb = "sent"
	}
	text := fmt.Sprintf("%s, %d %s, %.1f s, %.0f %ss/s", count(r.Rows, noun), r.Acked, verb, r.Elapsed.Seconds(), r.PerSecond(), noun)
	if r.Reconnects > 0 {
		text += ", " + count(r.Reconnects, "reconnect") + ", " + count(r.Again, "packet") + " repeated"
	}
	return text
}
