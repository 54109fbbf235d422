package shard_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/shard"
)

// newGPURig is a shard without layers that takes assignments for a device without a GPU.
func newGPURig(t *testing.T, memory int64) *assignRig {
	t.Helper()
	set, err := cuda.Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), cuda.Config{KV: kernel.KVAuto,
		Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return newAssignRigOn(t, memory, set, "Q8_0")
}

// reserved returns what is reserved on the device. The inventory must count the same as used.
func (r *assignRig) reserved(what string) uint64 {
	r.t.Helper()
	i := r.describe().GetInventory()
	got := i.GetAccelerators()[0].GetReservedBytes()
	if used := i.GetMemoryBytes() - i.GetMemoryFreeBytes(); used != got {
		r.t.Errorf("%s: %d bytes are used and %d reserved", what, used, got)
	}
	return got
}

// Weights that two spans share stay reserved until neither is held, whichever goes first, so what is reserved depends
// on what is held alone.
func TestService_AGPUsReservationIsOfWhatIsHeld(t *testing.T) {
	skipRace(t)
	const memory = 64 << 20
	type span struct{ lo, hi uint32 }
	r := newGPURig(t, memory)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	assign := func(s span) {
		t.Helper()
		_, err := r.assign(s.lo, s.hi, 1)
		must(err)
	}
	unload := func(s span) {
		t.Helper()
		_, err := r.unload(s.lo, s.hi, 1)
		must(err)
	}
	a, b := span{0, 3}, span{1, 5}
	alone := map[span]uint64{}
	for _, s := range []span{a, b, {1, 3}} {
		assign(s)
		if alone[s] = r.reserved("one span"); alone[s] == 0 {
			t.Fatalf("nothing is reserved for %v", s)
		}
		unload(s)
		if left := r.reserved("no span"); left != 0 {
			t.Fatalf("%d bytes stay reserved of %v", left, s)
		}
	}
	for _, order := range [][2]span{{a, b}, {b, a}} {
		first, second := order[0], order[1]
		assign(first)
		assign(second)
		if both := r.reserved("both"); both >= alone[a]+alone[b] || both <= max(alone[a], alone[b]) {
			t.Errorf("%d bytes are reserved for both, %d and %d for each", both, alone[a], alone[b])
		}
		unload(first) // its weights of layers 1 and 2 stay
		if got := r.reserved("the second"); got != alone[second] {
			t.Errorf("%d bytes are reserved for %v, %d when it is alone", got, second, alone[second])
		}
		unload(second)
		if left := r.reserved("none"); left != 0 {
			t.Errorf("%d bytes stay reserved", left)
		}
	}
	// A span in place of another takes over what both have while the other one goes.
	assign(a)
	must(r.replace(1, 3, &shardv1.Span{Lo: 0, Hi: 3}))
	if got := r.reserved("the replacing span"); got != alone[span{1, 3}] {
		t.Errorf("%d bytes are reserved for the replacing span, %d when it is alone", got, alone[span{1, 3}])
	}
	// What does not fit leaves everything as it was.
	before := r.reserved("before")
	_, err := last(r.client.Assign(r.ctx, &shardv1.AssignRequest{Digest: modelDigest, Lo: 0, Hi: 5,
		KvPositions: 1 << 18, Fence: 1}))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a cache of 2^18 positions: %v", err)
	}
	if after := r.reserved("after a refusal"); after != before {
		t.Errorf("%d bytes are reserved after a refusal, %d before", after, before)
	}
}

// A GPU counts what it needs for layers before their tensors are fetched.
func TestService_AGPUFetchesWhatItIsAssigned(t *testing.T) {
	const digest = "sha256:part"
	r := newGPURig(t, 64<<20)
	files, err := model.Open(r.files.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	var there atomic.Bool
	err = r.service.OfferPart(shard.Part{Name: "part", Digest: digest, Files: files,
		Has: func(weights.Place) bool { return there.Load() },
		Fetch: func(context.Context, []string, func(done, total int64)) error {
			if r.reserved("a load that fetches") == 0 {
				return errors.New("nothing is reserved")
			}
			there.Store(true)
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = last(r.client.Assign(r.ctx,
		&shardv1.AssignRequest{Digest: digest, Lo: 1, Hi: 3, KvPositions: 64, Fence: 1}))
	if err != nil || !there.Load() {
		t.Errorf("layers that have to be fetched: %v, fetched %v", err, there.Load())
	}
}
