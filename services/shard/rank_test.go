package shard_test

import (
	"math"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

// A GPU sends the candidates of a row that the host would have chosen, and the row that it has kept when the sampler
// asks for it. In the same batch another session gets its whole row at once.
func TestInfer_AGPURanksRows(t *testing.T) {
	skipRace(t)
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newInferRigWith(t, 1, shard.Config{Kernels: set})
	p := r.mustOpen(pipelineName(1))
	decoded := func(row *samplerv1.Row) []float32 {
		x, err := wire.Whole(row.GetLogits(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	const k = 3
	entry := func(session int, page, candidates uint32) *shardv1.Entry {
		return &shardv1.Entry{Session: sessionName(session), Epoch: 1, Pages: []uint32{page}, Rows: 1, Logits: 1,
			Candidates: candidates}
	}
	// The second session wants its whole row at once.
	r.sampler.asks = 2
	p.batch([]uint32{5, 5}, entry(1, 1, k), entry(2, 2, 0))
	var ranked, kept, whole *samplerv1.Row
	for range 4 { // the row that is kept twice, since it stays
		switch row := await(p, p.rows, "a row"); {
		case len(row.GetIds()) > 0:
			ranked = row
		case string(row.GetSession()) == string(sessionName(1)):
			kept = row
		default:
			whole = row
		}
	}
	if ranked == nil || kept == nil || whole == nil {
		t.Fatalf("candidates %v, a kept row %v and a whole row %v", ranked, kept, whole)
	}
	row := decoded(kept)
	if !slices.Equal(row, decoded(whole)) { // both have the same token at the same position
		t.Error("the row that was kept is another one")
	}
	values := decoded(ranked)
	for i, want := range sample.Best(row, k) {
		if ranked.GetIds()[i] != uint32(want.ID) || values[i] != want.Logit {
			t.Errorf("candidate %d is %d with %v, want %v", i, ranked.GetIds()[i], values[i], want)
		}
	}
	if a, b := ranked.GetLogSumExp(), whole.GetLogSumExp(); !(math.Abs(a-b) < 1e-5) || kept.GetLogSumExp() != a {
		t.Errorf("the log-sum-exp is %v, %v with the row and %v on the host", a, kept.GetLogSumExp(), b)
	}
	p.end()
}

// A device that is lost while a kept row is wanted of it ends the pipeline, and nothing waits for it.
func TestInfer_AGPUIsLostBeforeAKeptRowIsCopied(t *testing.T) {
	faults := &twin.Faults{}
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Faults: faults}),
		cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err == nil {
			t.Error("a lost device closes as if nothing had failed")
		}
	})
	r := newInferRigWith(t, 1, shard.Config{Kernels: set})
	p := r.mustOpen(pipelineName(1))
	x := set.FromHost([]float32{1})
	r.sampler.asks, r.sampler.ask = 1, func() {
		faults.FailNext("CUDA_ERROR_ILLEGAL_ADDRESS")
		set.Scale(x, 2)
	}
	p.batch([]uint32{5}, &shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{1}, Rows: 1, Logits: 1,
		Candidates: 3})
	select {
	case err := <-p.ended:
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the pipeline ends with %v", err)
		}
	case <-r.ctx.Done():
		t.Fatal("the pipeline does not end")
	}
	for len(r.held()) > 0 { // until the shard has seen it, too
		runtime.Gosched()
	}
}
