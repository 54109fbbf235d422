package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	OutOfRange              // longer than the model can take: ask for less
	Internal                // a bug or a broken invariant: report it with the log
)

var names = [...]string{
	"unspecified", "invalid argument", "not found", "already exists", "failed precondition", "aborted",
	"exhausted", "unavailable", "deadline exceeded", "canceled", "unauthenticated", "permission denied",
	"unimplemented", "data loss", "out of range", "internal",
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
	Op         string        // what was being done, where Msg alone does not say
	Field      string        // the offending request field, if it was one
	Msg        string        // lower case, verb first, with the id that finds the thing
	RetryAfter time.Duration // when trying again may help; 0 says nothing
	Err        error         // the cause
}

// Error returns the operation, the field, the message and the cause in one line.
func (e *Error) Error() string {
	text := e.Msg
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.Op != "" {
		text = e.Op + ": " + text
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

// FaultCode returns the code.
func (e *Error) FaultCode() Code { return e.Code }

// Coder is an error that knows its code: an Error, or a package's own type with
// fields that its callers want.
type Coder interface {
	error
	FaultCode() Code
}

// CodeOf returns the code of the nearest Coder in err's chain. Without one, a
// context's end is Canceled or DeadlineExceeded and a missing file NotFound; nil is
// Unspecified; anything else is Internal.
func CodeOf(err error) Code {
	var known Coder
	switch {
	case err == nil:
		return Unspecified
	case errors.As(err, &known):
		return known.FaultCode()
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
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
