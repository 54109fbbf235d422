package ptxsim_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// benchmark launches a kernel and reports the time of a warp instruction of the loop that the body is.
func benchmark(b *testing.B, before, body string) {
	d := ptxsim.NewDevice(ptxsim.Options{})
	m := load(b, d, ".shared .align 16 .b8 s[16384];\n"+kernel(`.reg .b32 %i; mov.u32 %i, 0; mov.u32 %r5, 3; mov.b32 %f1, 0f3F800000;
	mov.b32 %f0, 0f00000000; mov.b32 %f2, %f0; mov.b32 %f3, %f0; mov.b32 %f4, %f0; mov.b32 %f5, %f0; mov.b32 %r4, 0;
	`+before+`
L:	`+body+`
	add.u32 %i, %i, 1; setp.lt.u32 %p0, %i, 100; @%p0 bra L;`))
	p := alloc(b, d, make([]byte, 1<<16))
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Launch("k", one(4), one(128), 0, p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1600, "ns/warp-pass")
}

func BenchmarkLaunch(b *testing.B) {
	b.Run("integer", func(b *testing.B) { benchmark(b, "", "mad.lo.u32 %r4, %r4, %r5, %r0; xor.b32 %r4, %r4, %r5;") })
	b.Run("float", func(b *testing.B) { benchmark(b, "", "fma.rn.f32 %f0, %f0, %f1, %f1; mul.f32 %f2, %f0, %f1;") })
	b.Run("global", func(b *testing.B) { benchmark(b, "", "ld.global.b32 %r6, [%rd1];") })
	b.Run("global4", func(b *testing.B) {
		benchmark(b, "mul.wide.u32 %rd2, %r3, 16; add.u64 %rd2, %rd0, %rd2;", "ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%rd2];")
	})
	b.Run("shared", func(b *testing.B) {
		benchmark(b, "mov.u32 %r7, s; shl.b32 %r8, %r0, 2; add.u32 %r7, %r7, %r8;", "st.shared.b32 [%r7], %r0; ld.shared.b32 %r6, [%r7];")
	})
	b.Run("mma", func(b *testing.B) {
		benchmark(b, "mov.b32 %r6, 0x3f803f80;", `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5},
		{%r6, %r6, %r6, %r6}, {%r6, %r6}, {%f2, %f3, %f4, %f5};`)
	})
}
