package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"90m":                       now.Add(-90 * time.Minute),
		"0s":                        now,
		"2026-01-31":                time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T12:30:00+01:00": time.Date(2026, 1, 31, 11, 30, 0, 0, time.UTC),
	} {
		if got, err := parseTime("--from", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"today", "-5m", "2026-13-01", "12:00"} {
		if _, err := parseTime("--from", text, now); err == nil || !strings.Contains(err.Error(), "--from "+text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]string{
		"1,2,3":                 "1,2,3",
		"":                      `""`,
		"a b\r\n":               `"a b\r\n"`,
		"\xff":                  "(1 bytes, not text)",
		strings.Repeat("ü", 60): strings.Repeat("ü", 60),
		strings.Repeat("ü", 61): strings.Repeat("ü", 60) + "…",
	} {
		if got := short([]byte(payload)); got != want {
			t.Errorf("%q: %s, want %s", payload, got, want)
		}
	}
}
