package ptxsim_test

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
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

var tokens = regexp.MustCompile(`[%\w.:$]+|\s+|.`)

// Programs whose tokens were dropped, doubled, or replaced by others load or are refused, and never panic.
func TestLoad_SurvivesDamage(t *testing.T) {
	seeds := []string{shared("bar.sync 1; ld.shared.b32 %r10, [%r9]; red.shared.add.u32 [%r4], 1;"),
		async("cp.async.cg.shared.global [%r5], [%rd2], 16, %r0; cp.async.commit_group; cp.async.wait_group 1;"),
		mmaKernel(elements[0], 16, 0), mmaKernel(elements[3], 32, 0),
		kernel(`shfl.sync.up.b32 %r5|%p0, %r4, 1, 31, -1; vote.sync.ballot.b32 %r6, %p0, -1; lop3.b32 %r6, %r6, 1, 2, 7;
	setp.lt.and.s32 %p1|%p2, %r4, 7, !%p0; cvt.rn.bf16x2.f32 %r6, %f0, %f1; bfi.b32 %r6, %r6, 1, 2, 3;
	mov.b64 {%r1, %r2}, %rd1;
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r1, %r2}, [%r3]; bar.red.popc.u32 %r1, 0, %p0; activemask.b32 %r1;
	atom.global.cas.b32 %r1, [%rd0], 1, 2; dp4a.s32.u32 %r1, %r2, %r3, %r4; prmt.b32 %r1, %r2, %r3, 0x5410; selp.f32 %f0, %f1, 1.0, %p0;`),
		".const .align 4 .f32 c[2] = {1.0, 2.0};\n.global .u64 g;\n.extern .shared .b8 d[];\n" + kernel(".local .b32 l[2]; ld.const.f32 %f0, [c+4];")}
	var all []string
	for _, s := range seeds {
		all = append(all, tokens.FindAllString(s, -1)...)
	}
	all = append(all, "0", "-1", "99999999999", "{", "}", "[", "]", "_",
		"%r999", ".v4", "0f7fffffff", "!", "|", "@", "\"")
	r := rand.New(rand.NewPCG(1, 2))
	loaded := 0
	for i := range 3000 {
		text := tokens.FindAllString(seeds[i%len(seeds)], -1)
		for range 1 + r.IntN(3) {
			at := r.IntN(len(text))
			switch r.IntN(3) {
			case 0:
				text = slices.Delete(text, at, at+1)
			case 1:
				text = slices.Insert(text, at, all[r.IntN(len(all))])
			default:
				text[at] = all[r.IntN(len(all))]
			}
		}
		d := ptxsim.NewDevice(ptxsim.Options{Memory: 1 << 20, Workers: 1, Steps: 200})
		m, err := d.Load(header + strings.Join(text, ""))
		var source *ptxsim.SourceError
		if err != nil {
			if !errors.As(err, &source) && !errors.Is(err, ptxsim.ErrMemory) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			continue
		}
		loaded++
		for _, name := range m.Kernels() {
			var fault *ptxsim.Fault
			err := m.Launch(name, one(1), one(32), 0, uint64(4096))
			if err != nil && !errors.As(err, &fault) && !errors.Is(err, ptxsim.ErrArguments) {
				t.Fatalf("error of type %T: %v", err, err)
			}
		}
	}
	if loaded < 100 || loaded > 2900 {
		t.Errorf("%d of 3000 damaged programs load, so that the damage tests little", loaded)
	}
}
