package gradbus_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestMemory_KeepsTheContract(t *testing.T) {
	gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
		b := gradbus.NewMemory(limit)
		t.Cleanup(func() { b.Close() })
		return b
	})
}
