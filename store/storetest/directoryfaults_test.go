package storetest

import (
	"context"
	"errors"
	"slices"

	"rewindmq/store"
)

func (b *broken) ListSessions(ctx context.Context, after string, limit int) ([]store.SessionInfo, error) {
	if b.list != nil {
		after, limit = b.list(after, limit)
	}
	got, err := b.Memory.ListSessions(ctx, after, limit)
	if err == nil && b.listed != nil {
		got = b.listed(got)
	}
	return got, err
}

func (b *broken) LookSession(ctx context.Context, clientID string) (store.SessionInfo, error) {
	got, err := b.Memory.LookSession(ctx, clientID)
	if b.looked != nil {
		return b.looked(got, err)
	}
	return got, err
}

func looked(fn func(*store.SessionInfo)) func(*broken) {
	return func(b *broken) {
		b.looked = func(i store.SessionInfo, err error) (store.SessionInfo, error) {
			fn(&i)
			return i, err
		}
		b.listed = func(list []store.SessionInfo) []store.SessionInfo {
			for k := range list {
				fn(&list[k])
			}
			return list
		}
	}
}

func directoryFaults() []fault {
	return []fault{
		{"a page begins with the last of the one before", "Directory/Pages", func(b *broken) {
			b.list = func(after string, limit int) (string, int) {
				if after == "" {
					return "", limit
				}
				return after[:len(after)-1], limit
			}
		}},
		{"a page leaves one out", "Directory/Pages", func(b *broken) {
			b.listed = func(list []store.SessionInfo) []store.SessionInfo {
				if len(list) > 2 {
					return slices.Delete(list, 1, 2)
				}
				return list
			}
		}},
		{"the limit is not kept", "Directory/Pages", func(b *broken) {
			b.list = func(after string, limit int) (string, int) { return after, limit + 1 }
		}},
		{"a page is out of order", "Directory/Pages", func(b *broken) {
			b.listed = func(list []store.SessionInfo) []store.SessionInfo { slices.Reverse(list); return list }
		}},
		{"every session is connected", "Directory/State", looked(func(i *store.SessionInfo) { i.Connected = true })},
		{"none is connected here", "Directory/State", looked(func(i *store.SessionInfo) { i.Here = false })},
		{"the expiry is not told", "Directory/State", looked(func(i *store.SessionInfo) { i.Expiry = 0 })},
		{"the epoch is not told", "Directory/State", looked(func(i *store.SessionInfo) { i.Epoch = 1 })},
		{"subscriptions are not told", "Directory/State", looked(func(i *store.SessionInfo) { i.Subscriptions = nil })},
		{"the flight is not counted", "Directory/State", looked(func(i *store.SessionInfo) { i.InFlight = 0 })},
		{"a session that is not there is", "Directory/None", func(b *broken) {
			b.looked = func(i store.SessionInfo, err error) (store.SessionInfo, error) {
				if errors.Is(err, store.ErrNoSession) {
					err = nil
				}
				return i, err
			}
		}},
		{"all are connected here after a SIGKILL", "Directory/Reopen", looked(func(i *store.SessionInfo) { i.Here = true })},
	}
}
