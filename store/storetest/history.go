package storetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"rewindmq/store/history"
)

// Deliveries gives what is known of deliveries, in the order of client, session and
// seq.
func (m *Model) Deliveries(of history.Query) []history.Delivery {
	keys := slices.SortedFunc(maps.Keys(m.records), func(a, b recordKey) int {
		return cmp.Or(cmp.Compare(a.client, b.client), cmp.Compare(a.sid, b.sid))
	})
	var out []history.Delivery
	for _, k := range keys {
		cursor, there := m.Cursor(k.client, k.sid)
		for _, d := range m.records[k].list {
			if !of.Match(&d) {
				continue
			}
			state := history.StateOf(&d, nil)
			if there {
				state = history.StateOf(&d, &cursor)
			}
			out = append(out, history.Delivery{Delivery: d, State: state})
		}
	}
	return out
}

// ListDeliveries lists deliveries, see history.Reader.
func (s *Memory) ListDeliveries(ctx context.Context, of history.Query, after string, limit int) ([]history.Delivery, string, error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, "", s.fail
	}
	from, err := strconv.Atoi(cmp.Or(after, "0"))
	all := s.m.Deliveries(of)
	if err != nil || from < 0 || from > len(all) {
		return nil, "", fmt.Errorf("%w: %q", history.ErrPage, after)
	}
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	page := all[from:min(from+limit, len(all))]
	if from+limit >= len(all) {
		return page, "", nil
	}
	return page, strconv.Itoa(from + limit), nil
}
