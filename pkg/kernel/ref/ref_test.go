package ref_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/kerneltest"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

func TestSet_KeepsTheContract(t *testing.T) { kerneltest.Run(t, ref.New[float32]()) }
