package ast

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// SyntaxError says where a grammar, a regular expression or a schema is malformed.
type SyntaxError struct {
	Kind   string // "gbnf", "regex" or "schema"
	Line   int    // from 1, or 0 if unknown
	Column int    // in characters from 1, or 0 if unknown
	Msg    string
}

// Error names the place.
func (e *SyntaxError) Error() string {
	switch {
	case e.Line > 0 && e.Column > 0:
		return fmt.Sprintf("parse %s: line %d, column %d: %s", e.Kind, e.Line, e.Column, e.Msg)
	case e.Line > 0:
		return fmt.Sprintf("parse %s: line %d: %s", e.Kind, e.Line, e.Msg)
	case e.Column > 0:
		return fmt.Sprintf("parse %s: character %d: %s", e.Kind, e.Column, e.Msg)
	}
	return fmt.Sprintf("parse %s: %s", e.Kind, e.Msg)
}

// FaultCode is Invalid.
func (e *SyntaxError) FaultCode() fault.Code { return fault.Invalid }

// UnsupportedError names a well-formed construct that cannot be enforced exactly. It is
// refused, never ignored silently.
type UnsupportedError struct {
	Kind    string // "gbnf", "regex", "schema" or "tags"
	Feature string // the keyword or the construct, as it is spelled
	Path    string // a JSON pointer into the schema, or empty
	Why     string
}

// Error names the feature and its place.
func (e *UnsupportedError) Error() string {
	at := ""
	if e.Kind == "schema" {
		at = fmt.Sprintf(" at %q", e.Path)
	}
	return fmt.Sprintf("compile %s: %s%s is not supported: %s", e.Kind, e.Feature, at, e.Why)
}

// FaultCode is Invalid: the request must be changed, not repeated.
func (e *UnsupportedError) FaultCode() fault.Code { return fault.Invalid }

// LimitError says that a grammar needs more work or memory than the bounds allow.
type LimitError struct {
	What  string // "source bytes", "rules", "instructions", ...
	Limit int
}

// Error names the bound.
func (e *LimitError) Error() string {
	return fmt.Sprintf("compile grammar: more than %d %s", e.Limit, e.What)
}

// FaultCode is Invalid: the same grammar never fits.
func (e *LimitError) FaultCode() fault.Code { return fault.Invalid }

// RejectError says that bytes do not fit the grammar. The Matcher is unchanged.
type RejectError struct {
	Token  int32 // or -1 where bytes were given
	Offset int   // of the first byte that does not fit, in what was given
}

// Error names the token and the offset.
func (e *RejectError) Error() string {
	if e.Token < 0 {
		return fmt.Sprintf("accept text: byte %d does not fit the grammar", e.Offset)
	}
	return fmt.Sprintf("accept token %d: byte %d does not fit the grammar", e.Token, e.Offset)
}

// FaultCode is Invalid.
func (e *RejectError) FaultCode() fault.Code { return fault.Invalid }
