package shard

import "context"

// draining reports whether the shard is about to stop. The caller holds mu.
func (t *training) draining() bool {
	select {
	case <-t.leave:
		return true
	default:
		return false
	}
}

// Drain asks the trainers of all training stages to let them go after their current step, and waits until they have
// done so or ctx ends. It refuses further ones. Inference goes on.
func (s *Service) Drain(ctx context.Context) {
	t := s.training
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.draining() {
		close(t.leave)
	}
	for len(t.runs) > 0 && ctx.Err() == nil {
		ended := t.ended
		t.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			s.log.Warn("stop with training stages that have not been let go")
		}
		t.mu.Lock()
	}
}
