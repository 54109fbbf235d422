// Package rpc holds what every gRPC server and client of Lamina shares: limits and
// window sizes, interceptors (recovery, log, metrics, error mapping), TLS, and
// addresses. It knows no service.
//
// An address is "host:port", "unix:/path" or, within one process, "mem:name" on a
// memnet.Network. Services return fault errors; the interceptors here turn them
// into gRPC statuses once, and FromStatus turns statuses back.
package rpc
