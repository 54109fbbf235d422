//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// libraries are the names under which the driver's library is installed.
var libraries = []string{"libcuda.so.1", "libcuda.so"}

// library is an open library and its functions.
type library struct {
	handle    uintptr
	mu        sync.Mutex
	functions map[string]uintptr
}

// open opens the first library that is there.
func open(names []string) (*library, error) {
	var first error
	for _, name := range names {
		handle, err := purego.Dlopen(name, purego.RTLD_NOW|purego.RTLD_LOCAL)
		if err == nil {
			return &library{handle: handle, functions: map[string]uintptr{}}, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// find returns the address of a function, or 0 if the library has none of that name.
func (l *library) find(name string) uintptr {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.functions[name]
	if !ok {
		f, _ = purego.Dlsym(l.handle, name)
		l.functions[name] = f
	}
	return f
}

// Driver is an open driver.
type Driver struct {
	lib            *library
	version, count int
	nvml           *nvml // nil if there is none
}

// Codes of results.
const (
	outOfMemory = 2
	noDevice    = 100
	notFound    = 500
	notReady    = 600
)

// Open opens and initialises the driver. Kernels that it has compiled are kept in the folder cache, unless
// CUDA_CACHE_PATH names another one. The error is a *driver.NoDriverError without a driver.
func Open(cache string) (*Driver, error) { return openNamed(libraries, cache) }

func openNamed(names []string, cache string) (*Driver, error) {
	lib, err := open(names)
	if err != nil {
		return nil, &driver.NoDriverError{Library: names[0], Err: err}
	}
	if os.Getenv("CUDA_CACHE_PATH") == "" && cache != "" {
		if err := os.MkdirAll(cache, 0o700); err != nil {
			return nil, fmt.Errorf("make the cache of compiled kernels: %w", err)
		}
		if err := os.Setenv("CUDA_CACHE_PATH", filepath.Clean(cache)); err != nil {
			return nil, fmt.Errorf("set CUDA_CACHE_PATH: %w", err)
		}
	}
	d := &Driver{lib: lib}
	var version int32
	if err := d.call("cuDriverGetVersion", uintptr(unsafe.Pointer(&version))); err != nil {
		return nil, err
	}
	if d.version = int(version); d.version < driver.Oldest {
		return d, nil // nothing else is asked of it
	}
	var count int32
	err = keepSignals(func() error {
		if err := d.call("cuInit", 0); err != nil {
			return err
		}
		return d.call("cuDeviceGetCount", uintptr(unsafe.Pointer(&count)))
	})
	if code(err) == noDevice {
		err, count = nil, 0
	}
	if err != nil {
		return nil, err
	}
	if d.count = int(count); d.count > 0 {
		d.nvml = openNVML()
	}
	return d, nil
}

// Version returns the version of CUDA that the driver supports.
func (d *Driver) Version() int { return d.version }

// Count returns the number of devices.
func (d *Driver) Count() int { return d.count }

// call calls a function of the library. Arguments that point to Go memory do so in the call itself.
//
//go:uintptrescapes
func (d *Driver) call(name string, args ...uintptr) error {
	f := d.lib.find(name)
	if f == 0 {
		return &driver.CallError{Call: name, Code: notFound, Name: "CUDA_ERROR_NOT_FOUND",
			Text: "the driver has no such function"}
	}
	r, _, _ := purego.SyscallN(f, args...)
	if code := int(int32(r)); code != 0 {
		return d.failure(name, code)
	}
	return nil
}

// failure is the error of a code.
func (d *Driver) failure(call string, code int) error {
	return &driver.CallError{Call: call, Code: code, Name: d.text("cuGetErrorName", code),
		Text: d.text("cuGetErrorString", code)}
}

// text returns the driver's text for a code.
func (d *Driver) text(function string, code int) string {
	f, p := d.lib.find(function), uintptr(0)
	if f == 0 {
		return "error"
	}
	if r, _, _ := purego.SyscallN(f, uintptr(code), uintptr(unsafe.Pointer(&p))); r != 0 || p == 0 {
		return "unknown error"
	}
	var out []byte
	for at := pointer(p); len(out) < 256 && *(*byte)(at) != 0; at = unsafe.Add(at, 1) {
		out = append(out, *(*byte)(at))
	}
	return string(out)
}

// pointer is memory that is not Go's.
func pointer(a uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&a)) }

// cut returns the text before the first zero byte.
func cut(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
