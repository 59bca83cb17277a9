package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Duration is a time span whose text may have days and weeks: 30d, 1d12h, 90s.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns d with days where it has whole days.
func (d Duration) String() string {
	t := time.Duration(d)
	if t != 0 && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// UnmarshalText reads a text such as 365d, 1d12h or 1m30s.
func (d *Duration) UnmarshalText(text []byte) error {
	rest := strings.TrimSpace(string(text))
	var sum time.Duration
	for _, unit := range []struct {
		letter string
		length time.Duration
	}{{"w", 7 * day}, {"d", day}} {
		number, after, found := strings.Cut(rest, unit.letter)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil || time.Duration(n) > (math.MaxInt64-sum)/unit.length {
			return errors.New("is not a time")
		}
		sum += time.Duration(n) * unit.length
		rest = after
	}
	if rest == "" && sum > 0 {
		*d = Duration(sum)
		return nil
	}
	part, err := time.ParseDuration(rest)
	if err != nil || part < 0 || part > math.MaxInt64-sum {
		return errors.New("is not a time")
	}
	*d = Duration(sum + part)
	return nil
}

// Size is a number of bytes whose text may have a unit: 64MiB, 10MB, 4096.
type Size int64

const (
	kib Size = 1 << 10
	mib Size = 1 << 20
)

// sizeUnits are in the order in which a text is matched: longer names first.
var sizeUnits = [...]struct {
	name  string
	bytes Size
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", mib},
	{"KiB", kib},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"KB", 1e3},
	{"B", 1},
}

// String returns s in the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText reads a text such as 64MiB, 10MB or 4096.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := strings.TrimSpace(string(text)), Size(1)
	for _, u := range sizeUnits {
		if n, found := strings.CutSuffix(number, u.name); found {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(unit) {
		return errors.New("is not a size")
	}
	*s = Size(n) * unit
	return nil
}

// Reserve is free disk space to keep: a Size, or ReserveAuto.
type Reserve int64

// ReserveAuto lets the reserve follow the size of the file system.
const ReserveAuto Reserve = -1

// Of returns the reserve in bytes on a file system of total bytes. ReserveAuto is 5 % of it, at least 16 MiB and at
// most 512 MiB.
func (r Reserve) Of(total uint64) uint64 {
	if r != ReserveAuto {
		return uint64(r)
	}
	return min(max(total/20, 16*uint64(mib)), 512*uint64(mib))
}

// String returns auto or the size.
func (r Reserve) String() string {
	if r == ReserveAuto {
		return "auto"
	}
	return Size(r).String()
}

// UnmarshalText reads auto or a size.
func (r *Reserve) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*r = ReserveAuto
		return nil
	}
	var s Size
	if err := s.UnmarshalText(text); err != nil {
		return errors.New("is neither a size nor auto")
	}
	*r = Reserve(s)
	return nil
}

// Expiry is a session expiry in seconds, as in the protocol. The greatest value means that the session never expires.
type Expiry uint32

// ExpiryNever is the Session Expiry Interval of a session without end [MQTT-3.1.2.11.2].
const ExpiryNever Expiry = math.MaxUint32

// String returns never or the time.
func (e Expiry) String() string {
	if e == ExpiryNever {
		return "never"
	}
	return Duration(time.Duration(e) * time.Second).String()
}

// UnmarshalText reads never, a number of seconds or a time such as 7d.
func (e *Expiry) UnmarshalText(text []byte) error {
	if string(text) == "never" {
		*e = ExpiryNever
		return nil
	}
	if n, err := strconv.ParseUint(string(text), 0, 32); err == nil {
		*e = Expiry(n)
		return nil
	}
	var d Duration
	if err := d.UnmarshalText(text); err != nil {
		return errors.New("is neither a time, nor seconds, nor never")
	}
	seconds := d.Std() / time.Second
	if seconds >= math.MaxUint32 {
		return fmt.Errorf("is longer than %d s", uint32(math.MaxUint32))
	}
	*e = Expiry(seconds)
	return nil
}
