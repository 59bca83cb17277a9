package embedded

import (
	"context"

	"rewindmq/store"
)

// Watch implements store.Sessions: one node, so nothing is claimed elsewhere.
func (l *Log) Watch(ctx context.Context) (store.Watch, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return watch{l}, nil
}

type watch struct{ l *Log }

// Next waits until ctx or the log ends.
func (w watch) Next(ctx context.Context) ([]store.Lost, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-w.l.stopped:
		return nil, store.ErrClosed
	}
}
