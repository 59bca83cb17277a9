package group

import (
	"rewindmq/broker/session"
	"rewindmq/schema"
	"rewindmq/store"
)

// Do names what an Action asks for.
type Do uint8

// The actions.
const (
	// DoOpen asks for store.OpenGroup; the answer comes by OnOpened.
	DoOpen Do = iota + 1
	// DoReplay asks for a reader of the log: OnAttach, Feed, OnCaughtUp.
	DoReplay
	// DoLookup asks for the messages of Refs; the answer comes by OnLookup.
	DoLookup
	// DoSave asks for store.SaveGroup with After and Passed; the answer comes by
	// OnSaved.
	DoSave
	// Count tells of a message that nobody gets: Dropped, QoS.
	Count
	// DoEnd: no member is left, and all is saved. The caller lets go of the group,
	// unless it is no longer Idle.
	DoEnd
)

// Action is one thing to carry out. Which fields count depends on Do.
type Action struct {
	Do      Do
	Refs    []store.Ref
	After   schema.Cursor
	Passed  []schema.ID
	Dropped session.Drop
	QoS     uint8
}
