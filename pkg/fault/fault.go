// Package fault is the vocabulary of errors. Every error that leaves a package
// and that somebody could act on is an Error with a Code; one interceptor in
// pkg/rpc maps codes to gRPC and HTTP and back. A service returns a fault or logs
// it, never both.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Code says what went wrong and what to do about it.
type Code uint8

// The codes. The zero value means nothing, so that a forgotten code shows.
const (
	Unspecified        Code = iota
	Invalid                 // the request is wrong and stays wrong: change the named field
	NotFound                // nothing has that name here: list what there is
	AlreadyExists           // the name is taken: choose another or look at the one there
	FailedPrecondition      // not in this state: do what is missing first
	Aborted                 // overtaken, as by a higher epoch: start over from a fresh state
	Exhausted               // full: wait RetryAfter or ask for less
	Unavailable             // not reachable just now: try again, perhaps elsewhere
	DeadlineExceeded        // the time was up: nobody waits for the result any more
	Canceled                // the caller went away
	Unauthenticated         // who are you: show credentials
	PermissionDenied        // not yours to ask
	Unimplemented           // not supported by this build or model
	DataLoss                // bytes are damaged: fall back to another copy
	Internal                // a bug or a broken invariant: report it with the log
)

var names = [...]string{
	"unspecified", "invalid argument", "not found", "already exists", "failed precondition", "aborted",
	"exhausted", "unavailable", "deadline exceeded", "canceled", "unauthenticated", "permission denied",
	"unimplemented", "data loss", "internal",
}

// String returns the code's name for people.
func (c Code) String() string {
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}

// Error is an error that somebody can act on.
type Error struct {
	Code       Code
	Field      string        // the offending request field, if it was one
	Msg        string        // lower case, verb first, with the id that finds the thing
	RetryAfter time.Duration // when trying again may help; 0 says nothing
	Err        error         // the cause
}

// Error returns the message, the field and the cause in one line.
func (e *Error) Error() string {
	text := e.Msg
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the given code.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of the given code with a cause.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Err: err}
}

// Field returns an Invalid error that names the request's field.
func Field(field, format string, args ...any) *Error {
	return &Error{Code: Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// After says when trying again may help, and returns e.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// CodeOf returns the code of the nearest Error in err's chain. A context's end is
// Canceled or DeadlineExceeded; nil is Unspecified; anything else is Internal.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return Unspecified
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

// Retryable reports whether the same request may succeed later or elsewhere.
func Retryable(err error) bool {
	switch CodeOf(err) {
	case Exhausted, Unavailable, Aborted:
		return true
	}
	return false
}
