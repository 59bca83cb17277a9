package storetest

import (
	"sort"

	"rewindmq/schema"
)

// Retained gives the retained messages in topic order, tombstones too, and the
// checkpoint.
func (m *Model) Retained() ([]*schema.Message, schema.Cursor) {
	out := make([]*schema.Message, 0, len(m.retained))
	for _, msg := range m.retained {
		out = append(out, msg)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Topic < out[j].Topic })
	return out, m.checkpoint
}

// StoreRetained stores messages; for each topic the one that Supersedes wins. The
// checkpoint never goes back: the projection is complete up to both.
func (m *Model) StoreRetained(msgs []*schema.Message, checkpoint schema.Cursor) {
	for _, msg := range msgs {
		if msg.Supersedes(m.retained[msg.Topic]) {
			m.retained[msg.Topic] = msg
		}
	}
	c := m.checkpoint.Clone()
	c.Merge(checkpoint)
	m.checkpoint = c
}
