package ptxsim_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// scene is a kernel with one outcome.
type scene struct {
	name    string
	text    string
	grid    int // blocks; 0: 1
	block   int // threads; 0: 64
	dynamic int // bytes of shared memory
	check   ptxsim.Check
	words   []string // in the text of the fault
}

// play runs scenes over 4,096 bytes of zeros. A scene without a check must run without a fault.
func play(t *testing.T, scenes []scene) {
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			// One goroutine, because blocks that are in a race would also be one for Go.
			d := ptxsim.NewDevice(ptxsim.Options{Workers: 1, Steps: 20000})
			m := load(t, d, s.text)
			p := alloc(t, d, make([]byte, 4096))
			err := m.Launch("k", one(max(s.grid, 1)), one(choose(s.block == 0, 64, s.block)), s.dynamic, p)
			if s.check != "" {
				fault(t, err, s.check, s.words...)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// shared declares 1,024 bytes of shared memory, of which every thread of 64 writes its 16 bytes at %r5; %r4 is the
// address of the first byte.
func shared(body string) string {
	return ".shared .align 16 .b8 s[1024];\n" + kernel(`
	mov.u32 %r4, s;
	shl.b32 %r5, %r0, 4;
	add.u32 %r5, %r4, %r5;
	st.shared.v4.b32 [%r5], {%r0, %r0, %r0, %r0};
	bar.sync 0;
	xor.b32 %r6, %r0, 1; // a neighbour in the warp
	xor.b32 %r7, %r0, 32; // a thread of the other warp
	shl.b32 %r8, %r6, 4; add.u32 %r8, %r4, %r8;
	shl.b32 %r9, %r7, 4; add.u32 %r9, %r4, %r9;
	`+body)
}

func TestLaunch_Races(t *testing.T) {
	play(t, []scene{
		{name: "reads after a barrier", text: shared("ld.shared.b32 %r10, [%r8]; ld.shared.b32 %r10, [%r9];")},
		{name: "own bytes need no barrier", text: shared("st.shared.b32 [%r5], %r1; ld.shared.b32 %r10, [%r5];")},
		{name: "read after a write of another warp", text: shared(`setp.lt.u32 %p0, %r0, 32;
			@!%p0 st.shared.b32 [%r5], %r1; @%p0 ld.shared.b32 %r10, [%r9];`), check: ptxsim.CheckRace,
			words: []string{"line 31, block [0 0 0], thread [0 0 0]: race", "read of shared memory at 512",
				"write by thread [32 0 0] at line 31"}},
		{name: "write after a read of another warp", text: shared(`setp.lt.u32 %p0, %r0, 32;
			@!%p0 ld.shared.b32 %r10, [%r9]; @%p0 st.shared.b32 [%r5], %r1;`),
			check: ptxsim.CheckRace, words: []string{"write of shared memory", "and read by thread"}},
		{name: "write after a write of another warp", text: shared("st.shared.b32 [%r5], %r1; st.shared.b32 [%r9], %r1;"),
			check: ptxsim.CheckRace, words: []string{"and write by thread"}},
		{name: "barrier between them", text: shared("st.shared.b32 [%r5], %r1; bar.sync 1; ld.shared.b32 %r10, [%r9];")},
		{name: "lockstep is no order", text: shared("st.shared.b32 [%r5], %r1; ld.shared.b32 %r10, [%r8];"),
			check: ptxsim.CheckRace, words: []string{"thread [32 0 0]", "write by thread [33 0 0]"}},
		{name: "a shuffle is no order", text: shared(`st.shared.b32 [%r5], %r1;
			shfl.sync.idx.b32 %r10, %r0, 0, 31, -1; ld.shared.b32 %r10, [%r8];`), check: ptxsim.CheckRace},
		{name: "warp barrier", text: shared("st.shared.b32 [%r5], %r1; bar.warp.sync -1; ld.shared.b32 %r10, [%r8];")},
		{name: "warp barrier is not for other warps", text: shared(`st.shared.b32 [%r5], %r1; bar.warp.sync -1;
			ld.shared.b32 %r10, [%r9];`), check: ptxsim.CheckRace},
		{name: "warp barrier of pairs", text: shared(`st.shared.b32 [%r5], %r1;
			and.b32 %r11, %r0, 30; mov.u32 %r12, 3; shl.b32 %r12, %r12, %r11;
			bar.warp.sync %r12; ld.shared.b32 %r10, [%r8];`)},
		{name: "warp barrier of other pairs", text: shared(`st.shared.b32 [%r5], %r1;
			and.b32 %r11, %r0, 29; and.b32 %r11, %r11, 31; mov.u32 %r12, 5; shl.b32 %r12, %r12, %r11;
			bar.warp.sync %r12; ld.shared.b32 %r10, [%r8];`), check: ptxsim.CheckRace},
		{name: "two lanes write one word", text: shared("st.shared.b32 [%r4], %r1;"), check: ptxsim.CheckRace,
			words: []string{"thread [33 0 0]", "write by thread [32 0 0]"}},
		{name: "halves of a word are apart", text: shared(`mov.b32 {%h0, %h1}, %r0; shl.b32 %r10, %r0, 1;
			add.u32 %r10, %r4, %r10; st.shared.b16 [%r10], %h0; ld.shared.b16 %h1, [%r10];`)},
		{name: "atomics are apart from each other", text: shared("atom.shared.add.u32 %r10, [%r4], 1;")},
		{name: "atomics and a read", text: shared("red.shared.add.u32 [%r4], 1; ld.shared.b32 %r10, [%r4];"),
			check: ptxsim.CheckRace, words: []string{"atomic operation by thread"}},
		{name: "global memory of a block", text: kernel("st.global.b32 [%rd1], %r0; ld.global.b32 %r4, [%rd0];"),
			check: ptxsim.CheckRace,
			words: []string{"thread [1 0 0]", "write by thread [0 0 0]", "byte 0 of the allocation of 4096"}},
		{name: "global memory after a barrier", text: kernel("st.global.b32 [%rd1], %r0; bar.sync 0; ld.global.b32 %r4, [%rd0];")},
		{name: "write after a read of global memory", text: kernel("ld.global.b32 %r4, [%rd0]; st.global.b32 [%rd1], %r0;"),
			check: ptxsim.CheckRace, words: []string{"and read by thread"}},
		{name: "blocks write one word", grid: 3, text: kernel("setp.ne.u32 %p0, %r0, 5; @%p0 bra E; st.global.b32 [%rd0+8], %r0; E:"),
			check: ptxsim.CheckRace,
			words: []string{"block [1 0 0]", "write by block [0 0 0]", "byte 8 of the allocation"}},
		{name: "a block reads what another writes", grid: 2,
			text:  kernel("mad.lo.u32 %r4, %r0, 0, 4; st.global.b32 [%rd1], %r0; ld.global.b32 %r5, [%rd1+256];"),
			check: ptxsim.CheckRace, words: []string{"block [1 0 0]", "read by block [0 0 0]"}},
		{name: "blocks write apart", grid: 4, text: kernel("st.global.b32 [%rd1], %r0;")},
		{name: "blocks share what they read", grid: 4, text: kernel("ld.global.b32 %r4, [%rd0]; st.global.b32 [%rd1+512], %r4;")},
		{name: "blocks add to one word", grid: 4, text: kernel("red.global.add.u32 [%rd0], 1;")},
		{name: "a block reads what another adds to", grid: 2,
			text:  kernel("setp.eq.u32 %p0, %r1, 0; @%p0 red.global.add.u32 [%rd0], 1; @!%p0 ld.global.b32 %r5, [%rd0];"),
			check: ptxsim.CheckRace, words: []string{"atomic operation by block [0 0 0]"}},
		{name: "constant load of what the launch writes",
			text:  kernel("st.global.b32 [%rd1], %r0; ld.global.nc.b32 %r4, [%rd1];"),
			check: ptxsim.CheckRace, words: []string{"ld.global.nc"}},
		{name: "write to what a constant load reads",
			text:  kernel("ld.global.nc.b32 %r4, [%rd1]; st.global.b32 [%rd1], %r0;"),
			check: ptxsim.CheckRace, words: []string{"ld.global.nc"}},
	})
}

func TestLaunch_Accesses(t *testing.T) {
	play(t, []scene{
		{name: "last word", text: kernel("ld.global.b32 %r4, [%rd0+4092];")},
		{name: "after the end", text: kernel("ld.global.b32 %r4, [%rd0+4096];"), check: ptxsim.CheckBounds,
			words: []string{"byte 4096 of the allocation of 4096 bytes", "line 19", "ld.global.b32 %r4, [%rd0+4096]"}},
		{name: "across the end", text: kernel("st.global.v2.b64 [%rd0+4096], {%rd0, %rd0};"), check: ptxsim.CheckBounds},
		{name: "before the start", text: kernel("st.global.b32 [%rd0+-4], %r0;"), check: ptxsim.CheckBounds},
		{name: "no address", text: kernel("mov.u64 %rd2, 16; ld.b32 %r4, [%rd2];"), check: ptxsim.CheckBounds,
			words: []string{"in no allocation"}},
		{name: "word at an odd address", text: kernel("ld.global.b32 %r4, [%rd0+2];"), check: ptxsim.CheckAlign},
		{name: "vector at a word", text: kernel("ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd0+4];"), check: ptxsim.CheckAlign,
			words: []string{"not a multiple of 16"}},
		{name: "after shared memory", text: shared("ld.shared.b32 %r10, [%r4+1024];"), check: ptxsim.CheckBounds,
			words: []string{"at 1024 of 1024 bytes of shared memory"}},
		{name: "before shared memory", text: shared("ld.shared.b32 %r10, [%r4+-4];"), check: ptxsim.CheckBounds},
		{name: "shared memory by a generic address", text: shared("mov.u64 %rd3, s; cvta.shared.u64 %rd3, %rd3; ld.b32 %r10, [%rd3];")},
		{name: "after shared memory by a generic address", text: shared(`mov.u64 %rd3, s; cvta.shared.u64 %rd3, %rd3;
			ld.b32 %r10, [%rd3+1024];`), check: ptxsim.CheckBounds},
		{name: "dynamic shared memory", dynamic: 64, text: ".extern .shared .align 16 .b8 s[];\n" +
			kernel("mov.u32 %r4, s; add.u32 %r4, %r4, %r0; st.shared.b8 [%r4], %r0; ld.shared.u8 %r5, [%r4];")},
		{name: "after dynamic shared memory", dynamic: 60, text: ".extern .shared .align 16 .b8 s[];\n" +
			kernel("mov.u32 %r4, s; add.u32 %r4, %r4, %r0; st.shared.b8 [%r4], %r0;"), check: ptxsim.CheckBounds},
		{name: "after local memory", text: kernel(".local .align 4 .b8 l[32]; st.local.b32 [l+28], %r0; st.local.b32 [l+32], %r0;"),
			check: ptxsim.CheckBounds, words: []string{"local memory", "thread [0 0 0]"}},
		{name: "after constants", text: ".const .align 4 .b32 c[2] = {1, 2};\n" + kernel("ld.const.b32 %r4, [c+8];"),
			check: ptxsim.CheckBounds, words: []string{"constants"}},
		{name: "register without a value", text: kernel("add.u32 %r4, %r5, 1;"), check: ptxsim.CheckUnset, words: []string{"register %r5"}},
		{name: "register with a value in some lanes", text: kernel("setp.lt.u32 %p0, %r0, 3; @%p0 mov.u32 %r5, 1; add.u32 %r4, %r5, 1;"),
			check: ptxsim.CheckUnset, words: []string{"thread [3 0 0]"}},
		{name: "predicate without a value", text: kernel("@%p1 mov.u32 %r4, 1;"), check: ptxsim.CheckUnset},
		{name: "selected operand without a value", text: kernel("setp.lt.u32 %p0, %r0, 3; selp.b32 %r4, %r0, %r5, %p0;"),
			check: ptxsim.CheckUnset, words: []string{"thread [3 0 0]"}},
		{name: "other operand without a value", text: kernel("setp.lt.u32 %p0, %r0, 300; selp.b32 %r4, %r0, %r5, %p0;")},
		{name: "shared memory without a value", text: ".shared .b32 s[64];\n" + kernel("ld.shared.b32 %r4, [s+12];"),
			check: ptxsim.CheckUnset, words: []string{"shared memory at 12"}},
		{name: "atomic on shared memory without a value",
			text:  ".shared .b32 s[64];\n" + kernel("red.shared.add.u32 [s], 1;"),
			check: ptxsim.CheckUnset},
		{name: "division by zero", text: kernel("sub.u32 %r4, %r0, 9; div.u32 %r4, 1, %r4;"), check: ptxsim.CheckUndefined,
			words: []string{"thread [9 0 0]"}},
		{name: "local memory without a value", text: kernel(".local .b32 l[4]; st.local.b32 [l+4], %r0; ld.local.b32 %r4, [l+8];"),
			check: ptxsim.CheckUnset, words: []string{"local memory at 8"}},
		{name: "uniform branch that diverges", text: kernel("setp.lt.u32 %p0, %r0, 7; @%p0 bra.uni E; E:"),
			check: ptxsim.CheckUndefined, words: []string{"by lanes 0x7f and not"}},
		{name: "trap", text: kernel("trap;"), check: ptxsim.CheckUndefined},
		{name: "endless loop", text: kernel("L: add.u32 %r0, %r0, 1; bra L;"), check: ptxsim.CheckSteps, words: []string{"20000"}},
		{name: "endless wait for another lane", text: shared(`setp.eq.u32 %p0, %r0, 0; @%p0 bra L; bra E;
			L: ld.shared.b32 %r10, [%r4]; setp.eq.u32 %p1, %r10, 0; @%p1 bra L; E:`), check: ptxsim.CheckSteps},
	})
}

func TestLaunch_Barriers(t *testing.T) {
	play(t, []scene{
		{name: "in divergent code", text: kernel("setp.lt.u32 %p0, %r0, 7; @%p0 bra L; bra E; L: bar.sync 0; E:"),
			check: ptxsim.CheckBarrier, words: []string{"lanes 0x7f", "are in other code", "bar.sync 0"}},
		{name: "predicate of some lanes", text: kernel("setp.lt.u32 %p0, %r0, 7; @%p0 bar.sync 0;"), check: ptxsim.CheckBarrier},
		{name: "lanes have exited", text: kernel("setp.lt.u32 %p0, %r0, 7; @%p0 exit; bar.sync 0;"), check: ptxsim.CheckBarrier,
			words: []string{"exited"}},
		{name: "a warp has exited", text: kernel("setp.ge.u32 %p0, %r0, 32; @%p0 exit; bar.sync 0;"), check: ptxsim.CheckBarrier,
			words: []string{"32 of 64 threads", "warp 1 has exited"}},
		{name: "a warp at another barrier", text: kernel("setp.ge.u32 %p0, %r0, 32; @%p0 bra L; bar.sync 0; bra E; L: bar.sync 3; E:"),
			check: ptxsim.CheckBarrier, words: []string{"warp 1 waits at barrier 3, line"}},
		{name: "uniform branches to two barriers",
			text: kernel("setp.ge.u32 %p0, %r0, 32; @%p0 bra L; bar.sync 0; bra E; L: bar.sync 0; E:")},
		{name: "barrier of one warp", text: kernel("setp.ge.u32 %p0, %r0, 32; @%p0 bra E; bar.sync 1, 32; E:")},
		{name: "counts differ", text: kernel("setp.ge.u32 %p0, %r0, 32; @%p0 bra L; bar.sync 1, 64; bra E; L: bar.sync 1, 32; E:"),
			check: ptxsim.CheckBarrier, words: []string{"elsewhere"}},
		{name: "count of part of a warp", text: kernel("mov.u32 %r4, 40; bar.sync 1, %r4;"),
			check: ptxsim.CheckBarrier},
		{name: "no such barrier", text: kernel("mov.u32 %r4, 16; bar.sync %r4;"), check: ptxsim.CheckBarrier},
		{name: "block of part of a warp", block: 40, text: kernel("bar.sync 0; bar.sync 0;")},
		// Warp 0 produces and does not wait; warp 1 waits.
		{name: "arrive and wait", text: shared(`setp.ge.u32 %p0, %r0, 32; @%p0 bra L;
			st.shared.b32 [%r5], 7; bar.arrive 2, 64; bra E; L: bar.sync 2, 64; ld.shared.b32 %r10, [%r9]; E:`)},
		{name: "arrive orders one way only", text: shared(`setp.ge.u32 %p0, %r0, 32; @%p0 bra L;
			bar.arrive 2, 64; st.shared.b32 [%r5], 7; bra E; L: bar.sync 2, 64; ld.shared.b32 %r10, [%r9]; E:`),
			check: ptxsim.CheckRace},
		{name: "shuffle in divergent code", text: kernel(`setp.lt.u32 %p0, %r0, 7; @!%p0 bra E;
			shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1; E:`), check: ptxsim.CheckWarp, words: []string{"lanes 0xffffff80"}},
		{name: "shuffle of a group in divergent code", text: kernel(`and.b32 %r5, %r0, 31; setp.lt.u32 %p0, %r5, 8; @!%p0 bra E;
			shfl.sync.bfly.b32 %r4, %r0, 1, 31, 0xff; E:`)},
		{name: "shuffle from a lane that does not take part", text: kernel(`and.b32 %r5, %r0, 31; setp.lt.u32 %p0, %r5, 8;
			@!%p0 bra E; shfl.sync.bfly.b32 %r4, %r0, 8, 31, 0xff; E:`), check: ptxsim.CheckWarp, words: []string{"reads lane 8"}},
		{name: "lane outside of its mask", text: kernel("vote.sync.ballot.b32 %r4, !%p0, 0xffff;"),
			check: ptxsim.CheckUnset},
		{name: "vote of a lane outside of its mask", text: kernel("setp.lt.u32 %p0, %r0, 7; vote.sync.ballot.b32 %r4, %p0, 0xffff;"),
			check: ptxsim.CheckWarp, words: []string{"does not contain lane 16"}},
		{name: "mma of part of a warp", block: 16, text: mmaKernel(elements[0], 16, 0), check: ptxsim.CheckWarp},
	})
}

// async copies 16 bytes of global memory for each thread to the shared memory of shared, without a barrier before.
func async(body string) string {
	return ".shared .align 16 .b8 s[2048];\n" + kernel(`
	mov.u32 %r4, s;
	shl.b32 %r5, %r0, 4;
	cvt.u64.u32 %rd2, %r5;
	add.u64 %rd2, %rd0, %rd2;
	add.u32 %r5, %r4, %r5;
	xor.b32 %r9, %r5, 512; // the bytes of a thread of the other warp
	`+body)
}

func TestLaunch_AsyncCopies(t *testing.T) {
	const issue = "cp.async.cg.shared.global [%r5], [%rd2], 16; cp.async.commit_group;\n"
	const second = "cp.async.ca.shared.global.L2::128B [%r5+1024], [%rd2+1024], 4; cp.async.commit_group;\n"
	play(t, []scene{
		{name: "wait, own bytes", text: async(issue + "cp.async.wait_group 0; ld.shared.b32 %r6, [%r5];")},
		{name: "wait_all without a commit", text: async("cp.async.cg.shared.global [%r5], [%rd2], 16; cp.async.wait_all; ld.shared.b32 %r6, [%r5];")},
		{name: "no wait", text: async(issue + "ld.shared.b32 %r6, [%r5];"), check: ptxsim.CheckAsync,
			words: []string{"line 28", "not waited for", "thread [0 0 0]"}},
		{name: "a barrier is no wait", text: async(issue + "bar.sync 0; ld.shared.b32 %r6, [%r9];"),
			check: ptxsim.CheckAsync},
		{name: "no commit", text: async("cp.async.cg.shared.global [%r5], [%rd2], 16; cp.async.wait_group 0; ld.shared.b32 %r6, [%r5];"),
			check: ptxsim.CheckAsync},
		{name: "wait for the first group", text: async(issue + second + "cp.async.wait_group 1; ld.shared.b32 %r6, [%r5];")},
		{name: "the second group is not waited for", text: async(issue + second + "cp.async.wait_group 1; ld.shared.b32 %r6, [%r5+1024];"),
			check: ptxsim.CheckAsync},
		{name: "wait and no barrier, bytes of another", text: async(issue + "cp.async.wait_group 0; ld.shared.b32 %r6, [%r9];"),
			check: ptxsim.CheckUnset},
		{name: "bytes of another again and no barrier", text: async(issue +
			"cp.async.wait_group 0; bar.sync 0;" + issue +
			"cp.async.wait_group 0; ld.shared.b32 %r6, [%r9];"), check: ptxsim.CheckRace},
		{name: "wait and barrier, bytes of another", text: async(issue + "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r6, [%r9];")},
		{name: "issue over bytes that another reads", text: async(issue + `cp.async.wait_group 0; bar.sync 0;
			setp.lt.u32 %p0, %r0, 32; @!%p0 ld.shared.b32 %r6, [%r9]; @%p0 ` + issue),
			check: ptxsim.CheckRace, words: []string{"asynchronous write", "read by thread"}},
		{name: "write over a copy in flight", text: async(issue + "st.shared.b32 [%r5], %r0;"),
			check: ptxsim.CheckAsync},
		{name: "source outside of the allocation", text: async("cp.async.cg.shared.global [%r5], [%rd2+4096], 16;"), check: ptxsim.CheckBounds},
		{name: "source of no bytes outside of the allocation",
			text: async("cp.async.cg.shared.global [%r5], [%rd2+4096], 16, 0; cp.async.wait_all; ld.shared.b32 %r6, [%r5];")},
		{name: "destination outside of shared memory", text: async("cp.async.cg.shared.global [%r5+2048], [%rd2], 16;"), check: ptxsim.CheckBounds},
		{name: "destination at a word", text: async("cp.async.cg.shared.global [%r5+4], [%rd2], 16;"), check: ptxsim.CheckAlign},
		{name: "source that another block writes", grid: 2,
			text:  async("st.global.b32 [%rd1+1024], %r0;" + "cp.async.cg.shared.global [%r5], [%rd0+1024], 16; cp.async.wait_all;"),
			check: ptxsim.CheckRace},
	})
}
