package shard_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/shard"
)

// embedRig is a tiny encoder over stages, with the hidden states that transformers computes.
type embedRig struct {
	ctx    context.Context
	stages []shardv1.ShardServiceClient
	spans  []model.Range
	width  int
	IDs    [][]uint32
	Hidden [][][]float64
}

func newEmbedRig(t *testing.T, stages int) *embedRig {
	t.Helper()
	folder := filepath.Join("..", "..", "pkg", "model", "testdata", "encoders", "bert")
	files, err := model.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	r := &embedRig{ctx: ctx, spans: model.Split(len(files.Spec.Layers), stages), width: files.Spec.Width}
	text, err := os.ReadFile(filepath.Join(folder, "golden.json"))
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		t.Fatal(err)
	}
	network, set := memnet.New(), cpu.New(1)
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	s := shard.New(shard.Config{Dialer: dialer, Kernels: set})
	for _, span := range r.spans {
		if err := s.Hold("bert", modelDigest, files, span); err != nil {
			t.Fatal(err)
		}
	}
	server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
	s.Register(server)
	l, err := rpc.Listen("mem:shard", rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)); err != nil {
			t.Error(err)
		}
	})
	conn, err := dialer.Dial("mem:shard")
	if err != nil {
		t.Fatal(err)
	}
	for range r.spans {
		r.stages = append(r.stages, shardv1.NewShardServiceClient(conn))
	}
	t.Cleanup(func() {
		cancel()
		served.Wait()
		set.Close()
		if err := errors.Join(dialer.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// call calls one stage and returns the shape and the values of its result.
func (r *embedRig) call(ctx context.Context, stage int, open *shardv1.EmbedOpen, chunks []*tensorv1.Chunk) ([]uint32,
	[]float32, error) {
	stream, err := r.stages[stage].Embed(ctx)
	if err != nil {
		return nil, nil, rpc.FromStatus(err)
	}
	_ = stream.Send(&shardv1.EmbedRequest{Frame: &shardv1.EmbedRequest_Open{Open: open}}) // Recv says why it failed
	for _, c := range chunks {
		_ = stream.Send(&shardv1.EmbedRequest{Frame: &shardv1.EmbedRequest_Chunk{Chunk: c}})
	}
	_ = stream.CloseSend()
	tensor := wire.NewAssembler(1 << 24)
	frame, err := stream.Recv()
	if err != nil {
		return nil, nil, rpc.FromStatus(err)
	}
	shape := frame.GetResult().GetShape()
	done, err := tensor.Start(frame.GetResult())
	for !done && err == nil {
		if frame, err = stream.Recv(); err == nil {
			done, err = tensor.Add(frame.GetChunk())
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.Join(errors.New("the answer goes on"), err)
	}
	values, err := tensor.Float32(nil)
	return shape, values, err
}

// embed runs texts through all stages.
func (r *embedRig) embed(t *testing.T, pooling *shardv1.Pooling, texts ...[]uint32) []float32 {
	t.Helper()
	open := &shardv1.EmbedOpen{Digest: modelDigest, Pooling: pooling}
	for _, ids := range texts {
		open.Lengths, open.Ids = append(open.Lengths, uint32(len(ids))), append(open.Ids, ids...)
	}
	rows := len(open.GetIds())
	var out []float32
	for i, span := range r.spans {
		open.Lo, open.Hi = uint32(span.Lo), uint32(span.Hi)
		var chunks []*tensorv1.Chunk
		if i > 0 {
			open.Ids = nil
			open.Hidden, chunks = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{rows, r.width}, out)
		}
		var shape []uint32
		var err error
		if shape, out, err = r.call(r.ctx, i, open, chunks); err != nil {
			t.Fatal(err)
		}
		want := []uint32{uint32(rows), uint32(r.width)}
		if i == len(r.spans)-1 {
			want[0] = uint32(len(texts))
		}
		if !slices.Equal(shape, want) {
			t.Fatalf("stage %d returns shape %v, want %v", i, shape, want)
		}
	}
	return out
}

func TestEmbed_EqualsTransformersForAnySplitAndBatch(t *testing.T) {
	off := false
	one, two := newEmbedRig(t, 1), newEmbedRig(t, 2)
	for kind, pool := range map[shardv1.PoolKind]func([][]float64, int) float64{
		shardv1.PoolKind_POOL_KIND_UNSPECIFIED: func(rows [][]float64, c int) (sum float64) {
			for _, row := range rows {
				sum += row[c] / float64(len(rows))
			}
			return sum
		},
		shardv1.PoolKind_POOL_KIND_FIRST: func(rows [][]float64, c int) float64 { return rows[0][c] },
		shardv1.PoolKind_POOL_KIND_LAST:  func(rows [][]float64, c int) float64 { return rows[len(rows)-1][c] },
	} {
		p := &shardv1.Pooling{Kind: kind, Normalize: &off}
		whole := one.embed(t, p, one.IDs...)
		if split := two.embed(t, p, one.IDs...); !slices.Equal(split, whole) {
			t.Errorf("%v: two stages give other bits", kind)
		}
		for i, ids := range one.IDs {
			alone := two.embed(t, p, ids)
			if !slices.Equal(alone, whole[i*one.width:(i+1)*one.width]) {
				t.Errorf("%v: text %d has other bits alone", kind, i)
			}
			for c, got := range alone {
				if want := pool(one.Hidden[i], c); math.Abs(float64(got)-want) > 2e-5 {
					t.Fatalf("%v: text %d, component %d: got %g, want %g", kind, i, c, got, want)
				}
			}
		}
	}
	norm := 0.0
	for _, v := range one.embed(t, nil, one.IDs[0]) {
		norm += float64(v) * float64(v)
	}
	if math.Abs(norm-1) > 1e-5 {
		t.Errorf("by default an embedding has the norm %g, want 1", math.Sqrt(norm))
	}
}

// TestEmbed_LongTextsOfADecoderAreComputedInParts compares texts that are cut into several batches with what they give
// alone, where the cuts are elsewhere.
func TestEmbed_LongTextsOfADecoderAreComputedInParts(t *testing.T) {
	r := newInferRig(t, 1, 0)
	ids := func(n, seed int) (out []uint32) {
		for i := range n {
			out = append(out, uint32(3+(i*i+seed*i+seed)%500))
		}
		return out
	}
	embed := func(texts ...[]uint32) []float32 {
		open := &shardv1.EmbedOpen{Digest: modelDigest, Hi: r.route[0].GetHi(),
			Pooling: &shardv1.Pooling{Kind: shardv1.PoolKind_POOL_KIND_MEAN}}
		for _, ids := range texts {
			open.Lengths, open.Ids = append(open.Lengths, uint32(len(ids))), append(open.Ids, ids...)
		}
		rig := &embedRig{stages: r.shards}
		_, out, err := rig.call(r.ctx, 0, open, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	texts := [][]uint32{ids(100, 1), ids(128, 2), ids(7, 3), ids(100, 4), ids(128, 5)} // the cut is in the fourth
	whole := embed(texts...)
	width := len(whole) / len(texts)
	for i, text := range texts {
		if alone := embed(text); !slices.Equal(alone, whole[i*width:(i+1)*width]) {
			t.Errorf("text %d of %d tokens has other bits alone", i, len(text))
		}
	}
}

func TestEmbed_RefusesWhatItCannotCompute(t *testing.T) {
	r := newEmbedRig(t, 2)
	first := func(change func(*shardv1.EmbedOpen)) *shardv1.EmbedOpen {
		o := &shardv1.EmbedOpen{
			Digest:  modelDigest,
			Hi:      uint32(r.spans[0].Hi),
			Lengths: []uint32{2},
			Ids:     []uint32{1, 2},
		}
		change(o)
		return o
	}
	last := func(change func(*shardv1.EmbedOpen)) *shardv1.EmbedOpen {
		head, _ := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{2, r.width}, make([]float32, 2*r.width))
		o := &shardv1.EmbedOpen{Digest: modelDigest, Lo: uint32(r.spans[1].Lo), Hi: uint32(r.spans[1].Hi),
			Lengths: []uint32{2}, Hidden: head}
		change(o)
		return o
	}
	for name, c := range map[string]struct {
		open *shardv1.EmbedOpen
		code fault.Code
		want string
	}{
		"other model":  {first(func(o *shardv1.EmbedOpen) { o.Digest = "x" }), fault.NotFound, "does not hold them"},
		"other layers": {first(func(o *shardv1.EmbedOpen) { o.Hi = 99 }), fault.NotFound, "does not hold them"},
		"no texts":     {first(func(o *shardv1.EmbedOpen) { o.Lengths = nil }), fault.Invalid, "open.lengths"},
		"empty text":   {first(func(o *shardv1.EmbedOpen) { o.Lengths = []uint32{2, 0} }), fault.Invalid, "open.lengths[1]"},
		"long text":    {first(func(o *shardv1.EmbedOpen) { o.Lengths = []uint32{99999} }), fault.Invalid, "open.lengths[0]"},
		"many texts": {first(func(o *shardv1.EmbedOpen) { o.Lengths = make([]uint32, 2000) }), fault.Invalid,
			"open.lengths"},
		"few ids":     {first(func(o *shardv1.EmbedOpen) { o.Ids = []uint32{1} }), fault.Invalid, "open.ids"},
		"unknown id":  {first(func(o *shardv1.EmbedOpen) { o.Ids[1] = 1 << 31 }), fault.Invalid, "open.ids[1]"},
		"no hidden":   {last(func(o *shardv1.EmbedOpen) { o.Hidden = nil }), fault.Invalid, "open.hidden"},
		"other shape": {last(func(o *shardv1.EmbedOpen) { o.Hidden.Shape[1]++ }), fault.Invalid, "open.hidden"},
		"damage":      {last(func(o *shardv1.EmbedOpen) { o.Hidden.Checksum++ }), fault.DataLoss, "checksum"},
	} {
		if _, _, err := r.call(r.ctx, 0, c.open, nil); fault.CodeOf(err) != c.code ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %v with %s", name, err, c.code, c.want)
		}
	}
	if _, _, err := r.call(context.Background(), 0, first(func(*shardv1.EmbedOpen) {}), nil); fault.CodeOf(
		err) != fault.FailedPrecondition {
		t.Errorf("without a deadline: got %v", err)
	}
	stream, err := r.stages[0].Infer(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: &shardv1.InferOpen{
		Pipeline: pipelineName(1), Digest: modelDigest, Route: []*shardv1.Hop{{Hi: uint32(r.spans[0].Hi)}},
	}}})
	if _, err := stream.Recv(); fault.CodeOf(rpc.FromStatus(err)) != fault.FailedPrecondition {
		t.Errorf("a pipeline over an encoder: got %v", err)
	}
}
