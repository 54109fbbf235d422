package gradbus_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
)

func TestMemory_KeepsTheContract(t *testing.T) {
	gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
		b := gradbus.NewMemory(limit)
		t.Cleanup(func() { b.Close() })
		return b
	})
}
