package trainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// A run has one leader. The lock in the registry says who that is, so that another trainer takes a run up only when
// its leader has gone. The lock is not what makes it safe: a leader may be suspended, or cut off from the
// registry, and go on without knowing that it has been deposed. That is what the claim on the run's folder is for
// (pkg/checkpoint) and the epoch that stages compare.

const (
	lockWait   = 30 * time.Second // for the lock of a run whose trainer may have gone a moment ago
	lockRetry  = 2 * time.Second
	claimCheck = time.Second
)

// deposedError says that another trainer has taken the run up.
type deposedError struct{ err error }

func (e *deposedError) Error() string {
	return fmt.Sprintf("another trainer has taken the run up: %v", e.err)
}
func (e *deposedError) Unwrap() error { return e.err }

// FaultCode returns FailedPrecondition.
func (e *deposedError) FaultCode() fault.Code { return fault.FailedPrecondition }

// lock is the key of the run's lock.
func (r *run) lock() string { return lockOf(r.name) }

func lockOf(name string) string { return "trainer/runs/" + name }

// holder names this trainer in locks.
func holder() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("trainer %s/%d", host, os.Getpid())
}

// lead takes the run's lock and runs the run. It goes on when the lock is lost, as long as nobody takes the claim.
// The caller calls release when it has recorded how the run ended: whoever gets the lock then reads the record.
func (r *run) lead(ctx context.Context, a *activity) (stopped bool, release func(), err error) {
	release = func() {}
	registry := r.service.cfg.Registry
	lease := a.lease
	if lease == nil {
		wait, cancel := context.WithTimeout(ctx, lockWait)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			select {
			case <-a.stop:
				cancel()
			case <-wait.Done():
			}
		}()
		lease, err = registry.Lock(wait, r.lock(), holder())
		cancel()
		<-ended
		if err != nil {
			select {
			case <-a.stop:
				return true, release, nil
			default:
			}
			return false, release, fault.Wrap(fault.FailedPrecondition, err, "another trainer leads run %s", r.name)
		}
	}
	held := make(chan discovery.Lease, 1)
	held <- lease
	r.epoch.Store(lease.Token())
	r.update(func(s *trainerv1.Run) { s.Epoch = lease.Token() })
	watching, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.keepLock(watching, held)
	}()
	release = func() {
		stop()
		<-done
		last := <-held
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockRetry)
		defer cancel()
		if err := last.Release(limit); err != nil {
			r.service.log.Debug("release the lock of a run", "run", r.name, "error", err)
		}
	}
	stopped, err = r.train(ctx)
	return stopped, release, err
}

// keepLock takes the lock again whenever it is lost, until ctx ends. held has the lease.
func (r *run) keepLock(ctx context.Context, held chan discovery.Lease) {
	for {
		lease := <-held
		held <- lease
		select {
		case <-lease.Lost():
		case <-ctx.Done():
			return
		}
		r.service.log.Warn("the lock of a run is lost", "run", r.name)
		release, cancel := context.WithTimeout(ctx, lockRetry)
		_ = lease.Release(release) // it may have gone with its session
		cancel()
		for {
			next, err := r.service.cfg.Registry.Lock(ctx, r.lock(), holder())
			if err == nil {
				<-held
				held <- next
				r.epoch.Store(next.Token())
				break
			}
			select {
			case <-time.After(lockRetry):
			case <-ctx.Done():
				return
			}
		}
	}
}

// lead returns an error if another trainer has taken the run up. It looks every second at most.
func (t *training) lead() error {
	if time.Since(t.led) < claimCheck {
		return nil
	}
	t.led = time.Now()
	if err := t.store.Held(); err != nil {
		return &deposedError{err}
	}
	return nil
}

// standBy takes up runs whose trainer has gone, until ctx ends.
func (s *Service) standBy(ctx context.Context) {
	waiting := map[string]bool{}
	done := make(chan string)
	tick := time.NewTicker(s.cfg.Standby)
	defer tick.Stop()
	for {
		files, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*", recordName)) // the pattern is valid
		for _, path := range files {
			name := filepath.Base(filepath.Dir(path))
			if r, err := s.readRecord(path); err != nil || waiting[name] || !s.unfinished(r) {
				continue
			}
			waiting[name] = true
			s.wg.Go(func() {
				if err := s.takeUp(ctx, name, path); err != nil && ctx.Err() == nil {
					s.log.Warn("take up a run", "run", name, "error", err)
				}
				select {
				case done <- name:
				case <-ctx.Done():
				}
			})
		}
		select {
		case name := <-done:
			delete(waiting, name)
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// unfinished reports whether a run that a record describes should go on, and is not active in this trainer.
func (s *Service) unfinished(r *run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unfinishedLocked(r)
}

func (s *Service) unfinishedLocked(r *run) bool {
	if known := s.runs[r.name]; known != nil && known.isActive() {
		return false
	}
	now, _ := r.snapshot()
	return now.GetState() == trainerv1.RunState_RUN_STATE_INTERRUPTED // which stands for those that were active, too
}

// takeUp waits for the lock of a run. If the run should still go on then, it is resumed.
func (s *Service) takeUp(ctx context.Context, name, path string) (err error) {
	lease, err := s.cfg.Registry.Lock(ctx, lockOf(name), holder())
	if err != nil {
		return err
	}
	taken := false
	defer func() {
		if !taken {
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockRetry)
			defer cancel()
			err = errors.Join(err, lease.Release(release))
		}
	}()
	r, err := s.readRecord(path)
	if err != nil || !s.unfinished(r) {
		return err
	}
	m, err := ParseManifest(r.raw)
	if err != nil {
		return err
	}
	now, _ := r.snapshot()
	l := layout{stages: max(1, int(now.GetStages())), replicas: max(1, int(now.GetReplicas()))}
	b, err := s.plan(m, l)
	if err != nil {
		return err
	}
	taken, err = s.resumeLed(ctx, r, b, l, lease)
	return err
}

// resumeLed resumes a run whose lock this trainer has, unless somebody has started the run here meanwhile.
func (s *Service) resumeLed(ctx context.Context, r *run, b *blueprint, l layout, lease discovery.Lease) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.unfinishedLocked(r) {
		return false, nil
	}
	if err := r.launch(ctx, b, l, true, lease); err != nil {
		return false, err
	}
	s.runs[r.name] = r
	s.log.Info("take up a run", "run", r.name, "epoch", lease.Token())
	return true, nil
}
