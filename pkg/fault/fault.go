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

// The codes. The zero value is not a valid code, so that a forgotten code is noticed.
const (
	Unspecified        Code = iota
	Invalid                 // the request is wrong and stays wrong: change the named field
	NotFound                // nothing has that name: list what exists
	AlreadyExists           // the name is taken: choose another one or use what exists
	FailedPrecondition      // not possible in this state: do first what is missing
	Aborted                 // superseded, for example by a higher epoch: start over from a fresh state
	Exhausted               // full: wait RetryAfter or ask for less
	Unavailable             // not reachable now: retry, perhaps elsewhere
	DeadlineExceeded        // the deadline has passed: nobody waits for the result any more
	Canceled                // the caller went away
	Unauthenticated         // the caller is unknown: send credentials
	PermissionDenied        // the caller may not do this
	Unimplemented           // not supported by this build or model
	DataLoss                // bytes are damaged: fall back to another copy
	OutOfRange              // longer than the model supports: ask for less
	Internal                // a bug or a broken invariant: report it with the log
)

var names = [...]string{
	"unspecified", "invalid argument", "not found", "already exists", "failed precondition", "aborted",
	"exhausted", "unavailable", "deadline exceeded", "canceled", "unauthenticated", "permission denied",
	"unimplemented", "data loss", "out of range", "internal",
}

// String returns the name of the code for people to read.
func (c Code) String() string {
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}

// Error is an error that somebody can act on.
type Error struct {
	Code       Code
	Op         string        // the operation that failed, where Msg alone does not say it
	Field      string        // the request field at fault, if there is one
	Msg        string        // lower case, verb first, with the id of the thing
	Reason     string        // a machine-readable reason within the code, such as QUEUE_FULL; usually empty
	RetryAfter time.Duration // how long to wait before a retry; 0 if unknown
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

// Field returns an Invalid error that names a field of the request.
func Field(field, format string, args ...any) *Error {
	return &Error{Code: Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// After sets how long to wait before a retry, and returns e.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// Because sets the reason, in upper case with underscores, and returns e.
func (e *Error) Because(reason string) *Error {
	e.Reason = reason
	return e
}

// Public returns the text of an error for people who may not know the machine that it comes from: that of the faults in
// its chain. Causes that are no faults are left out, since they have addresses of sockets and paths of files; the whole
// text belongs in the log.
func Public(err error) string {
	var e, cause *Error
	if !errors.As(err, &e) {
		return CodeOf(err).String()
	}
	shallow := *e
	shallow.Err = nil
	text := shallow.Error()
	if errors.As(e.Err, &cause) {
		text += ": " + Public(cause)
	}
	return text
}

// FaultCode returns the code.
func (e *Error) FaultCode() Code { return e.Code }

// Coder is an error with a code: an Error, or the type of another package with fields that its
// callers need.
type Coder interface {
	error
	FaultCode() Code
}

// CodeOf returns the code of the first Coder in the chain of err. Without one, the error of an
// ended context is Canceled or DeadlineExceeded, a missing file is NotFound, and any other error
// is Internal. nil is Unspecified.
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
