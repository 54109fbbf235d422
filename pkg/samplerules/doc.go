// Package samplerules reads sampling parameters and grammars from the wire. The router
// checks a request with it before admission, and the sampler reads a session's rules with
// it, so the two agree on every bound and on how every field is understood.
//
// bounds.go is the only table of bounds on sampling parameters. The router also asks the
// stages for as many candidates as the parameters need, which depends on reading them
// exactly as the sampler does.
package samplerules
