package shard_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/shard"
)

// assignAdapters is the memory for adapters of an assignRig: room for one.
const assignAdapters = 64 << 10

// assignRig is a shard without layers that takes assignments.
type assignRig struct {
	t       *testing.T
	ctx     context.Context
	service *shard.Service
	client  shardv1.ShardServiceClient
	files   *model.Files
}

func newAssignRig(t *testing.T, memory int64) *assignRig {
	t.Helper()
	set := cpu.New(1)
	t.Cleanup(set.Close)
	return newAssignRigOn(t, memory, set, "f32")
}

// newAssignRigOn is newAssignRig on a kernel set, which is closed after the shard, with a file of a type.
func newAssignRigOn(t *testing.T, memory int64, set kernel.Set[float32], dtype string) *assignRig {
	t.Helper()
	dir := os.Getenv("LAMINA_SHARED")
	if dir == "" {
		dir = "../../../shared"
	}
	path := filepath.Join(dir, "models/stories260K/stories260K-"+dtype+".gguf")
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: set LAMINA_SHARED", path)
	}
	files, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	network := memnet.New()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	s := shard.New(shard.Config{Kernels: set, Dialer: dialer, KVPositions: 64, ID: "shard-x", Assignable: true,
		Memory: memory, Zone: "west", AdapterBytes: assignAdapters})
	s.Offer("stories", modelDigest, files)
	server := rpc.NewServer(rpc.ServerOptions{})
	s.Register(server)
	samplerv1.RegisterSamplerServiceServer(server, &rowSink{rows: map[string]chan *samplerv1.Row{}})
	l, err := rpc.Listen("mem:shard", rpc.ListenOptions{Net: network})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		if err := rpc.Serve(ctx, server, l, nil, rpc.DrainLimit(time.Second)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
		for _, err := range []error{s.Close(), dialer.Close(), files.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	conn, err := dialer.Dial("mem:shard")
	if err != nil {
		t.Fatal(err)
	}
	return &assignRig{t, ctx, s, shardv1.NewShardServiceClient(conn), files}
}

// last reads a stream to its end and returns its last frame.
func last[T any](stream grpc.ServerStreamingClient[T], err error) (*T, error) {
	var out *T
	for err == nil {
		var frame *T
		if frame, err = stream.Recv(); err == nil {
			out = frame
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out, err
}

func (r *assignRig) assign(lo, hi uint32, fence uint64) (*shardv1.Held, error) {
	resp, err := last(r.client.Assign(r.ctx,
		&shardv1.AssignRequest{Digest: modelDigest, Lo: lo, Hi: hi, KvPositions: 128, Fence: fence}))
	return resp.GetHeld(), err
}

func (r *assignRig) unload(lo, hi uint32, fence uint64) (*shardv1.UnloadResponse, error) {
	return last(r.client.Unload(r.ctx,
		&shardv1.UnloadRequest{Digest: modelDigest, Lo: lo, Hi: hi, Fence: fence, GraceMs: 100}))
}

func (r *assignRig) describe() *shardv1.DescribeResponse {
	r.t.Helper()
	resp, err := r.client.Describe(r.ctx, &shardv1.DescribeRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

func TestService_Assign_LoadsBesideWhatIsHeld(t *testing.T) {
	r := newAssignRig(t, 64<<20)
	changed := r.service.Changed()
	h, err := r.assign(1, 3, 5)
	if err != nil || h.GetLo() != 1 || h.GetHi() != 3 || !h.GetAssigned() || h.GetKvPages()*h.GetKvPageLen() != 128 {
		t.Fatalf("assigned %v, %v", h, err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told of the change")
	}
	want := r.files.SpanBytes(model.Range{Lo: 1, Hi: 3})
	i := r.describe().GetInventory()
	if i.GetLoadedBytes() != uint64(want) || h.GetWeightBytes() != uint64(want) || i.GetFence() != 5 {
		t.Errorf("loaded %d bytes under fence %d, want %d under 5", i.GetLoadedBytes(), i.GetFence(), want)
	}
	if again, err := r.assign(1, 3, 5); err != nil || again.GetLo() != 1 {
		t.Errorf("the same assignment again: %v, %v", again, err)
	}
	if i := r.describe().GetInventory(); i.GetLoadedBytes() != uint64(want) {
		t.Errorf("the same assignment again has loaded %d bytes", i.GetLoadedBytes())
	}
	// The layers 1 and 2 are in memory already.
	if _, err := r.assign(0, 4, 6); err != nil {
		t.Fatal(err)
	}
	want += r.files.SpanBytes(model.Range{Lo: 0, Hi: 4}, model.Range{Lo: 1, Hi: 3})
	d := r.describe()
	if n := d.GetInventory().GetLoadedBytes(); n != uint64(want) || len(d.GetHeld()) != 2 {
		t.Errorf("loaded %d bytes and hold %d spans, want %d and 2", n, len(d.GetHeld()), want)
	}
	// Layers that both spans have are in memory once.
	i = d.GetInventory()
	if used := i.GetMemoryBytes() - i.GetMemoryFreeBytes(); used != uint64(want)+i.GetKvBytes() {
		t.Errorf("spans of %d bytes together and %d of KV cache take %d", want, i.GetKvBytes(), used)
	}
	if spans := r.service.Meta()["spans"]; spans != "test:0-4,test:1-3" {
		t.Errorf("in discovery it holds %q", spans)
	}
	if resp, err := r.unload(1, 3, 6); err != nil || !resp.GetDone() {
		t.Errorf("unload: %v, %v", resp, err)
	}
	if resp, err := r.unload(1, 3, 6); err != nil || !resp.GetDone() {
		t.Errorf("unload what is not held: %v, %v", resp, err)
	}
	if d := r.describe(); len(d.GetHeld()) != 1 || d.GetHeld()[0].GetHi() != 4 {
		t.Errorf("it holds %v", d.GetHeld())
	}
}

func TestService_Assign_ManyAtOnceLoadOnce(t *testing.T) {
	r := newAssignRig(t, 0)
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			if h, err := r.assign(0, 5, 1); err != nil || h.GetHi() != 5 {
				t.Errorf("assigned %v, %v", h, err)
			}
		})
	}
	work.Wait()
	d := r.describe()
	if n := d.GetInventory().GetLoadedBytes(); len(d.GetHeld()) != 1 || n != d.GetHeld()[0].GetWeightBytes() {
		t.Errorf("hold %d spans after %d bytes", len(d.GetHeld()), n)
	}
}

func TestService_Assign_RefusesWhatDoesNotFit(t *testing.T) {
	r := newAssignRig(t, 1<<20)
	for _, c := range []struct {
		name string
		code codes.Code
		call func() error
	}{
		{"no such model", codes.NotFound, func() error {
			_, err := last(r.client.Assign(r.ctx, &shardv1.AssignRequest{Digest: "sha256:other", Hi: 1}))
			return err
		}},
		{"no layers", codes.InvalidArgument, func() error { _, err := r.assign(2, 2, 1); return err }},
		{"too many layers", codes.InvalidArgument, func() error { _, err := r.assign(0, 6, 1); return err }},
		{"too many positions", codes.InvalidArgument, func() error {
			_, err := last(r.client.Assign(r.ctx,
				&shardv1.AssignRequest{Digest: modelDigest, Hi: 1, KvPositions: 1<<24 + 1}))
			return err
		}},
		{"too much memory", codes.ResourceExhausted, func() error { _, err := r.assign(0, 5, 1); return err }},
		{"too long a grace", codes.InvalidArgument, func() error {
			_, err := last(r.client.Unload(r.ctx,
				&shardv1.UnloadRequest{Digest: modelDigest, Hi: 1, GraceMs: 60_001}))
			return err
		}},
		{"too large a ping", codes.InvalidArgument, func() error {
			_, err := r.client.Ping(r.ctx, &shardv1.PingRequest{Payload: make([]byte, 256<<10+1)})
			return err
		}},
		{"too many addresses", codes.InvalidArgument, func() error {
			_, err := r.client.Ping(r.ctx, &shardv1.PingRequest{Addresses: make([]string, 17)})
			return err
		}},
	} {
		if err := c.call(); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", c.name, err, c.code)
		}
	}
	if _, err := r.assign(1, 2, 9); err != nil {
		t.Errorf("what fits: %v", err)
	}
	if _, err := r.assign(2, 3, 8); status.Code(err) != codes.Aborted {
		t.Errorf("a placer that was replaced: %v", err)
	}
	if _, err := r.unload(1, 2, 8); status.Code(err) != codes.Aborted || strings.Contains(err.Error(), "assign") {
		t.Errorf("a placer that was replaced: %v", err)
	}
	if err := r.service.Hold("stories", modelDigest, r.files, model.Range{Lo: 4, Hi: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.unload(4, 5, 9); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unload what was given by flag: %v", err)
	}
}

// TestService_Unload_FreesTheAdaptersOfTheSpan loads an adapter on a span that is unloaded and assigned again. The
// shard has room for one.
func TestService_Unload_FreesTheAdaptersOfTheSpan(t *testing.T) {
	r := newAssignRig(t, 0)
	a := newAdapter(4, 1)
	shards := &inferRig{t: t, ctx: r.ctx, shards: []shardv1.ShardServiceClient{r.client},
		route: []*shardv1.Hop{{Lo: 0, Hi: 5}}}
	for range 3 {
		if _, err := r.assign(0, 5, 1); err != nil {
			t.Fatal(err)
		}
		if _, _, err := shards.loadOn(0, shards.opening(0, a), a); err != nil {
			t.Fatal(err)
		}
		if resp, err := r.unload(0, 5, 1); err != nil || !resp.GetDone() {
			t.Fatalf("unload: %v, %v", resp, err)
		}
	}
}

func TestService_Inventory_SaysWhatTheHostHas(t *testing.T) {
	r := newAssignRig(t, 64<<20)
	if err := r.service.Measure(r.ctx); err != nil {
		t.Fatal(err)
	}
	d := r.describe()
	i := d.GetInventory()
	if d.GetInstance() != "shard-x" || !i.GetAssignable() || i.GetZone() != "west" || i.GetMemoryBytes() != 64<<20 ||
		i.GetMemoryFreeBytes() != 64<<20 || len(i.GetOffers()) != 1 || len(i.GetOffers()[0].GetLayerBytes()) != 5 {
		t.Errorf("the inventory is %v", i)
	}
	if len(i.GetTimes()) != 1 || i.GetTimes()[0].GetDecodeMs() <= 0 || i.GetTimes()[0].GetLive() {
		t.Errorf("times are %v", i.GetTimes())
	}
	h, err := r.assign(0, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	used := i.GetMemoryFreeBytes() - r.describe().GetInventory().GetMemoryFreeBytes()
	if kv := r.describe().GetInventory().GetKvBytes(); kv == 0 || used != h.GetWeightBytes()+kv {
		t.Errorf("a span of %d bytes and %d of KV cache takes %d", h.GetWeightBytes(), kv, used)
	}
	resp, err := last(r.client.Prefetch(r.ctx, &shardv1.PrefetchRequest{Digest: modelDigest, Lo: 1, Hi: 3}))
	if l := resp.GetLoading(); err != nil || l.GetDoneBytes() != l.GetTotalBytes() || l.GetTotalBytes() == 0 {
		t.Errorf("prefetch: %v, %v", resp, err)
	}
	ping, err := r.client.Ping(r.ctx, &shardv1.PingRequest{Addresses: []string{"mem:shard", "mem:nobody"}})
	if err != nil || len(ping.GetTimes()) != 2 || ping.GetTimes()[0].GetRoundTripMs() <= 0 ||
		ping.GetTimes()[0].GetError() != "" || ping.GetTimes()[1].GetError() == "" {
		t.Errorf("pings: %v, %v", ping, err)
	}
}
