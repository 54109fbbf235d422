package router

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Discovery is only a hint. A registry that is restarted comes back empty, and entries may flap. So an
// instance that is no longer listed is kept as long as it says that it serves. One that is being
// stopped says that it does not, and pipelines leave it.

const (
	healthLimit = time.Second     // for the answer of an instance that is no longer listed
	healthEvery = 2 * time.Second // between two checks of it
)

// errLeaving ends a pipeline because one of its members is being stopped. None of its sequences is to
// blame.
var errLeaving = errors.New("a member of the pipeline is being stopped")

// update takes over what discovery lists for a service. Instances that are missing are kept until
// checkMissing finds out about them, except for those whose address another instance has now.
func (s *Service) update(service string, listed []discovery.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := slices.Clone(listed)
	for _, i := range listed {
		delete(s.missing, i.ID)
		if service == "shard" && s.metaChanged(i) {
			s.stale[i.ID] = true // it is asked again what it holds
		}
	}
	for _, old := range s.instances[service] {
		if slices.ContainsFunc(
			listed,
			func(i discovery.Instance) bool { return i.ID == old.ID || i.Addr == old.Addr },
		) {
			continue
		}
		state = append(state, old)
		if s.missing[old.ID] == nil {
			s.missing[old.ID] = &missing{service: service}
		}
	}
	s.instances[service] = state
	s.notifyChange()
}

// metaChanged reports whether an instance is listed with other attributes than before. The caller holds mu.
func (s *Service) metaChanged(i discovery.Instance) bool {
	for _, old := range s.instances[i.Service] {
		if old.ID == i.ID {
			return !maps.Equal(old.Meta, i.Meta)
		}
	}
	return false
}

// missing is what the router knows about an instance that is no longer listed.
type missing struct {
	service string
	checked time.Time // zero before the first check
	asking  bool
}

// checkMissing asks instances that are no longer listed whether they serve, and drops those that do
// not. It does not wait for the answers.
func (s *Service) checkMissing(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range s.missing {
		i := slices.IndexFunc(s.instances[m.service], func(i discovery.Instance) bool { return i.ID == id })
		if i < 0 {
			delete(s.missing, id)
			continue
		}
		if m.asking || time.Since(m.checked) < healthEvery {
			continue
		}
		m.asking = true
		addr := s.instances[m.service][i].Addr
		wg.Go(func() {
			err := s.serving(ctx, addr)
			s.mu.Lock()
			defer s.mu.Unlock()
			m.asking, m.checked = false, time.Now()
			if err == nil || ctx.Err() != nil || s.missing[id] != m { // listed again in the meantime
				return
			}
			delete(s.missing, id)
			s.instances[m.service] = slices.DeleteFunc(s.instances[m.service],
				func(i discovery.Instance) bool { return i.ID == id })
			s.log.Info("drop a member that is no longer listed", "service", m.service, "id", id, "address", addr,
				"error", err)
			s.leave(addr)
			s.notifyChange()
			notify()
		})
	}
}

// serving asks an instance for its health.
func (s *Service) serving(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, healthLimit)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(addr)
	if err != nil {
		return err
	}
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err == nil && resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		err = fault.New(fault.Unavailable, "check health: %s", resp.GetStatus())
	}
	return err
}

// leave ends the pipelines over a member that is being stopped, so that it need not wait for them: if
// another pipeline can take their sequences, or if only the sampler has to be replaced. The caller
// holds mu.
func (s *Service) leave(addr string) {
	for _, p := range s.pipelines {
		uses := p.samplerAddr() == addr
		for _, hop := range p.hops() {
			uses = uses || hop.Addr == addr
		}
		if uses && (p.spare.Load() || p.samplerAddr() == addr && len(s.instances["sampler"]) > 0) {
			p.cancel(fault.Wrap(fault.Unavailable, errLeaving, "leave %s", addr))
		}
	}
}
