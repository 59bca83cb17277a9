package storetest

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// ListMessages lists messages in commit order, see history.Reader. A page ends at a
// place of that order.
func (s *Memory) ListMessages(ctx context.Context, of history.MessageQuery, after string, limit int) (list []*schema.Message, next string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, "", s.fail
	}
	from, err := strconv.Atoi(cmp.Or(after, "0"))
	if err != nil || from < 0 || from > s.m.Length() {
		return nil, "", fmt.Errorf("%w: %q", history.ErrPage, after)
	}
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	for bytes := 0; from < s.m.Length(); from++ {
		m := s.m.order[from].msg
		if m == nil || s.m.Message(m.ID) == nil || !of.Match(m) {
			continue
		}
		if len(list) == limit || bytes >= history.MaxPageBytes {
			return list, strconv.Itoa(from), nil
		}
		list = append(list, m)
		bytes += m.Size()
	}
	return list, "", nil
}
