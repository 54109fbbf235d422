package discovery_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/discoverytest"
)

func TestMemory_KeepsTheContract(t *testing.T) {
	defer goleak.VerifyNone(t)
	discoverytest.Run(t, discovery.NewMemory(), func(*testing.T) (string, func()) { return "mem:x", func() {} })
}
