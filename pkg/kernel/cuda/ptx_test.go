package cuda_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
)

func TestKernels_AreInTheirModules(t *testing.T) {
	types := map[cuda.ParamType]string{cuda.Pointer: "u64", cuda.Uint32: "u32", cuda.Float32: "f32"}
	for _, k := range cuda.Kernels() {
		text, err := cuda.Text(k.Module)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range k.Params {
			want = append(want, fmt.Sprintf("\t.param .%s %s", types[p.Type], p.Name))
		}
		head := fmt.Sprintf(".visible .entry %s(\n%s\n)\n.maxntid %d, 1, 1\n", k.Name, strings.Join(want, ",\n"),
			k.Threads)
		if !strings.Contains(text, head) {
			t.Errorf("%s.ptx has no kernel with the head\n%s", k.Module, head)
		}
	}
	if _, err := cuda.Text("no such module"); err == nil {
		t.Error("a module that does not exist has text")
	}
}
