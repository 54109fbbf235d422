package model

import (
	"fmt"
	"runtime"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// LoadOptions says in which form weights are kept in memory.
type LoadOptions struct {
	Dense bool // decode the weights to F, for training; else keep them as they are in the file
	// Encoder says that the caller can use a stage that computes embeddings of texts. Without it
	// Load refuses encoders, which continue no text.
	Encoder bool
	// Adapter is used by all passes of the stage, and its saved modules replace those of the files.
	Adapter *adapter.Adapter
	// Saved is an adapter that is to be trained, or nil: the modules that it saves get memory of their own, with its
	// values or else those of the files. Stage.Train then trains them beside the adapter's low-rank parts.
	Saved *adapter.Adapter
	// Progress is called with the bytes of each matrix that the kernel set has packed, which is when a device has it.
	// An error ends the load. It may be nil.
	Progress func(bytes int64) error
}

// Load builds a stage from an open model. It reads the stage's own tensors only. Without
// Dense they stay in the mapped file, so f must stay open as long as the stage is used.
// With Dense, queries and keys are in Hugging Face's order and Gemma's norms have OnePlus
// even if the file is GGUF; Stage.Spec says so. A device whose memory the stage does not fit is an error.
func Load[F tensor.Float](f *Files, r Range, set kernel.Set[F], o LoadOptions) (*Stage[F], error) {
	return load(f, r, set, o, beside[F]{})
}

// refused is deferred. It makes an error of the panic of a device that has no memory left: Alloc returns none.
func refused(err *error, doing string, args ...any) {
	switch r := recover().(type) {
	case nil:
	case runtime.Error:
		panic(r)
	case error:
		*err = fmt.Errorf("%s: %w", fmt.Sprintf(doing, args...), r)
	default:
		panic(r)
	}
}

// load builds a stage that shares matrices with the held ones.
func load[F tensor.Float](
	f *Files, span Range, set kernel.Set[F], o LoadOptions, held beside[F],
) (_ *Stage[F], err error) {
	defer refused(&err, "load layers %v of %s", span, f.Path)
	if f.Spec.Encoder() && (!o.Encoder || o.Dense) {
		return nil, fmt.Errorf("load %s: %w", f.Path, &UnsupportedError{"use of the encoder", f.Spec.Architecture,
			"embeddings of texts; it continues no text and cannot be trained"})
	}
	spec, l := f.Spec, &loader[F]{files: f, dense: o.Dense, progress: o.Progress}
	if o.Dense {
		if spec, err = f.Dense(); err != nil {
			return nil, fmt.Errorf("load %s: %w", f.Path, err)
		}
		l.minusOne = spec.Norm.OnePlus && !f.Spec.Norm.OnePlus
		if from := f.Spec.Rope(); from != nil && from.Interleaved {
			l.unpair = spec.Layers[0].Attention.HeadDim
		}
	}
	var fill filler[F] = l
	switch {
	case o.Adapter != nil:
		fill, spec = l.replacing(o.Adapter, spec)
	case o.Saved != nil:
		fill, spec = l.training(o.Saved, spec)
	}
	s, err := buildBeside(spec, span, set, fill, held)
	if err == nil && o.Adapter != nil {
		if s.adapter, err = s.NewAdapter(o.Adapter); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.Path, err)
	}
	if o.Saved != nil && len(o.Saved.Save) > 0 {
		s.whole = map[string]bool{}
		for _, p := range s.params.Tensors {
			if base, end := splitParam(p.Name); end != "" && o.Saved.Saves(base) {
				s.whole[p.Name] = true
			}
		}
	}
	return s, nil
}

// Dense returns the spec of the stages that Load builds with Dense.
func (f *Files) Dense() (Spec, error) {
	spec := f.Spec
	if f.gguf != nil {
		if a, _ := architectureOf(spec.Architecture); a.addedGGUF {
			spec = spec.onePlus(true)
		}
	}
	if rope := spec.Rope(); rope != nil && rope.Interleaved {
		if rope.Dims != spec.Layers[0].Attention.HeadDim {
			return spec, &UnsupportedError{"rotated dimensions", fmt.Sprint(rope.Dims), "for training, whole heads"}
		}
		spec = spec.clone(func(_ *Layer, r *Rope) {
			if r != nil {
				r.Interleaved = false
			}
		})
	}
	return spec, nil
}

// Init builds a stage with random weights for training from scratch, as Spec.Init says. A weight
// depends on the seed, the tensor's name and the index only, so it is the same however the model is
// split into stages.
func Init[F tensor.Float](s Spec, r Range, set kernel.Set[F], seed uint64) (*Stage[F], error) {
	if s.Encoder() {
		return nil, &UnsupportedError{"training of", s.Architecture, "decoders"}
	}
	return build(s, r, set, &random[F]{seed: seed, layers: len(s.Layers), init: s.Init, onePlus: s.Norm.OnePlus})
}
