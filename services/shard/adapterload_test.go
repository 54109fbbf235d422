package shard_test

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

// TestLoadAdapter_RefusesHostileOnes names what is wrong, keeps nothing and disturbs no session.
func TestLoadAdapter_RefusesHostileOnes(t *testing.T) {
	r := newInferRigWith(t, 1, shard.Config{AdapterBytes: 100 << 10})
	p := r.mustOpen(pipelineName(1))
	good := &shardv1.Entry{Session: sessionName(1), Epoch: 1, Pages: []uint32{2}}
	want := p.compute(good, someIDs(5))
	for _, tc := range []struct {
		name, want string
		code       fault.Code
		change     func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen)
	}{
		{"another digest", "not sha256:", fault.DataLoss, func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
			o.Adapter = bytes.Repeat([]byte{7}, 32)
		}},
		{"other values", "layers.0.mlp.down_proj.lora_B.weight: the values are not those of its digest",
			fault.DataLoss, func(a *adapter.Adapter, _ *shardv1.LoadAdapterOpen) { a.Modules[0].B[3]++ }},
		{"not a number", "layers.0.mlp.down_proj.lora_A.weight: element 5 is NaN", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Modules[0].A[5] = float32(math.NaN())
				o.Modules, o.Adapter = wire.Modules(a.Outline()), digestOf(a)
			}},
		{"huge rank", "layers.0.mlp.down_proj: want a rank of 1..512 to be served, got 4000000", fault.DataLoss,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Modules[0].Rank = 4000000 }},
		{"a module that the model lacks", "layers.9.mlp.down_proj: the model has no such module", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Modules = a.Modules[12:]
				for i := range a.Modules {
					a.Modules[i].Name = strings.Replace(a.Modules[i].Name, "layers.4", "layers.9", 1)
				}
				o.Modules, o.Adapter = wire.Modules(a.Outline()), digestOf(a)
			}},
		{"another base", "layers.0.mlp.down_proj: want 172 inputs and 64 outputs, got 128 and 64", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				for i := range a.Modules {
					m := &a.Modules[i]
					if m.In == storiesInner {
						m.In, m.A = 128, m.A[:m.Rank*128]
					}
				}
				o.Modules, o.Adapter = wire.Modules(a.Outline()), digestOf(a)
			}},
		{"a tensor of another shape", "of model.layers.0.mlp.down_proj.lora_A.weight, want [4 172]", fault.Invalid,
			func(a *adapter.Adapter, _ *shardv1.LoadAdapterOpen) {
				a.Modules[0].Rank, a.Modules[0].In = 2, 344
			}},
		{"a missing tensor", "the stream ended before the adapter was complete", fault.Invalid,
			func(a *adapter.Adapter, _ *shardv1.LoadAdapterOpen) { a.Modules[14].Magnitude = nil }},
		{"no digest of B", "not sha256:", fault.DataLoss, func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
			o.Modules[3].BDigest = nil
		}},
		{"unordered modules", "comes after", fault.DataLoss, func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
			slices.Reverse(o.Modules)
		}},
		{"no modules", "modules: want 1..16384, got 0", fault.DataLoss,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Modules = nil }},
		{"an infinite scale", "want a positive scale, got +Inf", fault.DataLoss,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Modules[0].Scale = math.Inf(1) }},
		{"a long name", "open.name: want at most 64 bytes", fault.Invalid,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Name = strings.Repeat("a", 1<<20) }},
		{"a long base", "open.base: want sha256:", fault.Invalid,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Base = strings.Repeat("a", 1<<20) }},
		{"layers that are not held", "this shard does not hold them", fault.NotFound,
			func(_ *adapter.Adapter, o *shardv1.LoadAdapterOpen) { o.Hi = 3 }},
		{"other values of a matrix", "layers.1.self_attn.k_proj.weight: the values are not those of its digest",
			fault.DataLoss, func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Saved = replacing(&adapter.Adapter{}, 3).Saved[1:]
				o.Saved, o.Adapter = wire.Saved(a.Outline()), digestOf(a)
				a.Saved[0].Data[7]++
			}},
		{"a norm that is no number", "layers.4.input_layernorm.weight: element 3 is NaN", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Saved = replacing(&adapter.Adapter{}, 3).Saved[2:]
				a.Saved[0].Data[3] = float32(math.NaN())
				o.Saved, o.Adapter = wire.Saved(a.Outline()), digestOf(a)
			}},
		{"a head of another base", "lm_head.weight: want shape [512 64], got [64 512]", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Saved = replacing(&adapter.Adapter{}, 3).Saved[:1]
				a.Saved[0].Shape = []int{64, 512}
				o.Saved, o.Adapter = wire.Saved(a.Outline()), digestOf(a)
			}},
		{"a head that does not fit", "of 102400 already", fault.Exhausted,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Saved = replacing(&adapter.Adapter{}, 3).Saved
				o.Saved, o.Adapter = wire.Saved(a.Outline()), digestOf(a)
			}},
		{"a tensor that is replaced and adapted", "is replaced, and has a low-rank adapter", fault.DataLoss,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				a.Saved = []adapter.Saved{{Name: "model.layers.0.self_attn.q_proj.weight",
					Shape: []int{storiesWidth, storiesWidth}, Data: make([]float32, storiesWidth*storiesWidth)}}
				o.Saved, o.Adapter = wire.Saved(a.Outline()), digestOf(a)
			}},
		{"more than fits", "of 102400 already", fault.Exhausted,
			func(a *adapter.Adapter, o *shardv1.LoadAdapterOpen) {
				*a = *newAdapter(64, 1)
				o.Modules, o.Adapter = wire.Modules(a.Outline()), digestOf(a)
			}},
	} {
		a := newAdapter(4, 1)
		if tc.name == "a missing tensor" { // the outline has magnitudes, of which the last one is not sent
			for i := range a.Modules {
				a.Modules[i].Magnitude = slices.Repeat([]float32{1}, a.Modules[i].Out)
			}
		}
		open := r.opening(0, a)
		tc.change(a, open)
		_, _, err := r.loadOn(0, open, a)
		if fault.CodeOf(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.want) {
			t.Errorf("%s: got %v (%v), want %q (%v)", tc.name, err, fault.CodeOf(err), tc.want, tc.code)
		}
	}
	if h := r.held()[0]; h.GetAdapterBytes() != 0 || len(h.GetAdapters()) != 0 {
		t.Errorf("something is kept: %v", h)
	}
	r.load(newAdapter(4, 1)) // all of what was reserved is free again
	good.Position, good.Pages = 0, nil
	if got := p.compute(good, someIDs(5)); !slices.Equal(got, want) {
		t.Error("a session without an adapter has changed")
	}
	p.end()
}

