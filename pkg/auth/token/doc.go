// Package token verifies the tokens of identity providers (JSON Web Tokens, RFC 7519 and 8725) as an alternative to
// API keys.
//
// A Config lists issuers. Each has its public keys (a JSON Web Key Set, from a file or an HTTPS server), the audiences
// and algorithms that it may use, and grants, which map claims to a tenant, roles, models and budgets. A Verifier
// answers whose token it is. Its Run reads the key sets again; Authenticate never does I/O of its own, and waits a
// bounded time for Run if a token names a key that is not known yet.
//
// What a token says about how to verify it counts for nothing: the algorithm must be on the issuer's list, the key
// comes from the issuer's set alone, and a key is used only for the algorithms of its own type. There is no algorithm
// without a signature, and none with a shared secret.
//
// Nothing of a token is logged and no error quotes one. All wrong tokens have the same error; the reason is logged at
// the level debug as one of a few fixed words.
package token
