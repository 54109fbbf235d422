package model

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// Spec describes a model as data: its layers in order, each with its settings and the
// names of its tensors. An architecture's file builds it from config.json or GGUF
// metadata; loading, forward and backward walk it.
type Spec struct {
	Architecture string // a name in the table of arch.go: "llama", "gpt2", ...
	Width        int    // C
	Vocab        int    // V
	Context      int    // context length in positions
	Embedding    Embedding
	Layers       []Layer // L
	Norm         Norm    // before the head
	Head         Head
	BOS, EOS     []int32  // begin-of-text and end-of-text ids; nil if the files name none
	Unused       []string // settings of model parts that are not loaded, such as "vision_config"
	Init         Initialization
}

// Initialization says how random initial weights are drawn. Matrices, embeddings and attention sinks
// are normal with a standard deviation of Std; biases are 0, and norms multiply by 1.
type Initialization struct {
	Std float64 // initializer_range in config.json
	// DepthScaled divides the deviation of projections to the residual stream by sqrt(2L), as in
	// GPT-2's report, so that the sum over the layers does not grow with their number.
	DepthScaled bool
}

// Embedding is the lookup of token ids, and of positions if they are learned.
type Embedding struct {
	Tokens    Name    // [V,C]
	Positions Name    // [Context,C] learned positions; without a name there are none
	Scale     float64 // multiplies embeddings; 0: no scaling
	Offset    int     // the row of Positions for position 0; the table has Context+Offset rows
	Types     Name    // [types,C] token types, all of which are 0; without a name there are none
	TypeCount int
	Norm      Norm // of the sum, if it has a name
}

// Layer is a transformer block: attention, then feed-forward, each added to the residual.
type Layer struct {
	Attention Attention
	FFN       FeedForward
}

// Attention describes causal self-attention with grouped queries.
type Attention struct {
	Norm, PostNorm          Norm // of the input; of the output, if it has a name
	Heads, KVHeads, HeadDim int  // H, K, D
	Q, K, V                 Linear
	QKV                     Linear // if it has a name: one matrix in place of Q, K and V
	O                       Linear
	QNorm, KNorm            Norm    // of every head, before rotation, if they have names
	Rope                    *Rope   // nil: queries and keys are not rotated
	Window                  int     // sliding window in positions; 0: full attention
	Scale                   float64 // multiplies scores; 0: 1/sqrt(D)
	Softcap                 float64 // bounds scores by cap·tanh(score/cap); 0: no bound
	Sinks                   Name    // [H] extra scores in the softmax that have no value, if it has a name
	AddNorm                 Norm    // of the residual after the addition, if it has a name
	Bidirectional           bool    // every position attends to all of its sequence, as in encoders
}

// FeedForward describes the gated or plain feed-forward part of a layer, or its experts.
type FeedForward struct {
	Norm, PostNorm Norm // of the input; of the output, if it has a name
	AddNorm        Norm // of the residual after the addition, if it has a name
	Width          int  // F
	Act            kernel.Act
	Gate, Up, Down Linear   // down(act(gate)·up), or down(act(up)) without a gate
	GateUp         Linear   // if it has a name: one matrix in place of Gate and Up
	Experts        *Experts // in place of the matrices; nil for a dense layer
}

// Experts describes a mixture of experts.
type Experts struct {
	Count, TopK   int     // E, and how many of them compute a row
	Width         int     // F of an expert
	Normalize     bool    // scale the weights of the chosen experts so that they sum to one
	Bias          bool    // the experts' matrices have biases
	Alpha, Limit  float64 // of GPT-OSS's activation (see gated); 0: FeedForward.Act is used
	Router        Linear
	Stack         string // prefix of the parameters gate_up_proj [E,2F,C] and down_proj [E,C,F]
	Gate, Up      Name   // tensors of one expert, %d in place of its index; in GGUF, of all experts
	Down          Name
	InterleavedHF bool // rows of gate and up alternate in Hugging Face's files
}

