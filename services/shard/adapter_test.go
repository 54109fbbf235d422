package shard_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const storiesWidth, storiesKV, storiesInner = 64, 32, 172

// newAdapter returns an adapter of the stories model with random values.
func newAdapter(rank int, seed uint64) *adapter.Adapter {
	r := rand.New(rand.NewPCG(seed, 1))
	values := func(n int) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(0.3 * r.NormFloat64() / math.Sqrt(float64(rank)))
		}
		return out
	}
	a := &adapter.Adapter{}
	for layer := range 5 {
		for _, m := range []struct {
			name    string
			in, out int
		}{
			{"mlp.down_proj", storiesInner, storiesWidth}, {"self_attn.q_proj", storiesWidth, storiesWidth},
			{"self_attn.v_proj", storiesWidth, storiesKV},
		} {
			a.Modules = append(a.Modules, adapter.Module{
				Name: fmt.Sprintf("model.layers.%d.%s", layer, m.name), Rank: rank, Scale: 1.5, In: m.in, Out: m.out,
				A: values(rank * m.in), B: values(m.out * rank),
			})
		}
	}
	return a
}

// replacing gives an adapter a head, a norm and a matrix of its own.
func replacing(a *adapter.Adapter, seed uint64) *adapter.Adapter {
	r := rand.New(rand.NewPCG(seed, 2))
	for _, v := range []adapter.Saved{
		{Name: "lm_head.weight", Shape: []int{512, storiesWidth}},
		{Name: "model.layers.1.self_attn.k_proj.weight", Shape: []int{storiesKV, storiesWidth}},
		{Name: "model.layers.4.input_layernorm.weight", Shape: []int{storiesWidth}},
	} {
		n, middle := v.Shape[0], float32(1)
		if len(v.Shape) == 2 {
			n, middle = n*v.Shape[1], 0
		}
		for range n {
			v.Data = append(v.Data, middle+float32(0.2*r.NormFloat64()))
		}
		a.Saved = append(a.Saved, v)
	}
	return a
}

func digestOf(a *adapter.Adapter) []byte {
	d := a.Outline().Digest()
	return d[:]
}

// opening describes an adapter for stage i.
func (r *inferRig) opening(i int, a *adapter.Adapter) *shardv1.LoadAdapterOpen {
	return &shardv1.LoadAdapterOpen{
		Digest: modelDigest, Lo: r.route[i].GetLo(), Hi: r.route[i].GetHi(), Adapter: digestOf(a), Name: "test",
		Modules: wire.Modules(a.Outline()), Saved: wire.Saved(a.Outline()),
	}
}

// loadOn plays the router for one stage. It sends the values of a, whatever the opening says.
func (r *inferRig) loadOn(
	i int, open *shardv1.LoadAdapterOpen, a *adapter.Adapter,
) (wanted *shardv1.AdapterWanted, n uint64, _ error) {
	r.t.Helper()
	stream, err := r.shards[i].LoadAdapter(r.ctx)
	if err != nil {
		return nil, 0, rpc.FromStatus(err)
	}
	send := func(f *shardv1.LoadAdapterRequest) {
		if err := stream.Send(f); err != nil && !errors.Is(err, io.EOF) {
			r.t.Fatal(err)
		}
	}
	send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Open{Open: open}})
	first, err := stream.Recv()
	if err != nil {
		return nil, 0, rpc.FromStatus(err)
	}
	wanted = first.GetWanted()
	tensor := func(x []float32, shape ...int) {
		head, chunks := wire.Encode(0, shape, x)
		send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Tensor{Tensor: head}})
		for _, c := range chunks {
			send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Chunk{Chunk: c}})
		}
	}
	for _, at := range wanted.GetModules() {
		m := &a.Modules[at]
		tensor(m.A, m.Rank, m.In)
		tensor(m.B, m.Out, m.Rank)
		if m.Magnitude != nil {
			tensor(m.Magnitude, m.Out)
		}
	}
	for _, at := range wanted.GetSaved() {
		tensor(a.Saved[at].Data, a.Saved[at].Shape...)
	}
	if err := stream.CloseSend(); err != nil {
		r.t.Fatal(err)
	}
	last, err := stream.Recv()
	if err != nil {
		return wanted, 0, rpc.FromStatus(err)
	}
	return wanted, last.GetLoaded().GetBytes(), nil
}

