package shard

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// gradient is the gradient of a span: one flat buffer in name order, and views of it. It leaves out frozen
// parameters.
//
// The passes write the buffer and the optimizer reads it, so it is in the memory of the kernel set. What is exchanged
// with other replicas is in the host's: fetch copies a part there, and store copies the whole back. On processors both
// are the same memory, and nothing is copied.
type gradient struct {
	flat   kernel.Buffer[float32]
	host   []float32 // nil until it is needed
	set    kernel.Memory[float32]
	params *model.Params[float32]
}

// takeGradient returns a gradient with unspecified values, from the pool if it has one.
func (s *trainSpan) takeGradient() *gradient {
	if n := len(s.grads); n > 0 {
		g := s.grads[n-1]
		s.grads = s.grads[:n-1]
		return g
	}
	total := 0
	offsets := map[string]int{}
	for _, p := range sorted(s.stage.Params().Tensors) {
		offsets[p.Name] = total
		if !s.frozen[p.Owner()] {
			total += len(p.Data)
		}
	}
	g := s.run.newGradient(total)
	g.params = &model.Params[float32]{}
	for _, p := range s.stage.Params().Tensors {
		if s.frozen[p.Owner()] {
			p.Data = nil
			g.params.Tensors = append(g.params.Tensors, p)
			continue
		}
		at := offsets[p.Name]
		p.Data = g.flat[at : at+len(p.Data) : at+len(p.Data)]
		g.params.Tensors = append(g.params.Tensors, p)
	}
	return g
}

// newGradient returns a gradient of so many values, without views.
func (r *trainRun) newGradient(values int) *gradient {
	g := &gradient{flat: r.memory.Alloc(values), set: r.memory}
	if r.service.device == nil {
		g.host = g.flat
	}
	return g
}

// values returns the memory of the host for the whole gradient.
func (g *gradient) values() []float32 {
	if g.host == nil {
		g.host = make([]float32, len(g.flat))
	}
	return g.host
}

// fetch returns the values of a bucket in the host's memory. What the caller changes there is part of the gradient
// only after store.
func (g *gradient) fetch(b *bucket) []float32 {
	out := g.values()[b.lo:b.hi]
	g.set.Download(out, g.flat[b.lo:b.hi])
	return out
}

// store makes the values in the host's memory the gradient.
func (g *gradient) store() { g.set.Upload(g.flat, g.values()) }

// tensor returns the gradient of one parameter.
func (g *gradient) tensor(name string) kernel.Buffer[float32] {
	p, ok := g.params.Get(name)
	if !ok {
		panic(fmt.Sprintf("gradient of %q: no such parameter", name))
	}
	return p.Data
}

// trained lists the parameters that have gradients, in name order.
func (s *trainSpan) trained() []model.Param[float32] {
	var out []model.Param[float32]
	for _, p := range sorted(s.stage.Params().Tensors) {
		if !s.frozen[p.Owner()] {
			out = append(out, p)
		}
	}
	return out
}
