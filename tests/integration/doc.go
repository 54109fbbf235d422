// Package integration holds the scenarios that every deployment of Lamina must
// play alike, and one harness with three runners:
//
//	go test ./tests/integration/...                  inproc: one process (default)
//	go test ./tests/integration/... -runner=procs    a process a service, real Consul and NATS
//	go test ./tests/integration/... -runner=compose  docker compose
//
// A scenario sees a Mesh alone: the router's and trainer's gRPC APIs and the HTTP
// face. What it asks of one runner it asks of all.
package integration
