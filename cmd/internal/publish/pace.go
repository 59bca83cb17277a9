package publish

import (
	"bytes"
	"time"
)

// pace spreads messages evenly over time. After a pause it catches up for at most a second, so that an outage of the
// server is not followed by a flood.
type pace struct {
	rate float64 // messages a second; 0: no limit
	next time.Time
}

// ready says whether the next message may go at now.
func (p *pace) ready(now time.Time) bool { return p.rate <= 0 || !now.Before(p.next) }

// took counts a message that went at now.
func (p *pace) took(now time.Time) {
	if p.rate <= 0 {
		return
	}
	if now.Sub(p.next) > time.Second {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(time.Second) / p.rate))
}

// wake returns a channel that delivers when the next message may go, or nil when nothing has to be waited for.
func (p *pace) wake() <-chan time.Time {
	if p.rate <= 0 {
		return nil
	}
	wait := time.Until(p.next)
	if wait <= 0 {
		return nil
	}
	return time.After(wait)
}

func newBuffer() bytes.Buffer { return bytes.Buffer{} }
