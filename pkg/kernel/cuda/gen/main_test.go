package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGenerate_FilesAreTheCommittedOnes(t *testing.T) {
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the generator writes (%v): run 'make kernels' and commit the result", name, err)
		}
		for i, line := range strings.Split(string(want), "\n") {
			if strings.ContainsFunc(line, func(r rune) bool { return r > 126 }) {
				t.Errorf("%s:%d: ptxas accepts ASCII only: %q", name, i+1, line)
			}
		}
	}
	committed, err := filepath.Glob("../*.ptx")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range committed {
		if files[filepath.Base(name)] == nil {
			t.Errorf("%s: the generator does not write it", name)
		}
	}
}

func TestKernel_LoopsBranchesAndRegistersAreNumbered(t *testing.T) {
	m := &Module{Name: "m", Doc: "a module"}
	k := m.Kernel("k", "adds", 32, Ptr("y"), Int("n"))
	at := k.SharedAt(5)
	next := k.SharedAt(4)
	k.For(N(0), k.IntParam("n"), N(2), func(i U32) {
		k.If(k.Cmp("lt", i, N(3)), func() { k.StSU(at, 4, i) })
	})
	k.StSU(next, 0, N(1))
	got := m.Text()
	for _, want := range []string{".visible .entry k(\n\t.param .u64 y,\n\t.param .u32 n\n)\n.maxntid 32, 1, 1\n",
		".shared .align 16 .b8 shared[32];", "add.u32 %r2, %r1, 16;", "\tsetp.ge.u32 %p0, %r4, %r3;\n\t@%p0 bra DONE_2;\n",
		"  @!%p1 bra END_3;\n\t    st.shared.u32 [%r0+4], %r4;\nEND_3:\n", "\t@%p0 bra LOOP_1;\nDONE_2:\n",
		".reg .b32 %r<5>;"} {
		if !strings.Contains(got, want) {
			t.Errorf("the text lacks %q:\n%s", want, got)
		}
	}
}