// Name holds the names of a parameter, without the ending ".weight" or ".bias".
type Name struct {
	Param string // in Params and checkpoints, and in safetensors files
	HF    string // in safetensors files that use a name of their own
	GGUF  string
}

// Linear is a matrix [N,I]. Row n holds the weights of output n.
type Linear struct {
	Name
	Bias   bool // [N]
	Conv1D bool // Hugging Face's files hold the matrix transposed
}

// NormKind is a kind of normalization.
type NormKind int

// The kinds of normalization.
const (
	NoNorm NormKind = iota
	RMSNorm
	LayerNorm // with bias
)

// Norm is a normalization with a gain.
type Norm struct {
	Name
	Kind    NormKind
	Eps     float64
	OnePlus bool // multiply by 1 + gain
}

// Head computes logits from the normalized hidden state. Encoders have none: their last stage returns
// the hidden state.
type Head struct {
	Name            // [V,C]; without a name there is no head
	Tied    bool    // shares the weight of the token embedding
	Softcap float64 // bounds logits by cap·tanh(logit/cap); 0: no bound
}

// Shape holds the sizes of a decoder and the settings that all its layers share.
type Shape struct {
	Layers, Width, Heads, KVHeads, HeadDim, FF, Vocab, Context int

	NormEps  float64
	TiedHead bool
	Rope     Rope
}

// Limits of sizes. They are far above those of any model, and the product of three sizes
// does not overflow.
const (
	maxSize   = 1 << 24
	maxLayers = 4096
)

// check reports the first size that is out of bounds.
func (d *Shape) check() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"layers", d.Layers}, {"width", d.Width}, {"heads", d.Heads}, {"key/value heads", d.KVHeads},
		{"head size", d.HeadDim},
		{"feed-forward width", d.FF}, {"vocabulary", d.Vocab}, {"context", d.Context},
	} {
		if err := checkSize(f.name, f.value); err != nil {
			return err
		}
	}
	if d.Layers > maxLayers {
		return &FieldError{"layers", fmt.Sprintf("want at most %d, got %d", maxLayers, d.Layers)}
	}
	return nil
}

func checkSize(name string, value int) error {
	if value < 1 || value > maxSize {
		return &FieldError{name, fmt.Sprintf("want 1..%d, got %d", maxSize, value)}
	}
	return nil
}

// Validate reports the first setting that is out of bounds.
func (s *Spec) Validate() error {
	if n := len(s.Layers); n < 1 || n > maxLayers {
		return &FieldError{"layers", fmt.Sprintf("want 1..%d, got %d", maxLayers, n)}
	}
	first := &s.Layers[0].Attention
	for l := range s.Layers {
		if err := s.Layers[l].validate(s, first); err != nil {
			return err
		}
	}
	if e := &s.Embedding; e.Offset < 0 || e.Offset > maxSize || e.TypeCount < 0 || e.TypeCount > maxSize {
		return &FieldError{"embedding", fmt.Sprintf("want sizes up to %d, got a position offset of %d and %d token types",
			maxSize, e.Offset, e.TypeCount)}
	}
	for l := range s.Layers {
		if s.Layers[l].Attention.Bidirectional != s.Encoder() || s.Encoder() && s.Head.Param != "" {
			return &FieldError{"layers", "want all of them causal, or all bidirectional and no head"}
		}
	}
	if err := s.Embedding.Norm.validate(); err != nil {
		return err
	}
	if !(s.Head.Softcap >= 0 && s.Embedding.Scale >= 0) {
		return &FieldError{"scales", fmt.Sprintf("want no negative number, got logit cap %g, embedding scale %g",
			s.Head.Softcap, s.Embedding.Scale)}
	}
	return s.Norm.validate()
}

