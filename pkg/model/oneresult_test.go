package model_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestStage_OneResult checks that the logits of a sequence have the same bits with every
// instruction set, number of threads, prefill chunk, batch and number of stages, for every
// quantised type, several architectures and every type of KV cache.
func TestStage_OneResult(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(shared(t, "models/quant-types"), "q-*.gguf"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	for _, name := range []string{"gemma3", "mixtral", "gpt-oss-mxfp4", "smollm3", "gpt2"} {
		paths = append(paths, shared(t, "models/tiny", name))
	}
	kinds := []kernel.KVType{kernel.KVF16, kernel.KVQ8, kernel.KVFull}
	for i, path := range paths {
		kind := kinds[i%len(kinds)]
		t.Run(fmt.Sprintf("%s, %v", filepath.Base(path), kind), func(t *testing.T) {
			files := open(t, path)
			r := rand.New(rand.NewPCG(uint64(i), 1))
			ids := random(r, files, 50)
			run := func(threads int, instructions string, stages int,
				body func(c *chain[float32]) []float32) []float32 {
				set, err := cpu.Open(threads, instructions)
				if err != nil {
					t.Fatal(err)
				}
				defer set.Close()
				return body(newChain(t, files, kernel.Set[float32](set.StoringKV(kind)), stages))
			}
			whole := func(c *chain[float32]) []float32 { return c.run(t, part[float32]{c.sequence(), ids, 0}) }
			fastest := cpu.Instructions()[0]
			want := run(1, fastest, 1, whole)
			check := func(what string, got []float32) {
				t.Helper()
				if !slices.Equal(got, want) {
					t.Errorf("%s: other bits", what)
				}
			}
			for _, instructions := range cpu.Instructions()[1:] {
				check(instructions, run(2, instructions, 1, whole))
			}
			check("3 threads, 2 stages", run(3, fastest, 2, whole))
			check("a row at a time", run(2, fastest, 1, func(c *chain[float32]) (out []float32) {
				seq := c.sequence()
				for pos := range ids {
					out = c.run(t, part[float32]{seq, ids[pos : pos+1], pos})
				}
				return out
			}))
			check("chunks in a batch of 64", run(2, fastest, 1, func(c *chain[float32]) (out []float32) {
				seq := c.sequence()
				for pos, n := 0, 0; pos < len(ids); pos += n {
					n = min(1+r.IntN(20), len(ids)-pos)
					batch := []part[float32]{{seq, ids[pos : pos+n], pos}}
					for range 63 {
						batch = append(batch, part[float32]{c.sequence(), random(r, files, 1+r.IntN(3)), 0})
					}
					out = c.run(t, batch...)[:len(want)]
					for _, p := range batch[1:] {
						p.seq[0].Free()
					}
				}
				return out
			}))
		})
	}
}

func random(r *rand.Rand, f *model.Files, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(f.Spec.Vocab))
	}
	return ids
}
