package publish

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestMeterLines(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	m := NewMeter(&b, 1000, "row", false)
	for elapsed := range 12 {
		m.Update(Result{Rows: int64(elapsed) * 20, Acked: int64(elapsed) * 10, End: int64(elapsed) * 50, Elapsed: time.Duration(elapsed) * time.Second})
	}
	m.Finish()
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 || lines[0] != "50 rows acknowledged, 50 in flight, 10/s, 25.0 %, 15s left" {
		t.Errorf("got %q", lines)
	}
}

func TestMeterBar(t *testing.T) {
	t.Parallel()
	for _, total := range []int64{0, 1000} {
		var b bytes.Buffer
		m := NewMeter(&b, total, "message", true)
		m.Update(Result{Acked: 7, End: 500})
		m.Finish()
		if !strings.Contains(b.String(), "7 messages acknowledged") {
			t.Errorf("total %d: got %q", total, b.String())
		}
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	r := Result{Rows: 10, Acked: 9, Elapsed: 2 * time.Second, Reconnects: 1, Again: 3}
	if got, want := r.Summary(2, "row"), "10 rows, 9 acknowledged, 2.0 s, 4 rows/s, 1 reconnect, 3 packets repeated"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := (Result{Rows: 1, Acked: 1}).Summary(1, "message"), "1 message, 1 acknowledged, 0.0 s, 0 messages/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (Result{}).Summary(0, "row"); got != "0 rows, 0 sent, 0.0 s, 0 rows/s" {
		t.Errorf("got %q", got)
	}
}
