package mongo

import (
	"context"
	"errors"
	"fmt"

	"rewindmq/schema"
	"rewindmq/store"
)

// OpenGroup is not there yet: a shared subscription on MongoDB gets nothing.
func (s *Store) OpenGroup(_ context.Context, name string) (store.Group, error) {
	return store.Group{}, fmt.Errorf("mongo: open group %q: shared subscriptions: %w", name, errors.ErrUnsupported)
}

// SaveGroup is not there yet.
func (s *Store) SaveGroup(_ context.Context, name string, _ schema.Cursor, _ []schema.ID) error {
	return fmt.Errorf("mongo: save group %q: shared subscriptions: %w", name, errors.ErrUnsupported)
}
