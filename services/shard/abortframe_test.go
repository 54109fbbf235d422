package shard

// This test is internal because a peer cannot choose which of two things that are ready a stage sees first.

import (
	"errors"
	"testing"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// A stage that waits for a microbatch meets the abort of its attempt as a frame and as the end of its context, in no
// order. The attempt ends either way, and the abort is there to be answered.
func TestStepRun_TheAbortOfItsAttemptIsNotLost(t *testing.T) {
	at := attempt{step: 3, n: 1}
	abort := &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Abort{Abort: &shardv1.Abort{Step: at.step,
		Attempt: at.n}}}
	for range 200 { // half of them meet the frame first
		r := &trainRun{ctx: t.Context(), frames: make(chan *shardv1.TrainRequest, 1), fence: newFence()}
		ctx, cancel := r.fence.begin(r.ctx, at)
		r.fence.raise(at)
		r.frames <- abort
		s := &stepRun{trainRun: r, ctx: ctx, at: at, step: &shardv1.Step{Step: at.step, Attempt: at.n}}
		if _, err := s.microbatch(pass{}); !errors.Is(err, errAborted) {
			t.Fatalf("the attempt ends with %v, want %v", err, errAborted)
		}
		cancel(nil)
		if r.unread == nil && len(r.frames) == 0 {
			t.Fatal("the abort is lost")
		}
		f, err := r.frame()
		if f != abort {
			t.Fatalf("the handler reads %v, %v after the attempt, want the abort", f, err)
		}
	}
}
