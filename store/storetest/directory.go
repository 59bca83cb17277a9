package storetest

import (
	"context"
	"fmt"

	"rewindmq/schema"
	"rewindmq/store"
)

// Session tells what is stored of a session, as a node sees it; false: there is none.
func (m *Model) Session(clientID string, by Node) (store.SessionInfo, bool) {
	d := m.sessions[clientID]
	if d == nil {
		return store.SessionInfo{}, false
	}
	i := store.SessionInfo{
		Owner:     schema.Owner{ClientID: clientID, SID: d.sid, Epoch: d.epoch},
		Connected: d.owner != 0, Here: d.owner == by, Expiry: d.expiry,
	}
	if !i.Connected {
		i.Gone = d.gone
	}
	i.Subscriptions = m.Subscriptions(clientID, d.sid)
	if c, ok := m.Cursor(clientID, d.sid); ok {
		i.InFlight = len(c.Flight)
	}
	return i, true
}

// ListSessions lists sessions, see store.Directory.
func (s *Memory) ListSessions(ctx context.Context, after string, limit int) ([]store.SessionInfo, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	if limit <= 0 || limit > store.MaxSessionPage {
		limit = store.MaxSessionPage
	}
	var out []store.SessionInfo
	for _, id := range s.m.clients {
		if id <= after && after != "" || len(out) == limit {
			continue
		}
		if i, ok := s.m.Session(id, s.node); ok {
			i.Subscriptions, i.InFlight = nil, 0
			out = append(out, i)
		}
	}
	return out, nil
}

// LookSession gives one, see store.Directory.
func (s *Memory) LookSession(ctx context.Context, clientID string) (store.SessionInfo, error) {
	if err := s.enter(ctx); err != nil {
		return store.SessionInfo{}, err
	}
	defer s.mu.Unlock()
	if s.fail != nil {
		return store.SessionInfo{}, s.fail
	}
	i, ok := s.m.Session(clientID, s.node)
	if !ok {
		return i, fmt.Errorf("%w: client %q", store.ErrNoSession, clientID)
	}
	return i, nil
}
