package store

import "errors"

var (
	// ErrSessionLost answers a write of a session whose Owner is not the
	// present one: claimed elsewhere, or ended. Nothing was changed.
	ErrSessionLost = errors.New("store: session lost")
	// ErrSuperseded answers a Claim that met a newer one: give up.
	ErrSuperseded = errors.New("store: claim superseded")
	// ErrClaimed answers the record of a message that is not, or no longer, the
	// group's to give: another member has it, or had it, or the group has ended.
	// Nothing was stored, and the session goes on.
	ErrClaimed = errors.New("store: the message is claimed by another member of the group")
	// ErrNoSession answers for a client id that has none.
	ErrNoSession = errors.New("store: no such session")
	// ErrNoGroup answers for a group without a member.
	ErrNoGroup = errors.New("store: no such group")
	// ErrNoSpace refuses an append: the store is below its reserve. Later
	// appends may be taken.
	ErrNoSpace = errors.New("store: no space left above the reserve")
	// ErrTooLarge refuses a message that the store cannot hold.
	ErrTooLarge = errors.New("store: message too large")
	// ErrPublisherFailed refuses what a publisher has behind a message that was
	// not stored: nothing overtakes (L5).
	ErrPublisherFailed = errors.New("store: an earlier message of the publisher was not stored")
	// ErrClosed answers calls after the store has stopped.
	ErrClosed = errors.New("store: closed")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("store: in use by another process")
	// ErrFormat: what is stored is not ours, or of a newer version.
	ErrFormat = errors.New("store: unknown format")
	// ErrCorrupt: what is stored contradicts itself. It is never skipped.
	ErrCorrupt = errors.New("store: corrupt")
)
