package model

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// random fills a stage with random initial weights.
type random[F tensor.Float] struct {
	seed    uint64
	layers  int
	init    Initialization
	onePlus bool // norms multiply by 1 + gain
}

func (r *random[F]) vector(v wanted) ([]F, error) {
	out := make([]F, v.rows)
	switch {
	case v.role == gainTensor && !r.onePlus:
		for i := range out {
			out[i] = 1
		}
	case v.role == sinkTensor:
		r.draw(out, v)
	}
	return out, nil
}

func (r *random[F]) matrix(w wanted) (kernel.Matrix[F], error) {
	out := make([]F, w.rows*w.cols)
	r.draw(out, w)
	return kernel.Matrix[F]{Rows: w.rows, Cols: w.cols, Dense: out}, nil
}

// draw fills a tensor with normal values that depend on the seed, the tensor's name and the index.
func (r *random[F]) draw(out []F, w wanted) {
	std := r.init.Std
	if r.init.DepthScaled && w.role == residualTensor {
		std /= math.Sqrt(2 * float64(r.layers))
	}
	key := mix(r.seed ^ hashName(w.Param+w.end))
	for i := range out {
		out[i] = F(std * normal(mix(key+uint64(i)*0x9e3779b97f4a7c15)))
	}
}

func (r *random[F]) expert(x *Experts, e int, p expertPart, w wanted) (kernel.Matrix[F], error) {
	w.Name = x.name(p).expert(e)
	return r.matrix(w)
}

func (r *random[F]) expertBias(_ *Experts, _ int, _ expertPart, v wanted) ([]F, error) {
	return r.vector(v)
}

func (r *random[F]) packed() {}

func (r *random[F]) moved(int64) error { return nil }

// normal maps 64 random bits to a nearly normal variable: the centred sum of four
// uniform ones, scaled to variance 1. It uses no function whose last bit could
// differ between machines.
func normal(bits uint64) float64 {
	var sum int64
	for range 4 {
		sum += int64(bits & 0xffff)
		bits >>= 16
	}
	const scale = 1.7320508075688772 / 65536 // sqrt(3) over the unit
	return float64(sum-2*65535) * scale
}

// mix is SplitMix64's finalizer (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashName is FNV-1a over a tensor's name.
func hashName(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}
