package nats_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
)

func TestBus_KeepsTheContract(t *testing.T) {
	for _, memory := range []bool{true, false} {
		gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
			server, err := nats.NewEmbedded(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Close() })
			b, err := server.Connect(nats.Config{MaxBytes: int64(limit), Memory: memory})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b
		})
	}
}
