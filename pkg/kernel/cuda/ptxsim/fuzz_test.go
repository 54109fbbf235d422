package ptxsim_test

import (
	"errors"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// FuzzLoad loads any text, and runs what loads with no arguments for a few steps. Errors must be typed.
func FuzzLoad(f *testing.F) {
	f.Add(header + shared("bar.sync 1; ld.shared.b32 %r10, [%r9];"))
	f.Add(header + async("cp.async.cg.shared.global [%r5], [%rd2], 16; cp.async.wait_all;"))
	f.Add(header + mmaKernel(elements[0], 16, 0))
	f.Add(header + ".const .align 4 .f32 c[2] = {0f3F800000, -1.5};\n.global .u64 g[4];\n.visible .entry k() .maxntid 32 {\n" +
		".reg .b32 a<4>; .reg .pred p;\nL: mov.u32 a0, %tid.x; setp.lt.u32 p, a0, 3; @!p bra L; { .reg .b32 a1; " +
		"mov.b32 a1, {a2, a3}; }\nret; }")
	f.Fuzz(func(t *testing.T, text string) {
		d := ptxsim.NewDevice(ptxsim.Options{Memory: 1 << 20, Workers: 1, Steps: 200})
		m, err := d.Load(text)
		if err != nil {
			var source *ptxsim.SourceError
			if !errors.As(err, &source) && !errors.Is(err, ptxsim.ErrMemory) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		for _, name := range m.Kernels() {
			err := m.Launch(name, one(1), one(32), 0)
			var fault *ptxsim.Fault
			if err != nil && !errors.As(err, &fault) && !errors.Is(err, ptxsim.ErrArguments) &&
				!errors.Is(err, ptxsim.ErrShape) {
				t.Fatalf("error of type %T: %v", err, err)
			}
		}
	})
}
