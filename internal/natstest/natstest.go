// Package natstest runs NATS servers with JetStream in the process of a test. It is for tests only.
package natstest

import (
	"cmp"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
)

// Embedded starts a server without ports, which stops with the test.
func Embedded(t testing.TB) *nats.Embedded {
	t.Helper()
	e, err := nats.NewEmbedded(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// Start starts a server on loopback, which stops with the test or by Stop. Without a port it takes a free one, and
// without a folder an empty one.
func Start(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port = "127.0.0.1", cmp.Or(o.Port, server.RANDOM_PORT)
	o.JetStream, o.NoSigs, o.NoLog = true, true, true
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { Stop(s) })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the NATS server is not ready")
	}
	return s
}

// Stop stops a server. It may have been stopped before.
func Stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}
