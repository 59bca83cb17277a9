// Package exit says how the command ends: which exit code, which text, and what to try next.
//
// Nouns: a Code is the number that scripts read; an Error is an error that knows its Code.
// The package holds no state and starts no goroutine.
package exit

import (
	"context"
	"errors"
)

// Code is the exit code of the process. The numbers are part of the command's interface: scripts rely on them.
type Code int

const (
	// OK means that all was done.
	OK Code = 0
	// Failed means that the work failed for a reason with no code of its own.
	Failed Code = 1
	// Usage means that the command line is wrong.
	Usage Code = 2
	// Config means that the configuration is wrong.
	Config Code = 3
	// Connect means that the other side could not be reached.
	Connect Code = 4
	// Auth means that the other side refused the credentials or the right.
	Auth Code = 5
	// Timeout means that nothing moved for too long.
	Timeout Code = 6
	// Verification means that a check found loss, gaps or duplicates.
	Verification Code = 7
	// Store means that the store failed and the broker had to stop.
	Store Code = 8
	// Interrupted means that a signal ended the work before it was done.
	Interrupted Code = 130
)

// Error is an error with the exit code that it leads to.
type Error struct {
	Code Code
	Err  error
	// Try is what the user may do next, as a command or a short sentence. Empty: nothing to say.
	Try string
	// Told: the user has been told of it, in a log that is not to be mixed with plain text.
	Told bool
}

// Error returns the text of the wrapped error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// With gives err an exit code. An error that has one already keeps it. A nil error stays nil.
func With(code Code, err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	return &Error{Code: code, Err: err}
}

// Of returns the exit code that err leads to. An error without a code is a mistake on the command line, since all
// that a command itself returns has been given a code.
func Of(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return Interrupted
	default:
		return Usage
	}
}

// Hint returns what err suggests to try, or an empty string.
func Hint(err error) string {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Try
	}
	return ""
}

// Told says whether the user has been told of err.
func Told(err error) bool {
	e := (*Error)(nil)
	return errors.As(err, &e) && e.Told
}
