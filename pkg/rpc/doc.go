// Package rpc holds what all gRPC servers and clients of Lamina share: limits and window
// sizes, room for what callers send, interceptors (recovery, log, metrics, error mapping), TLS, and addresses. It
// does not depend on any service.
//
// An address is "host:port", "unix:/path" or, within one process, "mem:name" on a
// memnet.Network. Services return fault errors; the interceptors turn them
// into gRPC statuses, and FromStatus turns a status back into a fault.
package rpc
