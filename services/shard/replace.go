package shard

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// A host that is to hold more or fewer layers of a model than before may have no room for the KV caches of both spans.
// Then the old span is replaced: its pipelines end and its cache is freed, but its weights stay until the new span has
// taken over those that both have. So nothing is read twice.

// graceOf returns how long pipelines over a span that goes may go on.
func graceOf(what string, ms uint32) (time.Duration, error) {
	grace := time.Duration(ms) * time.Millisecond
	if grace > maxGrace {
		return 0, fault.Field("grace_ms", "%s layers: want at most %d, got %d", what, maxGrace.Milliseconds(), ms)
	}
	return grace, nil
}

// replacedBy returns the spans that a request replaces, of those that the shard has. The caller holds mu.
func (s *Service) replacedBy(o *offer, span model.Range, names []*shardv1.Span) ([]*held, error) {
	var out []*held
	for _, name := range names {
		old := model.Range{Lo: int(name.GetLo()), Hi: int(name.GetHi())}
		for _, h := range slices.Concat(s.held, s.retiring) {
			switch {
			case h.digest != o.digest || h.stage.Range != old || slices.Contains(out, h):
			case !h.assigned:
				return nil, fault.New(fault.FailedPrecondition,
					"assign layers %v of %s in place of %v: those were given by flag", span, o.name, old)
			default:
				out = append(out, h)
			}
		}
	}
	return out, nil
}

// freedFor returns the bytes of the KV caches of spans that a load replaces, but for those that another load counts on.
// Their weights stay until the new span is loaded. The caller holds mu.
func (s *Service) freedFor(replaced []*held, o *offer) (bytes int64) {
	for _, h := range replaced {
		if !slices.ContainsFunc(s.loads, func(l *load) bool { return slices.Contains(l.replaced, h) }) {
			bytes += h.kvBytes(o)
		}
	}
	return bytes
}

// leaveLoad ends the wait of a call for a load.
func (s *Service) leaveLoad(l *load) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.waiting--
}

// makeRoom unloads the spans that a load replaces, and waits until their KV caches are free. If no placer waits for the
// load any more, they stay: another placer may want them.
func (s *Service) makeRoom(l *load) error {
	s.mu.Lock()
	if len(l.replaced) > 0 && l.waiting == 0 {
		s.mu.Unlock()
		return fault.New(fault.Aborted, "assign layers %v of %s in place of others: no placer waits for them any more",
			l.span, l.replaced[0].name)
	}
	for _, h := range l.replaced {
		if !s.closed && slices.Contains(s.held, h) {
			s.retireLocked(h, l.grace)
		}
	}
	s.mu.Unlock()
	for _, h := range l.replaced {
		select {
		case <-h.gone:
		case <-s.ctx.Done():
			return fault.New(fault.Unavailable, "assign layers %v of %s: the shard is stopping", l.span, h.name)
		}
	}
	return nil
}

// kept returns the spans whose weights are only kept for loads that replace them. The caller holds mu.
func (s *Service) kept() []*held {
	var out []*held
	for _, l := range s.loads {
		for _, h := range l.replaced {
			if !slices.Contains(s.held, h) && !slices.Contains(s.retiring, h) && !slices.Contains(out, h) {
				out = append(out, h)
			}
		}
	}
	return out
}
