package gradbus_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory_KeepsTheContract(t *testing.T) {
	gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
		b := gradbus.NewMemory(limit)
		t.Cleanup(func() { b.Close() })
		return b
	})
}
