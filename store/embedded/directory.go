package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

var errPageFull = errors.New("embedded: page full")

// ListSessions implements store.Directory.
func (l *Log) ListSessions(ctx context.Context, after string, limit int) (out []store.SessionInfo, err error) {
	if limit <= 0 || limit > store.MaxSessionPage {
		limit = store.MaxSessionPage
	}
	err = l.look(ctx, "list_sessions", func(in pebble.Reader) error {
		from := []byte{keyClient}
		if after != "" {
			from = append(stringKey(nil, keyClient, after), 0) // the next key there is
		}
		err := scanIn(in, from, []byte{keyClient + 1}, -1, func(key, value []byte) error {
			d, err := readDocument(value)
			if err != nil {
				return corrupt(key, err)
			}
			if !d.exists() {
				return ctx.Err()
			}
			if out = append(out, d.info(string(key[1:]))); len(out) == limit {
				return errPageFull
			}
			return ctx.Err()
		})
		if errors.Is(err, errPageFull) {
			return nil
		}
		return err
	})
	return out, err
}

// LookSession implements store.Directory.
func (l *Log) LookSession(ctx context.Context, clientID string) (info store.SessionInfo, err error) {
	err = l.look(ctx, "look_session", func(from pebble.Reader) error {
		key := stringKey(nil, keyClient, clientID)
		value, err := getFrom(from, key)
		if err != nil {
			return err
		}
		var d *document
		if value != nil {
			if d, err = readDocument(value); err != nil {
				return corrupt(key, err)
			}
		}
		if !d.exists() {
			return fmt.Errorf("%w: client %q", store.ErrNoSession, clientID)
		}
		info = d.info(clientID)
		if info.Subscriptions, err = readSubscriptionsIn(from, clientID, d.session); err != nil {
			return err
		}
		key = sessionKey(nil, keyCursor, d.session)
		if value, err = getFrom(from, key); err != nil || value == nil {
			return err
		}
		p, err := readPlace(value)
		if err != nil {
			return corrupt(key, err)
		}
		info.InFlight = len(p.Flight)
		return nil
	})
	return info, err
}

// look reads what is committed, in one snapshot.
func (l *Log) look(ctx context.Context, op string, fn func(from pebble.Reader) error) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	if err := l.enter(); err != nil {
		return err
	}
	defer l.leave()
	start := time.Now()
	snapshot := l.db.NewSnapshot()
	defer func() { _ = snapshot.Close() }()
	err := fn(snapshot)
	if errors.Is(err, store.ErrNoSession) {
		l.observe(op, start, nil)
	} else {
		l.observe(op, start, err)
	}
	return err
}

// info tells what the document says. What a connection holds is held by this run: the
// start has finished what others held.
func (d *document) info(clientID string) store.SessionInfo {
	i := store.SessionInfo{
		Owner:     schema.Owner{ClientID: clientID, SID: d.sid, Epoch: d.epoch},
		Connected: d.owned, Here: d.owned, Expiry: d.expiry,
	}
	if !d.owned {
		i.Gone = d.released
	}
	return i
}
