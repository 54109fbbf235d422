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
//
// The old span serves until the weights of the new one are in memory, unless these have no room beside its cache. In
// that case a load that fails takes the old span back, whose weights are still there: without it the host would hold
// neither. A load that replaces a span ends early when no placer waits for it any more: the plan has changed.

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

// leaveLoad ends the wait of a call for a load. A load in place of others ends with the last one.
func (s *Service) leaveLoad(l *load) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.waiting--; l.waiting == 0 && len(l.replaced) > 0 {
		l.cancel()
	}
}

// abandoned is the error of a load that ends because no placer waits for it.
func (l *load) abandoned() error {
	return fault.New(fault.Aborted, "assign layers %v of %s in place of others: no placer waits for them any more",
		l.span, l.replaced[0].name)
}

// loadSpan loads the weights of a span, and makes room for its KV cache. The weights come first if they have room
// beside the caches of the spans that are replaced. room reports whether those were unloaded.
func (s *Service) loadSpan(
	l *load, o *offer, beside []*model.Stage[float32], pages int, progress func(int64) error,
) (h *held, room bool, err error) {
	s.mu.Lock()
	all, _ := s.used() // with the load
	early := s.cfg.Memory > 0 && all-l.kv > s.cfg.Memory
	s.mu.Unlock()
	if early {
		if room, err := s.makeRoom(l); err != nil {
			return nil, room, err
		}
	}
	stage, err := model.LoadBeside(o.files, l.span, s.cfg.Kernels,
		model.LoadOptions{Encoder: o.files.Spec.Encoder(), Progress: progress}, beside)
	if err != nil {
		return nil, early, fault.Wrap(fault.FailedPrecondition, err, "load layers %v of %s", l.span, o.name)
	}
	if !early {
		if room, err := s.makeRoom(l); err != nil {
			return nil, room, err
		}
	}
	h = s.newHeld(o.name, o.digest, stage, pages)
	h.assigned, h.weightBytes, h.room = true, o.files.SpanBytes(l.span), l.room
	h.pooling, h.poolingErr = o.files.Pooling()
	return h, true, nil
}

// takeBack holds the spans again that a failed load has replaced, with empty caches. Where something else has taken
// their memory meanwhile they stay away. The caller holds mu, and has removed the load.
func (s *Service) takeBack(l *load) {
	for _, old := range l.replaced {
		span := old.stage.Range
		loads := slices.ContainsFunc(s.loads, func(l *load) bool { return l.digest == old.digest && l.span == span })
		if s.closed || loads || s.holdsLocked(old.digest, span) != nil {
			continue
		}
		h := s.newHeld(old.name, old.digest, old.stage, old.cache.Config().Pages)
		h.assigned, h.weightBytes, h.pooling, h.poolingErr = true, old.weightBytes, old.pooling, old.poolingErr
		if err := s.reserveAgain(h, old); err != nil {
			s.log.Warn("take back replaced layers", "model", old.name, "layers", span.String(), "error", err)
			continue
		}
		s.held = append(s.held, h)
		if all, _ := s.used(); s.cfg.Memory > 0 && all > s.cfg.Memory {
			s.held = s.held[:len(s.held)-1]
			s.dropRoom(h)
			s.log.Warn("take back replaced layers", "model", old.name, "layers", span.String(), "bytes", all,
				"memory", s.cfg.Memory)
			continue
		}
		s.log.Info("take back replaced layers", "model", old.name, "layers", span.String())
	}
}

// makeRoom unloads the spans that a load replaces, waits until their KV caches are free, and reserves what it counts on
// of them. If no placer waits for the load any more, they stay: another placer may want them. room reports whether they
// are unloaded.
func (s *Service) makeRoom(l *load) (room bool, err error) {
	s.mu.Lock()
	if len(l.replaced) > 0 && l.waiting == 0 {
		s.mu.Unlock()
		return false, l.abandoned()
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
			return false, fault.New(fault.Unavailable, "assign layers %v of %s: the shard is stopping", l.span, h.name)
		}
	}
	return true, s.reserveLater(l.room)
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
