package shard_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
)

func (r *assignRig) replace(lo, hi uint32, old ...*shardv1.Span) error {
	_, err := last(r.client.Assign(r.ctx, &shardv1.AssignRequest{
		Digest: modelDigest, Lo: lo, Hi: hi, KvPositions: 128, Fence: 1, Replaces: old, GraceMs: 100,
	}))
	return err
}

// roomOf returns the bytes of the weights of some layers and of the KV caches of a number of layers, as assign makes
// them.
func roomOf(t *testing.T, span model.Range, caches int64) int64 {
	t.Helper()
	r := newAssignRig(t, 0)
	set := cpu.New(1)
	defer set.Close()
	return r.files.SpanBytes(span) + caches*128*r.files.Spec.KVBytes(set.KV())
}

// TestService_Assign_ReplacesASpanWhereMemoryIsShort lets a span grow and shrink on a shard that has no room for the KV
// caches of both.
func TestService_Assign_ReplacesASpanWhereMemoryIsShort(t *testing.T) {
	all := model.Range{Lo: 2, Hi: 5}
	r := newAssignRig(t, roomOf(t, all, 4))
	old := model.Range{Lo: 3, Hi: 5}
	if _, err := r.assign(3, 5, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.replace(2, 5); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("beside the old span: %v", err)
	}
	// The pipeline over the old span ends after the grace.
	stream, err := r.client.Infer(r.ctx)
	if err == nil {
		err = stream.Send(&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: &shardv1.InferOpen{
			Pipeline: pipelineName(1), Digest: modelDigest, Sampler: "mem:shard",
			Route: []*shardv1.Hop{{Lo: 3, Hi: 5}}}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.replace(2, 5, &shardv1.Span{Lo: 3, Hi: 5}, &shardv1.Span{Lo: 1, Hi: 2}); err != nil {
		t.Fatalf("in place of the old span: %v", err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the pipeline over the old span: %v", err)
	}
	held := func(what string, span model.Range, loaded int64) {
		t.Helper()
		d := r.describe()
		i := d.GetInventory()
		if len(d.GetHeld()) != 1 || int(d.GetHeld()[0].GetLo()) != span.Lo || int(d.GetHeld()[0].GetHi()) != span.Hi {
			t.Errorf("%s: it holds %v", what, d.GetHeld())
		}
		used, want := int64(i.GetMemoryBytes()-i.GetMemoryFreeBytes()), r.files.SpanBytes(span)+int64(i.GetKvBytes())
		if used != want {
			t.Errorf("%s: it counts %d bytes as used, want %d", what, used, want)
		}
		if int64(i.GetLoadedBytes()) != loaded {
			t.Errorf("%s: it has loaded %d bytes, want %d", what, i.GetLoadedBytes(), loaded)
		}
	}
	loaded := r.files.SpanBytes(old) + r.files.SpanBytes(all, old)
	held("grown", all, loaded)
	if err := r.replace(2, 4, &shardv1.Span{Lo: 2, Hi: 5}); err != nil {
		t.Fatalf("shrink: %v", err)
	}
	held("shrunk", model.Range{Lo: 2, Hi: 4}, loaded)
	if err := r.replace(0, 5, &shardv1.Span{Lo: 2, Hi: 4}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("what does not fit in place either: %v", err)
	}
	held("refused", model.Range{Lo: 2, Hi: 4}, loaded)
}

// TestService_Assign_ReplacesOnlyWhatWasAssigned names spans that cannot be replaced, and too long a grace.
func TestService_Assign_ReplacesOnlyWhatWasAssigned(t *testing.T) {
	r := newAssignRig(t, 0)
	if err := r.service.Hold("stories", modelDigest, r.files, model.Range{Lo: 4, Hi: 5}); err != nil {
		t.Fatal(err)
	}
	if err := r.replace(3, 5, &shardv1.Span{Lo: 4, Hi: 5}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("in place of a span that was given by flag: %v", err)
	}
	_, err := last(r.client.Assign(r.ctx, &shardv1.AssignRequest{Digest: modelDigest, Hi: 1, GraceMs: 60_001}))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("too long a grace: %v", err)
	}
}
