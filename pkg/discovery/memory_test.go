package discovery_test

import (
	"fmt"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/discoverytest"
)

func TestMemory_KeepsTheContract(t *testing.T) {
	defer leak.Check(t)
	n := 0
	discoverytest.Run(t, discovery.NewMemory(), func(*testing.T) (string, func()) {
		n++
		return fmt.Sprintf("mem:%d", n), func() {}
	})
}

func TestMemory_JoinsAndLeaves_LeaveNoGhost(t *testing.T) {
	discoverytest.Churn(t, discovery.NewMemory(), 1000, func(i int) string { return fmt.Sprintf("mem:%d", i) })
}
