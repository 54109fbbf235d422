package model_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// BenchmarkForward_MixedAdapters compares steps of one token for each of some sequences, and steps of prompts, of a
// base alone with the same steps over the base and four adapters (ranks 8 and 16, on all matrices of the blocks).
// Steps alternate, and the medians count. The model is the chat model, or the one that LAMINA_BENCH_MODEL names. The
// processor time of one thread is nearly the same on a busy machine as on a calm one.
func BenchmarkForward_MixedAdapters(b *testing.B) {
	file := os.Getenv("LAMINA_BENCH_MODEL")
	if file == "" {
		file = shared(b, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
	}
	files := open(b, file)
	for _, instructions := range cpu.Instructions() {
		for _, of := range []struct{ sequences, rows int }{{64, 1}, {32, 1}, {13, 1}, {16, 16}, {5, 16}} {
			for _, threads := range []int{1, 2} {
				name := fmt.Sprintf("%s/%d rows/%d threads", instructions, of.sequences, threads)
				if of.rows > 1 {
					name = fmt.Sprintf("%s/%d prompts of %d/%d threads", instructions, of.sequences, of.rows, threads)
				}
				b.Run(name, func(b *testing.B) {
					set, err := cpu.Open(threads, instructions)
					if err != nil {
						b.Fatal(err)
					}
					defer set.Close()
					measureAdapters(b, newChain(b, files, set, 1), of.sequences, of.rows)
				})
			}
		}
	}
}

func measureAdapters(b *testing.B, c *chain[float32], sequences, rows int) {
	const context = 32
	s := c.stages[0]
	c.caches[0] = kvcache.New(s.CacheConfig(sequences*8), s.Kernels())
	adapters := []*model.Adapter[float32]{nil}
	for i, rank := range []int{8, 16, 8, 16} {
		ad, err := s.ServeAdapter(randomAdapter(b, &s.Spec, rank, `.*_proj`, false, uint64(i)))
		if err != nil {
			b.Fatal(err)
		}
		adapters = append(adapters, ad)
	}
	batches := make([]model.Batch[float32], 2)
	for i := range sequences {
		seq := c.caches[0].NewSequence()
		prompt := model.Batch[float32]{Entries: []model.Entry[float32]{{Seq: seq, Rows: context}}}
		for k := range int32(context) {
			prompt.IDs = append(prompt.IDs, (k*17+int32(i)*131)%500)
		}
		if _, err := s.Forward(&prompt); err != nil {
			b.Fatal(err)
		}
		for k := range batches {
			e := model.Entry[float32]{Seq: seq, Pos: context - rows, Rows: rows, Logits: 1}
			if k == 1 {
				e.Adapter = adapters[i*len(adapters)/sequences]
			}
			batches[k].Entries = append(batches[k].Entries, e)
			for r := range rows {
				batches[k].IDs = append(batches[k].IDs, int32(i+7*r))
			}
		}
	}
	var wall, used [2][]float64
	for b.Loop() {
		for k := range batches {
			began, before := time.Now(), cputime.Process()
			if _, err := s.Forward(&batches[k]); err != nil {
				b.Fatal(err)
			}
			wall[k] = append(wall[k], time.Since(began).Seconds())
			used[k] = append(used[k], (cputime.Process() - before).Seconds())
		}
	}
	for name, of := range map[string][2][]float64{"wall": wall, "processor": used} {
		for k := range of {
			slices.Sort(of[k])
		}
		base, mixed := of[0][len(of[0])/2], of[1][len(of[1])/2]
		b.ReportMetric(1e3*base, name+"-base-ms")
		b.ReportMetric(1e3*mixed, name+"-mixed-ms")
		b.ReportMetric(base/mixed, name+"-ratio")
	}
}
