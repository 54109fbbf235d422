package model

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Stored is a tensor of a model in the form that GGUF files have it.
type Stored struct {
	Name   string
	Shape  []int // outermost first
	Matrix bool  // a weight matrix, which may be quantised; others are kept in float32

	// Pieces is the number of parts that are read one after the other: 1, or the number of experts in a stack. Piece
	// returns the elements of one of them.
	Pieces int
	Piece  func(i int) ([]float32, error)

	// DType and Raw are the type and the bytes of a piece as the model's files hold it, if the form is the same. Raw is
	// nil if it is not.
	DType tensor.DType
	Raw   func(i int) ([]byte, error)
}

// Elements returns the number of elements.
func (s *Stored) Elements() int { return weights.Info{Shape: s.Shape}.Elements() }

// GGUFForm returns what a GGUF file of the model holds: metadata without the vocabulary, and the tensors in the
// order of the layers. The model's own files are those of a Hugging Face folder. If llama.cpp's metadata cannot
// express the model, the error is an *UnsupportedError.
func (f *Files) GGUFForm() ([]weights.Field, []Stored, error) {
	if f.gguf != nil {
		return nil, nil, &UnsupportedError{"conversion to GGUF", "GGUF", "safetensors"}
	}
	fields, err := ggufMetadata(&f.Spec)
	if err != nil {
		return nil, nil, err
	}
	arch, _ := architectureOf(ggufArchitecture(&f.Spec))
	list := &storedList{from: &loader[float32]{files: f, dense: true}, files: f}
	if arch.interleavedGGUF {
		if r := f.Spec.Rope(); r != nil && r.Dims != f.Spec.Layers[0].Attention.HeadDim {
			return nil, nil, &UnsupportedError{"rotated dimensions", fmt.Sprint(r.Dims), "whole heads"}
		}
		list.pair = f.Spec.Layers[0].Attention.HeadDim
	}
	list.plusOne = f.Spec.Norm.OnePlus
	if _, err := build[float32](f.Spec, Range{Hi: len(f.Spec.Layers)}, nowhere{}, list); err != nil {
		return nil, nil, err
	}
	if r := f.Spec.Rope(); r != nil {
		list.factors(r)
	}
	return fields, list.all, nil
}

// ggufArchitecture returns the name of the architecture whose form a GGUF file has.
func ggufArchitecture(s *Spec) string {
	switch s.Architecture {
	case "mistral", "mixtral":
		return "llama"
	}
	return s.Architecture
}

// storedList is a filler that lists tensors.
type storedList struct {
	blank
	from    *loader[float32]
	files   *Files
	pair    int  // head size, if rows of queries and keys are interleaved; else 0
	plusOne bool // gains are stored as 1 + gain
	all     []Stored
}

func (l *storedList) matrix(w wanted) (kernel.Matrix[float32], error) {
	s := Stored{Name: w.GGUF + w.end, Shape: []int{w.rows, w.cols}, Matrix: true, Pieces: 1}
	// The router and learned positions are read row by row, and llama.cpp wants them in a plain type.
	if w.GGUF == l.files.Spec.Embedding.Positions.GGUF || filepath.Ext(w.GGUF) == ".ffn_gate_inp" {
		s.Matrix = false
	}
	paired := l.pair > 0 && w.role == rotatedTensor
	s.Piece = func(int) ([]float32, error) {
		m, err := l.from.matrix(w)
		if err == nil && paired {
			m.Dense = pairRows(m.Dense, w.cols, l.pair)
		}
		return m.Dense, err
	}
	if info, ok := l.files.Source.Info(l.files.tensor(w.Name, w.end)); ok && !paired && !w.conv1D {
		s.DType = info.DType
		s.Raw = func(int) ([]byte, error) { return l.files.Source.Data(info.Name) }
	}
	l.all = append(l.all, s)
	return l.blank.matrix(w)
}

func (l *storedList) vector(v wanted) ([]float32, error) {
	l.all = append(l.all, Stored{Name: v.GGUF + v.end, Shape: []int{v.rows}, Pieces: 1,
		Piece: func(int) ([]float32, error) {
			x, err := l.from.vector(v)
			if err != nil {
				return nil, err
			}
			if l.pair > 0 && v.role == rotatedTensor {
				x = pairRows(x, 1, l.pair)
			}
			if l.plusOne && v.role == gainTensor {
				for i := range x {
					x[i]++
				}
			}
			return x, nil
		}})
	return nil, nil
}