func (l *Layer) validate(s *Spec, first *Attention) error {
	a, f := &l.Attention, &l.FFN
	d := Shape{
		Layers: 1, Width: s.Width, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, FF: f.Width, Vocab: s.Vocab,
		Context: s.Context,
	}
	if err := d.check(); err != nil {
		return err
	}
	if a.Heads%a.KVHeads != 0 {
		return &FieldError{"key/value heads", fmt.Sprintf("want a divisor of %d heads, got %d", a.Heads, a.KVHeads)}
	}
	if a.KVHeads != first.KVHeads || a.HeadDim != first.HeadDim {
		// the KV cache has one shape
		return &FieldError{"key/value heads", "want the same number and size in every layer"}
	}
	for _, n := range l.norms() {
		if err := n.validate(); err != nil {
			return err
		}
	}
	if a.Rope != nil {
		if err := a.Rope.validate(a.HeadDim); err != nil {
			return err
		}
	}
	if !(a.Softcap >= 0 && a.Scale >= 0) {
		return &FieldError{"scales", fmt.Sprintf("want no negative number, got score cap %g, score scale %g", a.Softcap,
			a.Scale)}
	}
	if a.Window < 0 {
		return &FieldError{"sliding window", fmt.Sprintf("want a length, got %d", a.Window)}
	}
	if x := f.Experts; x != nil && (x.Count < 1 || x.Count > 1<<12 || x.TopK < 1 || x.TopK > x.Count || x.Width < 1 ||
		x.Width > maxSize) {
		return &FieldError{"experts",
			fmt.Sprintf("want at most %d experts, and sizes that fit, got %d of %d experts of width %d", 1<<12, x.TopK,
				x.Count, x.Width)}
	}
	return nil
}

func (n *Norm) validate() error {
	if n.Kind != NoNorm && !(n.Eps >= 0 && n.Eps < 1) {
		return &FieldError{"norm epsilon", fmt.Sprintf("want a number from 0 to 1, got %g", n.Eps)}
	}
	return nil
}

// Gated reports whether the part multiplies by a gate.
func (f *FeedForward) Gated() bool { return f.Gate.Param != "" || f.GateUp.Param != "" }

// heads returns the shape of the attention for the kernels.
func (a *Attention) heads() kernel.Heads {
	out := kernel.Heads{H: a.Heads, K: a.KVHeads, D: a.HeadDim, Scale: a.Scale, Window: a.Window, Softcap: a.Softcap}
	if out.Scale == 0 {
		out.Scale = 1 / math.Sqrt(float64(a.HeadDim))
	}
	return out
}

// Bounded reports whether the model cannot compute positions beyond its context length:
// learned positions end there, and a dynamic rotation would change with the length.
func (s *Spec) Bounded() bool {
	if s.Embedding.Positions.Param != "" {
		return true
	}
	for i := range s.Layers {
		if r := s.Layers[i].Attention.Rope; r != nil && r.Type == "dynamic" {
			return true
		}
	}
	return false
}

// Rope returns the rotation of the layers with full attention. If they have none, it returns that
// of the first layer that has one, or nil.
func (s *Spec) Rope() *Rope {
	var first *Rope
	for i := range s.Layers {
		switch a := &s.Layers[i].Attention; {
		case a.Rope == nil:
		case a.Window == 0:
			return a.Rope
		case first == nil:
			first = a.Rope
		}
	}
	return first
}

// Window returns the longest sliding window of the layers, or 0 if none has one.
func (s *Spec) Window() int {
	w := 0
	for i := range s.Layers {
		w = max(w, s.Layers[i].Attention.Window)
	}
	return w
}

