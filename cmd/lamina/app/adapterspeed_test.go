package app_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/cputime"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// BenchmarkMesh_Adapters compares the throughput of 64 requests at once of a base alone with that of the same requests
// over the base and four adapters (ranks 8 to 16, on all matrices). Runs alternate, and the medians count. The ratio of
// processor time depends less on what else the machine does than that of tokens/s. The model is the chat model, or the
// one that LAMINA_BENCH_MODEL names. Use -benchtime 1x; LAMINA_BENCH_ROUNDS is the number of runs of each kind.
func BenchmarkMesh_Adapters(b *testing.B) {
	file := os.Getenv("LAMINA_BENCH_MODEL")
	if file == "" {
		file = shared(b, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
	}
	rounds := 5
	if n, err := strconv.Atoi(os.Getenv("LAMINA_BENCH_ROUNDS")); err == nil {
		rounds = n
	}
	set := cpu.New(2)
	defer set.Close()
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	m, err := app.Start(ctx, app.MeshConfig{Model: file, Stages: 2, Adapters: writeRanks(b, file, 8, 16, 8, 16),
		Kernels: app.Kernels{Set: set, Threads: 2}})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Router()
	if err != nil {
		b.Fatal(err)
	}
	router := routerv1.NewRouterServiceClient(conn)
	const requests, tokens = 64, 32
	run := func(mixed bool, salt uint32) (rate, used float64) {
		began, before := time.Now(), cputime.Process()
		var wg sync.WaitGroup
		for i := range uint32(requests) {
			a := asked{tokens: tokens, sampling: &routerv1.Sampling{Temperature: new(float32)}}
			for k := range uint32(16) {
				a.prompt = append(a.prompt, 100+(salt*7919+i*131+k*17)%4000)
			}
			if which := i % 5; mixed && which > 0 {
				a.adapter = fmt.Sprint("a", which-1)
			}
			wg.Go(func() {
				if ids, _, err := answer(ctx, router, a); err != nil || len(ids) != tokens {
					b.Errorf("%d tokens, %v", len(ids), err)
				}
			})
		}
		wg.Wait()
		return requests * tokens / time.Since(began).Seconds(), (cputime.Process() - before).Seconds()
	}
	run(false, 1) // weights are read, and buffers get their sizes
	run(true, 2)
	for b.Loop() {
		var base, mixed, ratio, used []float64
		for i := range uint32(rounds) {
			one, oneUsed := run(false, 10+2*i)
			other, otherUsed := run(true, 11+2*i)
			base, mixed, ratio = append(base, one), append(mixed, other), append(ratio, other/one)
			used = append(used, oneUsed/otherUsed)
			b.Logf("base %.0f tokens/s (%.2f s of processor), mixed %.0f tokens/s (%.2f s), %.3f (%.3f)", one, oneUsed,
				other, otherUsed, other/one, oneUsed/otherUsed)
		}
		for name, list := range map[string][]float64{"base-tok/s": base, "mixed-tok/s": mixed, "ratio": ratio,
			"processor-ratio": used} {
			slices.Sort(list)
			b.ReportMetric(list[len(list)/2], name)
		}
	}
}
