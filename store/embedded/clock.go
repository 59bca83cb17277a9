package embedded

import "time"

const (
	// maxStep is how far the clock may step forward while the log runs: a
	// machine that slept. Beyond, the clock is not believed.
	maxStep = 24 * time.Hour
	// maxAway is how long the log may have been closed. Beyond, the clock is
	// not believed.
	maxAway = 30 * 24 * time.Hour
	// believeAfter is how long the log has to run with a clock that is ahead
	// until it is believed all the same.
	believeAfter = 24 * time.Hour
)

// clock is the store's clock: the machine's, as far as it is believed. Within
// one run it never steps back, so nothing that was timed ends late or early by
// a correction; and it does not follow an implausible jump forward (a gateway
// whose clock came up wrong), because retention and the end of sessions cannot
// be taken back.
//
// Invariant: at never falls within a run.
type clock struct {
	last time.Time // the machine's, with its monotonic part
	at   time.Time // believed
	// from is where the machine's clock jumped; zero: it is believed. ran is how
	// long the log has run since.
	from time.Time
	ran  time.Duration
}

// open starts a run: known is the newest time that the log has seen; zero: none.
func (c *clock) open(now, known time.Time) {
	c.last = now
	c.at = now.Round(0).UTC()
	if !known.IsZero() && c.at.Sub(known) > maxAway {
		c.at = known
		c.from = known
	}
}

// observe takes a reading and gives the believed time.
func (c *clock) observe(now time.Time) time.Time {
	wall := now.Round(0).UTC()
	elapsed := now.Sub(c.last) // monotonic, if the readings have it
	c.last = now
	if elapsed < 0 || elapsed > maxStep {
		elapsed = 0
	}
	next := c.at.Add(elapsed)
	switch ahead := wall.Sub(c.at); {
	case ahead > maxStep:
		if c.from.IsZero() {
			c.from, c.ran = c.at, 0
		}
		c.ran += elapsed
		c.at = next
	case wall.After(next):
		c.at, c.from, c.ran = wall, time.Time{}, 0
	default:
		c.at, c.from, c.ran = next, time.Time{}, 0
	}
	return c.at
}

// ahead tells how far the machine's clock is ahead of the believed one; zero: it
// is believed.
func (c *clock) ahead() time.Duration {
	if c.from.IsZero() {
		return 0
	}
	return c.last.Round(0).Sub(c.at)
}

// convinced tells whether a clock that is ahead has held long enough.
func (c *clock) convinced() bool { return !c.from.IsZero() && c.ran >= believeAfter }

// believe follows the machine's clock. It gives what was timed by the believed
// one since it was ahead, and by how much that has to be moved.
func (c *clock) believe() (from time.Time, by time.Duration) {
	wall := c.last.Round(0).UTC()
	from, by = c.from, wall.Sub(c.at)
	c.at, c.from, c.ran = wall, time.Time{}, 0
	return from, by
}
