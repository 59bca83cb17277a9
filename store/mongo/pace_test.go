package mongo

import (
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

func TestPace(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Now()
	if n := p.entries(now); n != 0 {
		t.Errorf("%d entries, before any was met", n)
	}
	for _, step := range []struct {
		after time.Duration
		at    bson.Timestamp
		want  int
	}{
		{0, bson.Timestamp{T: 100, I: 7}, 7},
		{100 * time.Millisecond, bson.Timestamp{T: 100, I: 9000}, 9000},
		{0, bson.Timestamp{T: 100, I: 8000}, 9000},                     // older
		{500 * time.Millisecond, bson.Timestamp{T: 101, I: 1}, 9000},   // a second begins: the one before counts
		{0, bson.Timestamp{T: 100, I: 20_000}, 9000},                   // over
		{900 * time.Millisecond, bson.Timestamp{T: 101, I: 300}, 9000}, //
		{100 * time.Millisecond, bson.Timestamp{T: 102, I: 3}, 300},
		{1900 * time.Millisecond, bson.Timestamp{T: 102, I: 3}, 300},
		{200 * time.Millisecond, bson.Timestamp{T: 102, I: 3}, 0}, // no writes, for longer than a second counts
		{5 * time.Second, bson.Timestamp{T: 109, I: 12}, 12},      // not the second behind 102
	} {
		now = now.Add(step.after)
		p.note(step.at, now)
		if n := p.entries(now); n != step.want {
			t.Errorf("%v after %v: %d entries, want %d", step.at, step.after, n, step.want)
		}
	}
}