// clone returns a copy of the spec whose layers and ropes edit has changed. Layers that
// share a rope share its copy.
func (s Spec) clone(edit func(l *Layer, r *Rope)) Spec {
	ropes := map[*Rope]*Rope{nil: nil}
	layers := make([]Layer, len(s.Layers))
	for i, l := range s.Layers {
		r := l.Attention.Rope
		if ropes[r] == nil && r != nil {
			ropes[r] = new(*r)
		}
		l.Attention.Rope = ropes[r]
		if x := l.FFN.Experts; x != nil {
			l.FFN.Experts = new(*x)
		}
		edit(&l, ropes[r])
		layers[i] = l
	}
	s.Layers = layers
	return s
}

// norms lists the layer's norms.
func (l *Layer) norms() []*Norm {
	a, f := &l.Attention, &l.FFN
	return []*Norm{&a.Norm, &a.PostNorm, &a.AddNorm, &a.QNorm, &a.KNorm, &f.Norm, &f.PostNorm, &f.AddNorm}
}

// Encoder reports whether the model encodes whole texts: it has no head, and its positions attend to
// those after them. A sequence is then one entry of a batch, from position 0 to its end.
func (s *Spec) Encoder() bool { return len(s.Layers) > 0 && s.Layers[0].Attention.Bidirectional }

// linears lists the layer's matrices that may have a bias, without those of experts.
func (l *Layer) linears() []*Linear {
	a, f := &l.Attention, &l.FFN
	all := []*Linear{&a.Q, &a.K, &a.V, &a.QKV, &a.O, &f.Gate, &f.Up, &f.GateUp, &f.Down}
	if f.Experts != nil {
		all = append(all, &f.Experts.Router)
	}
	var named []*Linear
	for _, m := range all {
		if m.Param != "" {
			named = append(named, m)
		}
	}
	return named
}

// biasesOf returns the spec with biases on exactly the matrices that have one in the model's
// files. Files may have biases in some layers, or on some matrices, only.
func (s Spec) biasesOf(has func(n Name, end string) bool) Spec {
	return s.clone(func(l *Layer, _ *Rope) {
		for _, m := range l.linears() {
			m.Bias = has(m.Name, ".bias")
		}
		if x := l.FFN.Experts; x != nil {
			x.Bias = has(x.Gate, ".bias") || has(Name{Param: x.Stack + ".gate_up_proj_bias"}, "")
		}
	})
}

// onePlus sets OnePlus of every norm.
func (s Spec) onePlus(on bool) Spec {
	s.Norm.OnePlus = on
	return s.clone(func(l *Layer, _ *Rope) {
		for _, n := range l.norms() {
			n.OnePlus = on && n.Kind != NoNorm
		}
	})
}

// UnsupportedError reports a model that this build cannot run.
type UnsupportedError struct {
	Field, Value string
	Supported    string
}

// Error names the field and what would be supported.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("read model: %s %q is not supported (supported: %s)", e.Field, e.Value, e.Supported)
}

// FieldError reports a setting that is missing or impossible.
type FieldError struct{ Field, Msg string }

// FaultCode returns Unimplemented.
func (e *UnsupportedError) FaultCode() fault.Code { return fault.Unimplemented }

// FaultCode returns DataLoss, because the model's files are damaged.
func (e *FieldError) FaultCode() fault.Code { return fault.DataLoss }

// Error names the field.
func (e *FieldError) Error() string { return fmt.Sprintf("read model: %s: %s", e.Field, e.Msg) }

// Range is the layers [Lo, Hi).
type Range struct{ Lo, Hi int }

// Len returns the number of layers.
func (r Range) Len() int { return r.Hi - r.Lo }

// String returns "lo-hi", the form in log lines and event parts.
func (r Range) String() string { return fmt.Sprintf("%d-%d", r.Lo, r.Hi) }

// Split cuts layers into stages as evenly as possible. Every stage has at least one
// layer, so there are at most as many stages as layers.
func Split(layers, stages int) []Range {
	stages = min(max(stages, 1), layers)
	out := make([]Range, stages)
	for i := range out {
		out[i] = Range{i * layers / stages, (i + 1) * layers / stages}
	}
	return out
}