func (l *storedList) expert(x *Experts, e int, p expertPart, w wanted) (kernel.Matrix[float32], error) {
	if e > 0 {
		return l.blank.matrix(w)
	}
	s := Stored{Name: x.name(p).GGUF + ".weight", Shape: []int{x.Count, w.rows, w.cols}, Matrix: true, Pieces: x.Count}
	s.Piece = func(e int) ([]float32, error) {
		m, err := l.from.expert(x, e, p, w)
		return m.Dense, err
	}
	as := *l.from
	as.dense = false
	if m, err := as.expert(x, 0, p, w); err == nil && m.Raw != nil { // opens the tensor, and copies MXFP4 blocks only
		s.DType = m.DType
		s.Raw = func(e int) ([]byte, error) {
			m, err := as.expert(x, e, p, w)
			return m.Raw, err
		}
	}
	l.all = append(l.all, s)
	return l.blank.matrix(w)
}

func (l *storedList) expertBias(x *Experts, e int, p expertPart, v wanted) ([]float32, error) {
	if e == 0 {
		l.all = append(l.all, Stored{Name: x.name(p).GGUF + ".bias", Shape: []int{x.Count, v.rows}, Pieces: x.Count,
			Piece: func(e int) ([]float32, error) { return l.from.expertBias(x, e, p, v) }})
	}
	return nil, nil
}

// factors adds the tensors of frequency factors that llama3 and LongRoPE have.
func (l *storedList) factors(r *Rope) {
	add := func(name string, factors []float32) {
		l.all = append(l.all, Stored{Name: name, Shape: []int{len(factors)}, Pieces: 1,
			Piece: func(int) ([]float32, error) { return factors, nil }})
	}
	switch r.Type {
	case "longrope":
		add("rope_factors_long.weight", r.Far)
		add("rope_factors_short.weight", r.Factors)
	case "llama3":
		plain := Rope{Base: r.Base, Dims: r.Dims}
		from, to := plain.rotary().Freq, r.rotary().Freq
		factors := make([]float32, len(from))
		for i := range from {
			factors[i] = float32(from[i] / to[i])
		}
		add("rope_freqs.weight", factors)
	default:
		if r.Factors != nil {
			add("rope_freqs.weight", r.Factors)
		}
	}
}

// pairRows reorders the rows of each head so that pairs (i, i+D/2) become pairs (2i, 2i+1): the inverse of unpair.
func pairRows(w []float32, cols, headDim int) []float32 {
	out := make([]float32, len(w))
	for r := range len(w) / cols {
		head, d := r/headDim*headDim, r%headDim
		from := head + d/2 + d%2*(headDim/2)
		copy(out[r*cols:(r+1)*cols], w[from*cols:(from+1)*cols])
	}
	return out
}

// ggufMetadata returns the metadata of a model without that of its vocabulary.
func ggufMetadata(s *Spec) ([]weights.Field, error) {
	name := ggufArchitecture(s)
	a, _ := architectureOf(name)
	if len(a.gguf) == 0 {
		return nil, &UnsupportedError{"architecture to write as GGUF", s.Architecture, supported()}
	}
	arch := a.gguf[0]
	fields := []weights.Field{{Key: "general.architecture", Value: arch}, {Key: "general.type", Value: "model"}}
	add := func(key string, value any) {
		fields = append(fields, weights.Field{Key: arch + "." + key, Value: value})
	}
	size := func(key string, n int) { add(key, uint32(n)) }
	number := func(key string, v float64) { add(key, float32(v)) }
	first := &s.Layers[0]
	att := &first.Attention
	size("block_count", len(s.Layers))
	size("context_length", s.Context)
	size("embedding_length", s.Width)
	size("feed_forward_length", s.widestFFN())
	size("attention.head_count", att.Heads)
	size("vocab_size", s.Vocab)
	if s.Norm.Kind == LayerNorm {
		number("attention.layer_norm_epsilon", s.Norm.Eps)
	} else {
		number("attention.layer_norm_rms_epsilon", s.Norm.Eps)
		size("attention.head_count_kv", att.KVHeads)
		size("attention.key_length", att.HeadDim)
		size("attention.value_length", att.HeadDim)
	}
	for l := range s.Layers {
		if x := s.Layers[l].FFN.Experts; x != nil {
			size("expert_count", x.Count)
			size("expert_used_count", x.TopK)
			if name != "llama" {
				size("expert_feed_forward_length", x.Width)
			}
			break
		}
	}
	if att.Softcap > 0 {
		number("attn_logit_softcapping", att.Softcap)
	}
	if s.Head.Softcap > 0 {
		number("final_logit_softcapping", s.Head.Softcap)
	}
	if w := s.Window(); w > 0 || name == "phi3" {
		size("attention.sliding_window", w)
	}
	s.ropeMetadata(name, size, number, add)
	return fields, nil
}

// widestFFN returns the width of the feed-forward part: that of an expert in Mixtral, which has no other.
func (s *Spec) widestFFN() int {
	w := 0
	for l := range s.Layers {
		w = max(w, s.Layers[l].FFN.Width)
	}
	return w
}

