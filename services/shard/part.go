package shard

import (
	"context"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Part is a model whose files have holes: what is missing of them comes from elsewhere when layers are assigned.
type Part struct {
	Name, Digest string
	Files        *model.Files // Files.Source must be Placed
	// Has reports whether the bytes of a tensor are there.
	Has func(weights.Place) bool
	// Fetch brings the tensors that are missing, all or none of each. progress is called, by one goroutine at a time,
	// with the bytes that are there and those that are needed.
	Fetch func(ctx context.Context, names []string, progress func(done, total int64)) error
}

// OfferPart is like Offer for a model whose files have holes. The files must stay open. Layers serve only when all of
// their tensors are there: a load fetches them first, and a tensor with a hole is never read. Only the test of the
// host's speed and the count of what a device needs read holes, as zeros, since the values do not count.
func (s *Service) OfferPart(p Part) error {
	source, ok := p.Files.Source.(weights.Placed)
	if !ok {
		return fault.New(fault.Unimplemented, "offer model %s: its tensors are no parts of files", p.Name)
	}
	test := *p.Files
	p.Files.Source = &whole{Placed: source, has: p.Has, model: p.Name}
	s.offer(p.Name, p.Digest, p.Files, &test, p.Fetch)
	return nil
}

// whole is a source that reads only tensors without holes.
type whole struct {
	weights.Placed
	has   func(weights.Place) bool
	model string
}

// Data returns the bytes of a tensor. The error is FailedPrecondition if some of them are missing.
func (w *whole) Data(name string) ([]byte, error) {
	if place, ok := w.Place(name); ok && place.Bytes > 0 && !w.has(place) {
		return nil, fault.New(fault.FailedPrecondition, "read %s of %s: this shard has not fetched it", name, w.model)
	}
	return w.Placed.Data(name)
}

// fetchSpan brings the tensors of a span. It counts in l what is there, and calls progress, unless that is nil.
func (s *Service) fetchSpan(ctx context.Context, o *offer, l *load, progress func()) error {
	if o.fetch == nil {
		return nil
	}
	err := o.fetch(ctx, o.files.SpanFiles(l.span), func(done, total int64) {
		l.fetched.Store(done)
		l.fetch.Store(total)
		if progress != nil {
			progress()
		}
	})
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "fetch layers %v of %s", l.span, o.name)
	}
	s.log.Info("layers are there", "model", o.name, "layers", l.span.String(), "bytes", l.fetch.Load())
	return nil
}
