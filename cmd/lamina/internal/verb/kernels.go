package verb

import (
	"cmp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// KernelSet returns the kernel set that the flags choose, and a function that closes it. Threads is
// the size of the worker pool of the set. The reference set has no worker pool and uses GOMAXPROCS
// goroutines.
func (f *KernelFlags) KernelSet() (kernel.Set[float32], func(), error) {
	if f.Threads < 0 {
		return nil, nil, fault.Field("threads", "%d threads: want one or more, or 0 for one for each processor",
			f.Threads)
	}
	kv, ok := kernel.ParseKVType(cmp.Or(f.KVType, "auto"))
	if !ok {
		return nil, nil, fault.Field("kv-type", "unknown type %q: want f32, f16, q8 or auto", f.KVType)
	}
	number, gpu, err := deviceNumber(f.Device)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case gpu && f.Kernels == "ref":
		return nil, nil, fault.Field("kernels", "the ref kernel set computes on the processor, not on %s", f.Device)
	case gpu && f.Instructions != "":
		return nil, nil, fault.Field("instructions", "%s has no choice of instructions", f.Device)
	case gpu:
		return openDevice(number, kv, f.DeviceMemory)
	case f.Kernels == "ref" && f.Instructions != "":
		return nil, nil, fault.Field("instructions", "the ref kernel set has no choice of instructions")
	case f.Kernels == "ref":
		return ref.New[float32]().StoringKV(kv.For(0)), func() {}, nil
	case f.Kernels != "cpu":
		return nil, nil, fault.Field("kernels", "unknown kernel set %q: want cpu or ref", f.Kernels)
	case f.Instructions == "":
		set := cpu.New(f.Threads)
		return set.StoringKV(kv), set.Close, nil
	}
	set, err := cpu.Open(f.Threads, f.Instructions)
	if err != nil {
		return nil, nil, fault.Field("instructions", "%v", err)
	}
	return set.StoringKV(kv), set.Close, nil
}
