package shard

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/model"
)

// gradient is the gradient of a span: one flat slice in name order, and views of it. It leaves out frozen
// parameters.
type gradient struct {
	flat   []float32
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
	g := &gradient{flat: make([]float32, total), params: &model.Params[float32]{}}
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

// tensor returns the gradient of one parameter.
func (g *gradient) tensor(name string) []float32 {
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
