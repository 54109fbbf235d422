// Package samplerules reads sampling parameters and grammars from the wire. The router checks a
// request with it before admission, and the sampler reads a session's rules with it, so both apply
// the same bounds and read every field in the same way.
//
// bounds.go is the only table of bounds on sampling parameters. The router also asks the stages for
// as many candidates as the parameters need. So it must read the parameters exactly as the sampler
// does.
package samplerules
