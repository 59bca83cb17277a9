package integration

import (
	"fmt"
	"testing"
)

// members makes "a" and "b" the members of a group on "t".
func (s *scene) members(qos byte) {
	for _, id := range []string{"a", "b"} {
		s.back(id, false)
		s.asked(id, []want{{"$share/g/t", qos}})
		s.granted(id)
	}
}

func (s *scene) back(id string, present bool) { s.subscriberConnected(id, 4, present) }

// end ends a member's link: cut by itself, or (far) by the broker.
func (s *scene) end(id string, far bool) {
	if !far {
		s.leaving(id)
	}
	s.left(id)
}

func (s *scene) gives(id string, qos byte, seq int, packetID uint16, dup bool) {
	s.arrived(id, packet{kind: kindPublish, topic: "t", id: packetID, qos: qos, dup: dup, payload: s.key(qos, seq).payload(0)})
}

func (s *scene) acks(id string, kind byte, packetID uint16) { s.answered(id, kind, packetID) }

// Each fault in what a group gets is found, and what is allowed is not taken for one.
func TestCheckerGroups(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		qos  byte
		run  func(s *scene)
	}{
		"all well": {"", 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.gives("b", 1, 2, 1, false)
			s.acks("a", kindPuback, 1)
			s.gives("a", 1, 3, 2, false)
		}},
		"lost": {faultLost, 1, func(s *scene) { s.gives("a", 1, 1, 1, false); s.gives("b", 1, 3, 1, false) }},
		"QoS 1 to both, both connected": {faultDuplicated, 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.gives("b", 1, 1, 1, false)
			s.gives("b", 1, 2, 2, false)
			s.gives("b", 1, 3, 3, false)
		}},
		"QoS 1 to the other, when the link was cut": {"", 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.gives("b", 1, 2, 1, false)
			s.end("a", false)
			s.gives("b", 1, 1, 2, false)
			s.gives("b", 1, 3, 3, false)
		}},
		"QoS 1 to the other, when the broker was killed": {"", 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.killing()
			s.end("b", true)
			s.back("b", true)
			s.gives("b", 1, 1, 1, false)
			s.end("a", true) // it notices later
			s.gives("b", 1, 2, 2, false)
			s.gives("b", 1, 3, 3, false)
		}},
		"QoS 1 again to the one that returned, as new": {"", 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.end("a", false)
			s.back("a", true)
			s.gives("a", 1, 1, 2, false)
			s.gives("a", 1, 2, 1, false)
			s.gives("a", 1, 3, 3, false)
		}},
		"QoS 1 again, before the link was cut": {faultDuplicated, 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.gives("b", 1, 1, 1, false)
			s.end("a", false)
			s.end("b", false)
			s.back("b", true)
			s.gives("b", 1, 2, 1, false)
			s.gives("b", 1, 3, 2, false)
		}},
		"out of order": {faultReordered, 1, func(s *scene) {
			s.gives("a", 1, 2, 1, false)
			s.gives("a", 1, 1, 2, false)
			s.gives("a", 1, 3, 3, false)
		}},
		"between members there is no order": {"", 1, func(s *scene) {
			s.gives("a", 1, 2, 1, false)
			s.gives("b", 1, 1, 1, false)
			s.gives("a", 1, 3, 2, false)
		}},
		"not asked for": {faultPhantom, 1, func(s *scene) {
			s.gives("a", 1, 1, 1, false)
			s.gives("a", 1, 2, 2, false)
			s.gives("a", 1, 3, 3, false)
			s.arrived("a", packet{kind: kindPublish, topic: "u", id: 4, qos: 1, payload: s.key(1, 3).payload(0)})
		}},
		"QoS 2 completed by the one that has it": {"", 2, func(s *scene) {
			s.gives("a", 2, 1, 1, false)
			s.end("a", false)
			s.gives("b", 2, 2, 1, false)
			s.gives("b", 2, 3, 2, false)
			s.back("a", true)
			s.gives("a", 2, 1, 1, true)
		}},
		"QoS 2 given to the other": {faultDuplicated, 2, func(s *scene) {
			s.gives("a", 2, 1, 1, false)
			s.end("a", false)
			s.gives("b", 2, 1, 1, false)
			s.gives("b", 2, 2, 2, false)
			s.gives("b", 2, 3, 3, false)
		}},
		"QoS 2 out of order, though a link was cut": {faultReordered, 2, func(s *scene) {
			s.end("a", false)
			s.gives("b", 2, 2, 2, false)
			s.gives("b", 2, 1, 1, false)
			s.gives("b", 2, 3, 3, false)
		}},
		"more than a window again": {faultDuplicated, 1, func(s *scene) {
			s.pub(1, 4, 5)
			for seq := range 5 {
				s.gives("a", 1, seq+1, uint16(seq+1), false)
				s.acks("a", kindPuback, uint16(seq+1))
			}
			s.end("a", false)
			for seq := range 5 {
				s.gives("b", 1, seq+1, uint16(seq+1), false)
				s.acks("b", kindPuback, uint16(seq+1))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene()
			s.members(c.qos)
			s.pub(c.qos, 1, 2, 3)
			for seq := 1; seq <= 3; seq++ { // "s" gets all
				s.deliver(c.qos, seq, uint16(seq))
			}
			c.run(s)
			got := s.check()
			var of []fault
			for _, f := range got {
				if f.who != "s" {
					of = append(of, f)
				}
			}
			expectFault(t, of, c.want)
		})
	}
}

