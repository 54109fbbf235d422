//go:build !cuda || !linux || (!amd64 && !arm64)

package verb

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// cudaProgram is this program with the driver of GPUs.
const cudaProgram = "lamina-cuda"

// openDevice starts lamina-cuda in the place of this process, with the same arguments: a static binary cannot open the
// driver's library. It returns only if that fails.
func openDevice(number int, _ kernel.KVType, _ int64) (kernel.Set[float32], func(), error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return nil, nil, fault.Field("device", "cuda:%d: GPUs need linux on amd64 or arm64, this is %s on %s", number,
			runtime.GOOS, runtime.GOARCH)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, err, "find the program of this process")
	}
	beside := filepath.Join(filepath.Dir(exe), cudaProgram)
	if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fault.Field("device", "cuda:%d needs %s, which does not lie in %s: take it from the release, or "+
			"run make lamina-cuda", number, cudaProgram, filepath.Dir(exe))
	}
	err = syscall.Exec(beside, append([]string{beside}, os.Args[1:]...), os.Environ())
	return nil, nil, fault.Field("device", "cuda:%d: start %s: %v", number, beside, err)
}
