//go:build !cuda || !linux || (!amd64 && !arm64)

package testdevice

import (
	"errors"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// openReal fails: this program cannot open the driver's library.
func openReal() (driver.Driver, error) {
	return nil, errors.New(Variable + " names a GPU, but this program is built without the tag cuda")
}
