package verb

import (
	"cmp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// KernelSet makes the kernel set that the flags choose and the function that ends it.
// Threads bounds the set's own goroutines. The reference set has none of its own: it
// spreads over what the runtime is given.
func (f *KernelFlags) KernelSet() (kernel.Set[float32], func(), error) {
	if f.Threads < 0 {
		return nil, nil, fault.Field("threads", "%d threads: want one or more, or 0 for one a processor", f.Threads)
	}
	kv, ok := kernel.ParseKVType(cmp.Or(f.KVType, "auto"))
	if !ok {
		return nil, nil, fault.Field("kv-type", "caches cannot store %q: they can f32, f16, q8 and auto", f.KVType)
	}
	switch {
	case f.Kernels == "ref" && f.Instructions != "":
		return nil, nil, fault.Field("instructions", "the reference set has none to choose")
	case f.Kernels == "ref":
		return ref.New[float32]().StoringKV(kv.For(0)), func() {}, nil
	case f.Kernels != "cpu":
		return nil, nil, fault.Field("kernels", "no kernel set is called %q: cpu and ref are", f.Kernels)
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
