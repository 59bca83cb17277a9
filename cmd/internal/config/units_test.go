package config

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text string
		want time.Duration
		show string
	}{
		{"365d", 365 * day, "365d"},
		{"1d12h", 36 * time.Hour, "36h"},
		{"2w1d", 15 * day, "15d"},
		{"90s", 90 * time.Second, "1m30s"},
		{"1h", time.Hour, "1h"},
		{"10m", 10 * time.Minute, "10m"},
		{"10s", 10 * time.Second, "10s"},
		{"65535s", 65535 * time.Second, "18h12m15s"},
		{"100ms", 100 * time.Millisecond, "100ms"},
		{"0s", 0, "0s"},
	}
	for _, tt := range tests {
		var d Duration
		if err := d.UnmarshalText([]byte(tt.text)); err != nil || d.Std() != tt.want || d.String() != tt.show {
			t.Errorf("%s: got %v (%s) and %v, want %v (%s)", tt.text, d.Std(), d, err, tt.want, tt.show)
		}
	}
	for _, text := range []string{"", "60", "d", "-1d", "-5s", "1.5d", "1x", "99999999999d", "106751d24h", "1d-1h", "300000000d"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %v", text, d)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text string
		want Size
		show string
	}{
		{"1MiB", 1 << 20, "1MiB"},
		{"64 KiB", 64 << 10, "64KiB"},
		{"1MB", 1e6, "1000000"},
		{"4096", 4096, "4KiB"},
		{"17B", 17, "17"},
		{"0", 0, "0"},
	}
	for _, tt := range tests {
		var s Size
		if err := s.UnmarshalText([]byte(tt.text)); err != nil || s != tt.want || s.String() != tt.show {
			t.Errorf("%s: got %d (%s) and %v, want %d (%s)", tt.text, s, s, err, tt.want, tt.show)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "9999999999GiB", "1PiB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %d", text, s)
		}
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text  string
		total uint64
		want  uint64
	}{
		{"auto", 100 << 20, 16 << 20},
		{"auto", 1 << 30, (1 << 30) / 20},
		{"auto", 1 << 40, 512 << 20},
		{"64MiB", 1 << 40, 64 << 20},
		{"0", 1 << 40, 0},
	} {
		var r Reserve
		if err := r.UnmarshalText([]byte(tt.text)); err != nil || r.Of(tt.total) != tt.want {
			t.Errorf("%s of %d: got %d and %v, want %d", tt.text, tt.total, r.Of(tt.total), err, tt.want)
		}
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Expiry{"never": ExpiryNever, "0xFFFFFFFF": ExpiryNever, "4294967295": ExpiryNever, "3600": 3600, "7d": 7 * 86400, "0": 0} {
		var e Expiry
		if err := e.UnmarshalText([]byte(text)); err != nil || e != want {
			t.Errorf("%s: got %d and %v, want %d", text, e, err, want)
		}
	}
	for _, text := range []string{"4294967296", "50000d", "soon"} {
		var e Expiry
		if err := e.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %d", text, e)
		}
	}
}