// ropeMetadata adds the rotation's settings.
func (s *Spec) ropeMetadata(name string, size func(string, int), number func(string, float64),
	add func(string, any)) {
	r := s.Rope()
	if r == nil {
		return
	}
	size("rope.dimension_count", r.Dims)
	number("rope.freq_base", r.Base)
	if name == "gemma3" {
		local := r.Base
		for l := range s.Layers {
			if a := &s.Layers[l].Attention; a.Window > 0 && a.Rope != nil {
				local = a.Rope.Base
			}
		}
		number("rope.freq_base_swa", local)
	}
	switch r.Type {
	case "linear":
		add("rope.scaling.type", r.Type)
		number("rope.scaling.factor", r.Factor)
	case "yarn":
		add("rope.scaling.type", r.Type)
		number("rope.scaling.factor", r.Factor)
		size("rope.scaling.original_context_length", r.Original)
		number("rope.scaling.yarn_beta_fast", r.BetaFast)
		number("rope.scaling.yarn_beta_slow", r.BetaSlow)
		if r.Attention != 0 { // it multiplies the scale of the paper
			number("rope.scaling.attn_factor", r.Attention/yarnScale(r.Factor, 1))
		}
	case "longrope":
		size("rope.scaling.original_context_length", r.Original)
		number("rope.scaling.attn_factor", r.rotary().Scale)
	case "dynamic": // no field expresses it, so CheckGGUF refuses the model
	}
}

// CheckGGUF compares the model with what a reader makes of a GGUF file: of its metadata and the names and shapes of
// its tensors. layout is that of the file, which need not exist, and tensors are those of GGUFForm in the same
// order. dir is a folder for a temporary file without weights. The error is an *UnsupportedError if the file
// describes another model.
func (f *Files) CheckGGUF(layout weights.GGUFLayout, tensors []Stored, dir string) (err error) {
	file, err := os.CreateTemp(dir, ".check-*.gguf")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	_, err = file.Write(layout.Header)
	for i, t := range tensors {
		if err == nil && strings.HasPrefix(t.Name, "rope_") { // the only values that the description depends on
			var x []float32
			if x, err = t.Piece(0); err == nil {
				_, err = file.WriteAt(encode(x, tensor.F32), layout.Offsets[i])
			}
		}
	}
	if err == nil {
		err = file.Truncate(layout.Size) // the rest is a hole, which takes no space
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	g, err := weights.OpenGGUF(file.Name())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	read, err := specOfGGUF(g)
	if err != nil {
		return err
	}
	if field := unlike(&f.Spec, &read); field != "" {
		return &UnsupportedError{"model to write as GGUF", f.Spec.Architecture + " with its " + field,
			"settings that llama.cpp's metadata can express"}
	}
	return nil
}

// unlike returns the name of a setting by which two models differ, or nothing if they compute the same results. Numbers
// may differ by the rounding of float32, in which GGUF files hold them.
func unlike(s, t *Spec) string {
	if ggufArchitecture(s) != ggufArchitecture(t) {
		return "architecture"
	}
	if len(s.Layers) != len(t.Layers) {
		return "layers"
	}
	rotary := func(r *Rope) any {
		if r == nil {
			return nil
		}
		out := *r.rotary()
		out.Interleaved = false // the rows of the file are ordered for it
		return []any{r.Type == "dynamic", out}
	}
	for l := range s.Layers {
		a, b := reflect.ValueOf(rotary(s.Layers[l].Attention.Rope)), reflect.ValueOf(rotary(t.Layers[l].Attention.Rope))
		if differ("rope", a, b) != "" {
			return fmt.Sprintf("rope of layer %d", l)
		}
	}
	plain := func(s *Spec) Spec {
		out := s.onePlus(false).clone(func(l *Layer, _ *Rope) {
			l.Attention.Rope, l.Attention.Scale = nil, l.Attention.heads().Scale
		})
		out.Unused, out.BOS, out.EOS, out.Init, out.Architecture = nil, nil, nil, Initialization{}, ""
		return out
	}
	return differ("", reflect.ValueOf(plain(s)), reflect.ValueOf(plain(t)))
}

// differ returns the path of the first difference of two values of one type, or nothing.
func differ(path string, a, b reflect.Value) string {
	if a.IsValid() != b.IsValid() || a.IsValid() && a.Type() != b.Type() {
		return path
	}
	if !a.IsValid() {
		return ""
	}
	equal := true
	switch a.Kind() {
	case reflect.Float64, reflect.Float32:
		x, y := a.Float(), b.Float()
		equal = x == y || math.Abs(x-y) <= 1e-6*max(math.Abs(x), math.Abs(y))
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			equal = a.IsNil() == b.IsNil()
			break
		}
		return differ(path, a.Elem(), b.Elem())
	case reflect.Slice:
		if a.Len() != b.Len() {
			return path
		}
		for i := range a.Len() {
			if d := differ(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i)); d != "" {
				return d
			}
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if d := differ(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i)); d != "" {
				return strings.TrimPrefix(d, ".")
			}
		}
	default:
		equal = a.Equal(b)
	}
	if !equal {
		return path
	}
	return ""
}