// load loads an adapter on every stage.
func (r *inferRig) load(a *adapter.Adapter) {
	r.t.Helper()
	for i := range r.shards {
		if _, _, err := r.loadOn(i, r.opening(i, a), a); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *inferRig) unload(i int, digest []byte) uint32 {
	r.t.Helper()
	resp, err := r.shards[i].UnloadAdapter(r.ctx, &shardv1.UnloadAdapterRequest{
		Digest: modelDigest, Lo: r.route[i].GetLo(), Hi: r.route[i].GetHi(), Adapter: digest,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.GetSessions()
}

// TestInfer_RowsOfManyAdaptersShareABatch computes logs of four adapters and of none alone, and then in batches
// whose entries alternate. The bits are the same, over any number of stages, and a base row has those of a chain
// that has never held an adapter.
func TestInfer_RowsOfManyAdaptersShareABatch(t *testing.T) {
	adapters := []*adapter.Adapter{nil, newAdapter(1, 1), newAdapter(4, 2), newAdapter(8, 3), newAdapter(19, 4),
		replacing(newAdapter(2, 5), 5), replacing(&adapter.Adapter{}, 6)}
	const each, steps = 7, 5
	logs := make([][]uint32, len(adapters))
	for i := range logs {
		logs[i] = someIDs(each + steps + i)[i:]
	}
	entry := func(n, i, pos int) *shardv1.Entry {
		e := &shardv1.Entry{Session: sessionName(n), Epoch: 1, Position: uint32(pos)}
		if pos == 0 {
			e.Pages = []uint32{uint32(n)}
		}
		if adapters[i] != nil {
			e.Adapter = digestOf(adapters[i])
		}
		return e
	}
	var want [][][]float32 // by adapter and step
	for stages := 1; stages <= 3; stages++ {
		r, plain := newInferRig(t, stages, 0), newInferRig(t, stages, 0)
		for _, a := range adapters[1:] {
			r.load(a)
		}
		p, bare := r.mustOpen(pipelineName(1)), plain.mustOpen(pipelineName(2))
		for i := range adapters {
			on := p
			if adapters[i] == nil {
				on = bare
			}
			var alone [][]float32
			for step := range 1 + steps {
				pos, ids := each+step-1, logs[i][each+step-1:each+step]
				if step == 0 {
					pos, ids = 0, logs[i][:each]
				}
				alone = append(alone, on.compute(entry(i, i, pos), ids))
			}
			on.release(&shardv1.Release{Sessions: [][]byte{sessionName(i)}, Pages: []uint32{uint32(i)}})
			if stages == 1 {
				want = append(want, alone)
			} else if !slices.EqualFunc(alone, want[i], slices.Equal[[]float32]) {
				t.Errorf("adapter %d over %d stages has other bits", i, stages)
			}
		}
		// Two sessions of each adapter; the adapters alternate.
		for step := range 1 + steps {
			var ids []uint32
			var entries []*shardv1.Entry
			for n := range 2 * len(adapters) {
				i := n % len(adapters)
				pos, some := each+step-1, logs[i][each+step-1:each+step]
				if step == 0 {
					pos, some = 0, logs[i][:each]
				}
				e := entry(n, i, pos)
				e.Rows, e.Logits = uint32(len(some)), 1
				entries, ids = append(entries, e), append(ids, some...)
			}
			p.batch(ids, entries...)
			for range entries {
				row := await(p, p.rows, "a row")
				x, err := wire.Whole(row.GetLogits(), nil)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				if _, err := fmt.Sscanf(string(row.GetSession()), "session%d", &n); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(x, want[n%len(adapters)][step]) {
					t.Errorf("%d stages, step %d: session %d with adapter %d differs from the one alone", stages, step, n,
						n%len(adapters))
				}
			}
		}
		p.end()
		bare.end()
	}
	for i := range want {
		if i > 0 && slices.Equal(want[i][0], want[0][0]) {
			t.Errorf("adapter %d has no effect", i)
		}
	}
}

// TestLoadAdapter_EachStageTakesItsOwnModules asks two stages what they want, and what they say of it.
func TestLoadAdapter_EachStageTakesItsOwnModules(t *testing.T) {
	r := newInferRig(t, 2, 0)
	a := replacing(newAdapter(4, 1), 1)
	total := 0
	for i := range r.shards {
		wanted, n, err := r.loadOn(i, r.opening(i, a), a)
		if err != nil {
			t.Fatal(err)
		}
		bytes := int64(0)
		check := func(name string) {
			layer := uint32(4) // the head is on the last stage
			if _, err := fmt.Sscanf(name, "model.layers.%d.", &layer); err != nil && name != "lm_head.weight" {
				t.Fatal(err)
			}
			if layer < r.route[i].GetLo() || layer >= r.route[i].GetHi() {
				t.Errorf("stage %d wants %s", i, name)
			}
		}
		for _, at := range wanted.GetModules() {
			m := a.Modules[at]
			check(m.Name)
			bytes += int64(4 * (len(m.A) + len(m.B)))
		}
		for _, at := range wanted.GetSaved() {
			check(a.Saved[at].Name)
			bytes += int64(4 * len(a.Saved[at].Data))
		}
		total += len(wanted.GetModules()) + len(wanted.GetSaved())
		h := r.held()[i]
		if int64(n) != bytes || h.GetAdapterBytes() != n || len(h.GetAdapters()) != 1 ||
			h.GetAdapters()[0].GetBytes() != n || h.GetAdapters()[0].GetName() != "test" ||
			string(h.GetAdapters()[0].GetDigest()) != string(digestOf(a)) {
			t.Errorf("stage %d takes %d bytes, says %d, and describes itself as %v", i, bytes, n, h)
		}
		again, n2, err := r.loadOn(i, r.opening(i, a), a)
		if err != nil || len(again.GetModules())+len(again.GetSaved()) != 0 || n2 != n {
			t.Errorf("a second load wants %v, has %d bytes: %v", again, n2, err)
		}
	}
	if all := len(a.Modules) + len(a.Saved); total != all {
		t.Errorf("the stages want %d of %d modules and tensors", total, all)
	}
}

// TestInfer_UnknownAdaptersAreRefusedAlone sends an entry with an adapter that is not loaded beside a good one.
func TestInfer_UnknownAdaptersAreRefusedAlone(t *testing.T) {
	for stages := 1; stages <= 2; stages++ {
		r := newInferRig(t, stages, 0)
		p := r.mustOpen(pipelineName(1))
		a := newAdapter(2, 1)
		with := func(n int, digest []byte) *shardv1.Entry {
			return &shardv1.Entry{Session: sessionName(n), Epoch: 1, Pages: []uint32{uint32(n)}, Adapter: digest}
		}
		msg := p.refused(with(1, digestOf(a)), []uint32{5}, codes.NotFound)
		if !strings.Contains(msg, "is not loaded") {
			t.Errorf("the refusal says %q", msg)
		}
		p.refused(with(2, []byte{1, 2, 3}), []uint32{5}, codes.InvalidArgument)
		bad, good := with(1, digestOf(a)), with(3, nil)
		for _, e := range []*shardv1.Entry{bad, good} {
			e.Rows, e.Logits = 1, 1
		}
		p.batch([]uint32{5, 6}, bad, good)
		if f := await(p, p.frames, "a refusal").GetRefused(); string(f.GetSession()) != string(bad.GetSession()) {
			t.Errorf("refused is %v", f)
		}
		if row := await(p, p.rows, "the other row"); string(row.GetSession()) != string(good.GetSession()) {
			t.Errorf("the row is of %s", row.GetSession())
		}
		r.load(a)
		p.compute(with(1, digestOf(a)), []uint32{5}) // the session was never opened, so it may be now
		other := &shardv1.Entry{Session: sessionName(1), Epoch: 1, Position: 1}
		p.refused(other, []uint32{5}, codes.InvalidArgument) // it has an adapter
		p.end()
	}
}

// TestUnloadAdapter_WaitsForItsSessions unloads an adapter that is in use. Its session goes on with the same bits,
// no other may begin, and the memory is free when the session is released or its pipeline ends.
func TestUnloadAdapter_WaitsForItsSessions(t *testing.T) {
	for _, byEnd := range []bool{false, true} {
		r := newInferRig(t, 2, 0)
		a, log := newAdapter(8, 1), someIDs(12)
		r.load(a)
		digest := digestOf(a)
		run := func(p *testPipeline, n, pos int) []float32 {
			e := &shardv1.Entry{Session: sessionName(n), Epoch: 1, Position: uint32(pos), Adapter: digest}
			if pos == 0 {
				e.Pages = []uint32{uint32(n)}
				return p.compute(e, log[:8])
			}
			return p.compute(e, log[pos:pos+1])
		}
		p := r.mustOpen(pipelineName(1))
		run(p, 1, 0)
		want := run(p, 1, 8)
		run(p, 2, 0)
		for i := range r.shards {
			if n := r.unload(i, digest); n != 2 {
				t.Errorf("stage %d says that %d sessions use it", i, n)
			}
		}
		if got := run(p, 2, 8); !slices.Equal(got, want) {
			t.Error("an unload has changed a session")
		}
		p.refused(&shardv1.Entry{Session: sessionName(3), Epoch: 1, Pages: []uint32{3}, Adapter: digest}, log[:1],
			codes.NotFound)
		for _, h := range r.held() {
			if len(h.GetAdapters()) != 0 || h.GetAdapterBytes() == 0 {
				t.Errorf("while in use: %v", h)
			}
		}
		if byEnd {
			p.end()
		} else {
			p.release(&shardv1.Release{Sessions: [][]byte{sessionName(1)}})
			p.compute(&shardv1.Entry{Session: sessionName(4), Epoch: 1, Pages: []uint32{4}}, log[:1])
			if r.held()[1].GetAdapterBytes() == 0 {
				t.Error("it is gone while a session uses it")
			}
			p.release(&shardv1.Release{Sessions: [][]byte{sessionName(2)}})
			p.compute(&shardv1.Entry{Session: sessionName(5), Epoch: 1, Pages: []uint32{5}}, log[:1])
		}
		for _, h := range r.held() {
			if h.GetAdapterBytes() != 0 {
				t.Errorf("memory is left: %v", h)
			}
		}
		if n := r.unload(0, digest); n != 0 {
			t.Errorf("unloading what is not loaded: %d sessions", n)
		}
		r.load(a)
		if byEnd {
			p = r.mustOpen(pipelineName(1))
		}
		run(p, 6, 0)
		if got := run(p, 6, 8); !slices.Equal(got, want) {
			t.Error("after another load the bits differ")
		}
		r.unload(0, digest)
		r.load(a) // takes the unload back
		run(p, 7, 0)
		p.end()
	}
}
