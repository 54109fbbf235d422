//go:build cuda && linux && (amd64 || arm64)

package verb

import (
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/libcuda"
)

// openDevice returns the kernel set of a GPU, which may allocate so many bytes; 0 means what is free.
func openDevice(number int, kv kernel.KVType, memory int64) (kernel.Set[float32], func(), error) {
	cache := filepath.Join(os.TempDir(), "lamina-cuda")
	if user, err := os.UserCacheDir(); err == nil {
		cache = filepath.Join(user, "lamina", "cuda")
	}
	d, err := libcuda.Open(cache)
	if err != nil {
		return nil, nil, fault.Field("device", "cuda:%d: %v", number, err)
	}
	set, err := cuda.Open(d, cuda.Config{Number: number, KV: kv, Memory: memory})
	if err != nil {
		return nil, nil, fault.Field("device", "cuda:%d: %v", number, err)
	}
	return set, func() { _ = set.Close() }, nil // the process ends: the driver has nothing to give back to it
}
