//go:build cuda && linux && (amd64 || arm64)

package testdevice

import (
	"sync"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/libcuda"
)

// openReal opens the driver's library once in a process.
var openReal = sync.OnceValues(func() (driver.Driver, error) {
	d, err := libcuda.Open("")
	if err != nil {
		return nil, err
	}
	return d, nil
})
