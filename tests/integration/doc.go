// Package integration holds scenarios that every deployment of Lamina must pass, and
// one harness with three runners:
//
//	go test ./tests/integration/...                  inproc: everything in one process (default)
//	go test ./tests/integration/... -runner=procs    one process per service, with real Consul and NATS
//	go test ./tests/integration/... -runner=compose  docker compose
//
// A scenario only uses a Mesh: the gRPC APIs of router and trainer, and the HTTP API.
// Every scenario runs on every runner.
package integration
