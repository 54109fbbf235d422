package main

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// kernelSet makes the kernel set that --kernels names and the function that ends
// it. Threads bounds the set's own goroutines; 0 is one a processor. The reference
// set has none of its own: it spreads over what the runtime is given.
func kernelSet(name string, threads int) (kernel.Set[float32], func(), error) {
	if threads < 0 {
		return nil, nil, fault.Field("threads", "%d threads: want one or more, or 0 for one a processor", threads)
	}
	switch name {
	case "ref":
		return ref.New[float32](), func() {}, nil
	case "cpu":
		set := cpu.New(threads)
		return set, set.Close, nil
	}
	return nil, nil, fault.Field("kernels", "no kernel set is called %q: cpu and ref are", name)
}
