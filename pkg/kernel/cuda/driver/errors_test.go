package driver_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Without a driver the error says which library is missing, and keeps the reason.
func TestNoDriverError_KeepsTheReason(t *testing.T) {
	var err error = &driver.NoDriverError{Library: "libcuda.so.1", Err: fs.ErrNotExist}
	if want := "no NVIDIA driver: open libcuda.so.1: file does not exist"; err.Error() != want {
		t.Errorf("the error is %q, want %q", err, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the reason is lost")
	}
}
