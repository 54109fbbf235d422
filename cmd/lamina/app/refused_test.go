package app_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

func sessionName(n int) []byte { return fmt.Appendf(nil, "%016d", n) }

// TestShard_RefusesAnEntryAndComputesTheOthers acts as a router. It sends invalid entries through two
// stages, each in a batch with a valid one.
func TestShard_RefusesAnEntryAndComputesTheOthers(t *testing.T) {
	set := cpu.New(2)
	defer set.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	m, err := app.Start(
		ctx,
		app.MeshConfig{
			Kernels: app.Kernels{Set: set}, Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: 2,
			KVPositions: 256,
		},
	)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	topology, err := routerv1.NewRouterServiceClient(conn).Topology(ctx, &routerv1.TopologyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p := topology.GetMesh().GetPipelines()[0]
	sampler, err := m.Dial("mem:sampler")
	if err != nil {
		t.Fatal(err)
	}
	sample, err := samplerv1.NewSamplerServiceClient(sampler).Sample(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tell := func(r *samplerv1.SampleRequest) *samplerv1.SampleResponse {
		t.Helper()
		if err := sample.Send(r); err != nil {
			t.Fatal(err)
		}
		resp, err := sample.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	name := sessionName(77)
	tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Open{Open: &samplerv1.SampleOpen{Pipeline: name}}})
	first, err := m.Dial("mem:shard-0-0")
	if err != nil {
		t.Fatal(err)
	}
	infer, err := shardv1.NewShardServiceClient(first).Infer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *shardv1.InferRequest) {
		t.Helper()
		if err := infer.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() *shardv1.InferResponse {
		t.Helper()
		for {
			resp, err := infer.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetLease() == nil { // the stages divide their pages between this pipeline and the router's
				return resp
			}
		}
	}
	send(
		&shardv1.InferRequest{
			Frame: &shardv1.InferRequest_Open{
				Open: &shardv1.InferOpen{Pipeline: name, Digest: p.GetDigest(), Route: p.GetStages(),
					Sampler: p.GetSampler()},
			},
		},
	)
	recv()
	// The router's pipeline holds all pages, until the stages ask it for half of them.
	for granted := map[uint32]bool{}; len(granted) < 2; {
		resp, err := infer.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if l := resp.GetLease(); l.GetPages() > 0 {
			granted[l.GetLo()] = true
		}
	}

	good := sessionName(1)
	tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Add{
				Add: &samplerv1.AddSession{Session: good, Epoch: 1, Rules: &samplerv1.Rules{}, Prompt: []uint32{1}},
			},
		},
	)
	position, step := uint32(0), uint64(0)
	cases := map[string]struct { // at most a page of them
		entry *shardv1.Entry
		ids   []uint32
		code  codes.Code
	}{
		"id outside the vocabulary": {
			&shardv1.Entry{Session: sessionName(2), Epoch: 1, Rows: 2, Logits: 1}, []uint32{1, 1 << 31},
			codes.InvalidArgument,
		},
		"no rows": {&shardv1.Entry{Session: sessionName(2), Epoch: 1}, nil, codes.InvalidArgument},
		"more logits than rows": {
			&shardv1.Entry{Session: sessionName(2), Epoch: 1, Rows: 1, Logits: 2}, []uint32{1}, codes.InvalidArgument,
		},
		"short name": {
			&shardv1.Entry{Session: []byte("x"), Epoch: 1, Rows: 1, Logits: 1}, []uint32{1}, codes.InvalidArgument,
		},
		"draft tokens without rows": {
			&shardv1.Entry{
				Session:  sessionName(2),
				Epoch:    1,
				Rows:     1,
				Logits:   1,
				DraftIds: []uint32{1, 2},
			},
			[]uint32{1},
			codes.InvalidArgument,
		},
		"position beyond the cache": {
			&shardv1.Entry{Session: sessionName(2), Epoch: 1, Position: 1 << 31, Rows: 1, Logits: 1}, []uint32{1},
			codes.ResourceExhausted,
		},
		"position that leaves a hole": {
			&shardv1.Entry{Session: sessionName(2), Epoch: 1, Position: 9, Rows: 1, Logits: 1}, []uint32{1},
			codes.FailedPrecondition,
		},
		"more pages than there are": {
			&shardv1.Entry{
				Session: sessionName(2), Epoch: 1, Rows: 250, Logits: 1,
				Pages: []uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0},
			}, make([]uint32, 250), codes.ResourceExhausted,
		},
		"no block table": {
			&shardv1.Entry{Session: sessionName(2), Epoch: 1, Rows: 1, Logits: 1}, []uint32{1},
			codes.FailedPrecondition,
		},
		"the same session twice": {
			&shardv1.Entry{Session: good, Epoch: 1, Rows: 1, Logits: 1}, []uint32{1}, codes.InvalidArgument,
		},
	}
	// "the same session twice" is last: a session of which an entry was refused can only be released.
	for _, what := range slices.Sorted(maps.Keys(cases)) {
		bad := cases[what]
		step++
		ordinary := &shardv1.Entry{Session: good, Epoch: 1, Position: position, Rows: 1, Logits: 1}
		if position == 0 {
			ordinary.Pages = []uint32{0}
		}
		send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{
			Step: step, Entries: []*shardv1.Entry{ordinary, bad.entry}, Ids: append([]uint32{5}, bad.ids...),
		}}})
		if r := recv().GetRefused(); codes.Code(r.GetCode()) != bad.code || r.GetStep() != step ||
			string(r.GetSession()) != string(bad.entry.GetSession()) {
			t.Errorf("%s: %v", what, r)
		}
		if token, err := sample.Recv(); err != nil || token.GetToken().GetPosition() != position+1 {
			t.Fatalf("%s: the other session gets %v, %v", what, token, err)
		}
		position++
	}
	// A batch without a valid entry is answered too, whichever stage refuses the entries.
	step++
	send(
		&shardv1.InferRequest{
			Frame: &shardv1.InferRequest_Batch{
				Batch: &shardv1.Batch{Step: step, Entries: []*shardv1.Entry{{Session: sessionName(3), Epoch: 1}}},
			},
		},
	)
	if r := recv().GetRefused(); r.GetStep() != step {
		t.Errorf("got %v", r)
	}
	if r := recv().GetComputed(); r.GetStep() != step {
		t.Errorf("got %v", r)
	}
}
