package shard

// This test is internal because a peer cannot choose what a stage does between its answer and the end of the call.

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
)

// savedStream is a call of SaveState whose caller acts as soon as it has the answer.
type savedStream struct {
	grpc.ServerStreamingServer[shardv1.SaveStateResponse]
	ctx   context.Context
	saved func()
}

func (s *savedStream) Context() context.Context { return s.ctx }

func (s *savedStream) Send(r *shardv1.SaveStateResponse) error {
	if r.GetSaved() != nil {
		s.saved()
	}
	return nil
}

// A trainer that has the answer of SaveState may send the next save at once, before the call has returned.
func TestSaveState_IsOverWhenItAnswers(t *testing.T) {
	service := New(Config{Kernels: ref.New[float32]()})
	defer service.Close()
	chain := make([]byte, idLen)
	r := &trainRun{service: service, ctx: t.Context(), members: members{shares: []share{{}}},
		snapshots: make(chan *snapshot, 1), writing: make(chan struct{}, 1)}
	service.training.runs[runKey(chain, 0)] = r
	if err := r.save(&shardv1.Save{}); err != nil {
		t.Fatal(err)
	}
	var again error = errNotFinite // any
	stream := &savedStream{ctx: t.Context(), saved: func() { again = r.save(&shardv1.Save{}) }}
	if err := service.SaveState(&shardv1.SaveStateRequest{Chain: chain}, stream); err != nil || again != nil {
		t.Errorf("the call ends with %v, and a save right after its answer with %v", err, again)
	}
}

// A call whose caller has gone takes no snapshot away from the call that comes after it.
func TestSaveState_ACallThatWasGivenUpTakesNothing(t *testing.T) {
	for range 100 { // half of them see the snapshot first
		r := &trainRun{ctx: t.Context(), members: members{shares: []share{{}}}, snapshots: make(chan *snapshot, 1)}
		if err := r.save(&shardv1.Save{}); err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if shot, err := r.takeSnapshot(gone, 0); shot != nil || err == nil {
			t.Fatalf("a call that was given up gets %v, %v", shot, err)
		}
		if len(r.snapshots) == 0 {
			t.Fatal("the snapshot is lost")
		}
		if shot, err := r.takeSnapshot(t.Context(), 0); shot != r.snapshot || err != nil {
			t.Fatalf("the next call gets %v, %v", shot, err)
		}
	}
}
