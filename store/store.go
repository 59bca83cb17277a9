package store

import (
	"context"

	"rewindmq/store/history"
)

// Store is the whole of it, as cmd wires it.
type Store interface {
	Appender
	Tailer
	Reader
	Sessions
	Deliveries
	Groups
	Retained
	Keeper
	Directory
	history.Reader
	Life
}

// Life is the store as something that runs.
type Life interface {
	// Run does the store's work until ctx ends, then settles what was given to
	// it, lets go of everything and returns. An error means that the store
	// cannot go on: the process should end. Calls before Run has begun wait.
	Run(ctx context.Context) error
	// Ready tells whether appends are taken and events flow; the error is for
	// people (/readyz).
	Ready(ctx context.Context) error
}
