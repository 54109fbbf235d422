// Package auth decides who may call what: API keys, tenants, roles, budgets, and the policy of every
// gRPC method and HTTP route.
//
// A caller is a Principal: the owner of an API key, or the holder of a client certificate with a SPIFFE id.
// Roles give verbs (Generate, Train, Operate, ...), and Methods and Routes say which verb each method and
// route needs. What has no policy is refused, and tests walk all services and APIs to find what has none.
//
// A Guard authenticates and authorises. pkg/rpc asks it before the handler of every call, and the package
// gate before every HTTP request. Both put the principal and its tenant into the context, where services find
// them: Tenant separates queues, caches and journals; CheckModel and Reserve enforce the scopes of a key that
// are known only when a request has been read.
//
// Meters hold the budgets of callers. A Ledger lets several routers share them: each admits by its own meters and tells
// the others, through the package ledger, what it has let in.
//
// A Guard without keys and certificates lets everyone in, which is the default on loopback. The tenant is then
// an opaque name that clients send, and protects only tenants that share a trusted proxy.
//
// Secrets of keys have 256 random bits. They are shown once and stored as SHA-256 digests, and a caller's secret
// is compared by its digest, so the time of a comparison says nothing about stored keys. The package logs no
// secret and puts none into an error.
package auth