// Wills: each once or not at all, in order, and none that was cancelled.
func TestCheckerWills(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		got  []int
	}{
		"all well":        {"", []int{1, 2, 3, 6}},
		"one in doubt":    {"", []int{1, 2, 3, 5, 6}},
		"lost":            {faultLost, []int{1, 3, 6}},
		"twice":           {faultDuplicated, []int{1, 2, 2, 3, 6}},
		"cancelled":       {faultPhantom, []int{1, 2, 3, 4, 6}},
		"after the birth": {faultReordered, []int{1, 3, 2, 6}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene()
			for seq := 1; seq <= 6; seq++ { // births and wills of three lives
				s.sentAlone(s.key(2, seq))
			}
			for _, seq := range []int{1, 2, 3, 6} {
				s.acknowledged(s.key(2, seq))
			}
			s.mustNotCome(s.key(2, 4))
			for i, seq := range c.got {
				s.deliver(2, seq, uint16(i+1))
			}
			expectFault(t, s.check(), c.want)
		})
	}
}

// What a new subscriber gets of retained messages.
func TestCheckerRetained(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want string
		got  []string // seq, and r for RETAIN=1
	}{
		"all well":                 {"", []string{"2r"}},
		"then what follows":        {"", []string{"2r", "3"}},
		"what is in flight":        {"", []string{"3r"}},
		"written meanwhile":        {"", []string{"3"}},
		"nothing":                  {faultLost, nil},
		"an older one":             {faultLost, []string{"1r"}},
		"an older one, live":       {faultLost, []string{"2r", "1"}},
		"twice":                    {faultDuplicated, []string{"2r", "3r"}},
		"after what is newer":      {faultDuplicated, []string{"3", "3r"}},
		"never sent":               {faultPhantom, []string{"9r"}},
		"only live, written later": {faultLost, []string{"end", "4"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene()
			s.pub(1, 1, 2)
			s.sent(s.key(1, 3))
			last := key{stream{"p", lastTopic, 1}, 1}
			s.sent(last)
			s.acknowledged(last)
			k := s.beginLook("#")
			k.arrivedAs(s, last, len(c.got) > 0 && c.got[0] == "end")
			for _, text := range c.got {
				var seq int
				if _, err := fmt.Sscan(text[:1], &seq); err != nil {
					continue
				}
				if seq == 4 {
					s.sent(s.key(1, 4))
				}
				k.arrived(s.ledger, packet{kind: kindPublish, topic: "t", retain: len(text) > 1, payload: s.key(1, seq).payload(0)})
			}
			k.arrivedAs(s, last, len(c.got) == 0 || c.got[0] != "end")
			expectFault(t, s.checkLook(k), c.want)
		})
	}
}

func (k *look) arrivedAs(s *scene, of key, yes bool) {
	if yes {
		k.arrived(s.ledger, packet{kind: kindPublish, topic: of.topic, retain: true, payload: of.payload(0)})
	}
}
