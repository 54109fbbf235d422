package shard

// This test is internal because a peer cannot choose what two goroutines of a stage do at the same time.

import (
	"testing"

	"google.golang.org/grpc"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
)

// closedStream notes whether it is closed by the holder of the lock.
type closedStream struct {
	grpc.BidiStreamingClient[samplerv1.PushRequest, samplerv1.PushResponse]
	of     *toSampler
	locked bool
}

func (s *closedStream) CloseSend() error {
	if s.locked = !s.of.mu.TryLock(); !s.locked {
		s.of.mu.Unlock()
	}
	return nil
}

// gRPC does not allow CloseSend beside a Send, and the sampler may ask for a row when the router closes a pipeline.
func TestToSampler_IsNotClosedWhileARowIsSent(t *testing.T) {
	s := &closedStream{of: &toSampler{}}
	s.of.stream = s
	if err := s.of.close(); err != nil || !s.locked {
		t.Errorf("closed with the lock: %v, %v", s.locked, err)
	}
}
