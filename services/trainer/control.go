package trainer

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// isActive reports whether the run's goroutine runs.
func (r *run) isActive() bool { return r.activity() != nil }

func (r *run) activity() *activity {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active
}

// halt ends the activity of a run after the current step and waits until it has ended.
func (r *run) halt(ctx context.Context, pause bool) (*trainerv1.Run, error) {
	if a := r.activity(); a != nil {
		a.stopOnce.Do(func() {
			a.pause.Store(pause)
			close(a.stop)
		})
		if !pause {
			a.pause.Store(false) // a stop outranks a pause that has not happened yet
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	now, _ := r.snapshot()
	return now, nil
}

// StopRun stops a run after the current step. A run that is not active but could be resumed is stopped for
// good, in the same state.
func (s *Service) StopRun(ctx context.Context, r *trainerv1.StopRunRequest) (*trainerv1.StopRunResponse, error) {
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	now, err := n.halt(ctx, false)
	if err != nil {
		return nil, err
	}
	if now.GetState() == trainerv1.RunState_RUN_STATE_PAUSED {
		n.update(func(s *trainerv1.Run) { s.State = trainerv1.RunState_RUN_STATE_STOPPED })
		if err := n.record(); err != nil {
			return nil, err
		}
		now, _ = n.snapshot()
	}
	return &trainerv1.StopRunResponse{Run: now}, nil
}

// PauseRun pauses a run after the current step.
func (s *Service) PauseRun(ctx context.Context, r *trainerv1.PauseRunRequest) (*trainerv1.PauseRunResponse, error) {
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	now, err := n.halt(ctx, true)
	if err != nil {
		return nil, err
	}
	if now.GetState() != trainerv1.RunState_RUN_STATE_PAUSED {
		return nil, fault.New(fault.FailedPrecondition, "pause run %s: its state is %v", r.GetRun(), now.GetState())
	}
	return &trainerv1.PauseRunResponse{Run: now}, nil
}

// ResumeRun continues a run from its last complete checkpoint, or from the beginning if it has none.
func (s *Service) ResumeRun(
	ctx context.Context,
	r *trainerv1.ResumeRunRequest,
) (*trainerv1.ResumeRunResponse, error) {
	s.awaitStart(ctx)
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "resume run %s", r.GetRun())
	}
	now, _ := n.snapshot()
	if n.isActive() || now.GetState() == trainerv1.RunState_RUN_STATE_DONE {
		return nil, fault.New(fault.FailedPrecondition, "resume run %s: its state is %v", r.GetRun(), now.GetState())
	}
	l := layout{stages: max(1, int(now.GetStages())), replicas: max(1, int(now.GetReplicas()))}
	if r.GetStages() > 0 {
		l.stages = int(r.GetStages())
	}
	if r.GetReplicas() > 0 {
		l.replicas = int(r.GetReplicas())
	}
	// The record may be of a trainer with other rules.
	m, err := ParseManifest(n.raw)
	if err != nil {
		return nil, err
	}
	b, err := s.plan(m, l)
	if err != nil {
		return nil, err
	}
	if err := n.launch(s.ctx, b, l, true, nil); err != nil {
		return nil, err
	}
	now, _ = n.snapshot()
	return &trainerv1.ResumeRunResponse{Run: now}, nil
}

// deleteWait is how long DeleteRun waits for the lock of a run.
const deleteWait = 3 * time.Second

// DeleteRun removes a run and its files.
func (s *Service) DeleteRun(ctx context.Context, r *trainerv1.DeleteRunRequest) (*trainerv1.DeleteRunResponse, error) {
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.isActive() {
		now, _ := n.snapshot()
		return nil, fault.New(fault.FailedPrecondition, "delete run %s: its state is %v; stop it first", r.GetRun(),
			now.GetState())
	}
	if s.cfg.Registry != nil {
		wait, cancel := context.WithTimeout(ctx, deleteWait)
		lease, err := s.cfg.Registry.Lock(wait, n.lock(), holder())
		cancel()
		if err != nil {
			return nil, fault.Wrap(fault.FailedPrecondition, err, "delete run %s: another trainer may lead it", r.GetRun())
		}
		defer func() { _ = lease.Release(context.WithoutCancel(ctx)) }() // it ends with its session at the latest
	}
	// The record is removed last: a deletion that fails can be repeated.
	out := &trainerv1.DeleteRunResponse{}
	if s.owns(n.dir) {
		if err := n.removeFiles(); err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "delete run %s", r.GetRun())
		}
	} else {
		out.Kept = n.dir
	}
	home := filepath.Join(s.cfg.Dir, n.name)
	if err := os.Remove(filepath.Join(home, recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "delete run %s", r.GetRun())
	}
	_ = os.Remove(home) // it stays if there are files that are not the run's
	delete(s.runs, n.name)
	return out, nil
}

// owns reports whether a folder is inside the trainer's folder of runs, also after symbolic links are followed.
// Nothing outside of it is ever removed: others may have put files there.
func (s *Service) owns(dir string) bool {
	home, err := filepath.EvalSymlinks(s.cfg.Dir)
	if err != nil {
		return false
	}
	if home, err = filepath.Abs(home); err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true // there is nothing to remove
	}
	if err == nil {
		real, err = filepath.Abs(real)
	}
	return err == nil && real != home && within(home, real)
}

// removeFiles removes what the run has written. Files that others put into its folder stay.
func (r *run) removeFiles() error {
	for _, name := range runFiles() {
		if err := os.RemoveAll(filepath.Join(r.dir, name)); err != nil {
			return err
		}
	}
	if err := os.Remove(r.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil //nolint:nilerr // it is not empty: the record is still there, or files that are not the run's
	}
	return nil
}
