//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"fmt"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// nvml is NVIDIA's management library.
type nvml struct{ lib *library }

// openNVML returns the library, or nil if it is not there or does not work.
func openNVML() *nvml {
	lib, err := open([]string{"libnvidia-ml.so.1"})
	if err != nil {
		return nil
	}
	n := &nvml{lib}
	if !n.call("nvmlInit_v2") {
		return nil
	}
	return n
}

// call reports whether a call succeeds.
//
//go:uintptrescapes
func (n *nvml) call(name string, args ...uintptr) bool {
	f := n.lib.find(name)
	if f == 0 {
		return false
	}
	r, _, _ := purego.SyscallN(f, args...)
	return int32(r) == 0
}

// device returns the library's handle of a device, or 0.
func (n *nvml) device(uuid [16]byte) (handle uintptr) {
	name := fmt.Appendf(nil, "GPU-%x-%x-%x-%x-%x\x00", uuid[:4], uuid[4:6], uuid[6:8], uuid[8:10], uuid[10:])
	if !n.call("nvmlDeviceGetHandleByUUID", uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&handle))) {
		return 0
	}
	return handle
}

// usage reads what a device reports.
func (n *nvml) usage(device uintptr) driver.Usage {
	u := driver.Unknown
	var rates struct{ gpu, memory uint32 }
	var celsius, milliwatts uint32
	if n.call("nvmlDeviceGetUtilizationRates", device, uintptr(unsafe.Pointer(&rates))) {
		u.Utilisation = float64(rates.gpu) / 100
	}
	if n.call("nvmlDeviceGetTemperature", device, 0, uintptr(unsafe.Pointer(&celsius))) {
		u.Celsius = float64(celsius)
	}
	if n.call("nvmlDeviceGetPowerUsage", device, uintptr(unsafe.Pointer(&milliwatts))) {
		u.Watts = float64(milliwatts) / 1000
	}
	return u
}