// TestLoadAdapter_WhileBatchesRun loads and unloads adapters while sessions with and without adapters run.
func TestLoadAdapter_WhileBatchesRun(t *testing.T) {
	r := newInferRig(t, 2, 0)
	fixed, log := newAdapter(4, 1), someIDs(100)
	r.load(fixed)
	p := r.mustOpen(pipelineName(1))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		wg.Go(func() {
			for n := uint64(2); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				a := newAdapter(1+int(n)%7, 10*n+uint64(w))
				r.load(a)
				for i := range r.shards {
					r.unload(i, digestOf(a))
				}
			}
		})
	}
	rows := func(n int, digest []byte) (out []*samplerv1.Row) {
		pages := []uint32{uint32(8 * n), uint32(8*n + 1), uint32(8*n + 2), uint32(8*n + 3)}
		for pos := range 50 {
			e := &shardv1.Entry{Session: sessionName(n), Epoch: 1, Position: uint32(pos), Rows: 1, Logits: 1,
				Adapter: digest}
			if pos == 0 {
				e.Pages = pages
			}
			p.batch(log[pos:pos+1], e)
			out = append(out, await(p, p.rows, "a row"))
		}
		p.release(&shardv1.Release{Sessions: [][]byte{sessionName(n)}, Pages: pages})
		return out
	}
	sums := func(rows []*samplerv1.Row) (out []uint64) {
		for _, row := range rows {
			out = append(out, row.GetLogits().GetChecksum())
		}
		return out
	}
	with, without := sums(rows(0, digestOf(fixed))), sums(rows(1, nil))
	for range 3 {
		if !slices.Equal(sums(rows(0, digestOf(fixed))), with) || !slices.Equal(sums(rows(1, nil)), without) {
			t.Error("a load beside it has changed a row")
		}
	}
	close(stop)
	wg.Wait()
	p.end()
}

// A router that stops in the middle of an adapter keeps others from loading theirs on the span only for a moment.
func TestService_LoadAdapter_AStalledOneGivesWay(t *testing.T) {
	r := newInferRigWith(t, 1, shard.Config{AdapterIdle: 500 * time.Millisecond})
	stalled, other := newAdapter(4, 1), newAdapter(4, 2)
	open := r.opening(0, stalled)
	first := &shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Open{Open: open}}
	var stream grpc.BidiStreamingClient[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse]
	for limit := time.Now().Add(time.Minute); ; { // a machine that is slow may be late with the first frame, too
		var err error
		if stream, err = r.shards[0].LoadAdapter(r.ctx); err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(first) // Recv says why it failed
		answer, err := stream.Recv()
		if err == nil && len(answer.GetWanted().GetModules()) > 0 {
			break
		}
		if err == nil || fault.CodeOf(rpc.FromStatus(err)) != fault.DeadlineExceeded || time.Now().After(limit) {
			t.Fatalf("the shard wants %v, %v", answer.GetWanted(), err)
		}
	}
	if _, err := stream.Recv(); fault.CodeOf(rpc.FromStatus(err)) != fault.DeadlineExceeded {
		t.Errorf("a stalled load ends with %v", err)
	}
	// A machine that is slow may be late with a frame, too.
	for limit := time.Now().Add(time.Minute); ; {
		_, n, err := r.loadOn(0, r.opening(0, other), other)
		if err == nil && n > 0 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("another adapter: %d bytes, %v", n, err)
		}
	}
	if h := r.held()[0]; len(h.GetAdapters()) != 1 {
		t.Errorf("the shard holds the adapters %v", h.GetAdapters())
	}
}
