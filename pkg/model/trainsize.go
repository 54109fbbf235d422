package model

import (
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// TrainOptions say how a stage is trained.
type TrainOptions struct {
	Adapter   *adapter.Adapter // that is trained; nil for all parameters
	Stored    bool             // the weights under the adapter stay as they are in the files
	Recompute bool             // see Stage.RecomputeLayers
	StoreBF16 bool             // see Stage.StoreBF16
	Split     bool             // the backward pass is run in two halves
	Dropout   Dropout
	Rows      int // of a micro-batch
}

// TrainSize is what a stage that is trained takes of the memory of a device, in bytes. Gradients and moments are not
// counted.
type TrainSize struct {
	Weights int64
	Trace   int64 // what a micro-batch keeps for its backward pass
	Scratch int64 // of one pass
	// Shape is a stage of the same parameters. Their buffers have the right lengths and no values.
	Shape *Stage[float32]
}

// TrainSizeOn returns what the training of a span takes on a device, before anything is loaded. The stage is built and
// run on a set that only counts, for one row and for two: all that a pass takes grows by the same amount with each
// row. f is the model that an adapter is trained over; without an adapter it is not read.
func TrainSizeOn(
	f *Files, spec Spec, span Range, set kernel.Set[float32], o TrainOptions,
) (size TrainSize, err error) {
	device, ok := set.(kernel.Accelerator[float32])
	if !ok {
		return size, fault.New(fault.Invalid, "measure training of layers %v: %s has no memory of its own", span, set.Name())
	}
	defer refused(&err, "measure training of layers %v", span)
	count := &counting{Set: set, device: device}
	s, err := countedStage(f, spec, span, count, o)
	if err != nil {
		return size, err
	}
	size.Weights, size.Shape = count.bytes, s
	s.RecomputeLayers(o.Recompute)
	if o.StoreBF16 {
		s.StoreBF16()
		for _, of := range s.rounded.matrices {
			for _, m := range of {
				size.Weights += 2 * int64(len(m.bits))
			}
		}
	}
	var trace, scratch [2]int64
	for i := range trace {
		if trace[i], scratch[i], err = s.measurePass(i+1, o); err != nil {
			return size, err
		}
	}
	rows := int64(o.Rows)
	size.Trace = trace[0] + (rows-1)*(trace[1]-trace[0])
	size.Scratch = scratch[0] + (rows-1)*(scratch[1]-scratch[0]) + s.widestDecoded(device) + s.operationBytes(rows)
	return size, nil
}

// countedStage builds a stage on a set that counts.
func countedStage(f *Files, spec Spec, span Range, count *counting, o TrainOptions) (*Stage[float32], error) {
	set := kernel.Set[float32](count)
	if o.Adapter == nil {
		return build(spec, span, set, filler[float32](shapes{count}))
	}
	s, err := load(f, span, set, LoadOptions{Dense: !o.Stored, Saved: o.Adapter}, beside[float32]{})
	if err != nil {
		return nil, err
	}
	part, err := s.NewAdapter(o.Adapter)
	if err != nil {
		return nil, err
	}
	s.Train(part)
	return s, nil
}

// measurePass runs a micro-batch of sequences of one row on a set that counts, and returns the bytes that its trace and
// the scratch memory take.
func (s *Stage[F]) measurePass(rows int, o TrainOptions) (trace, scratch int64, err error) {
	in := Micro[F]{B: rows, T: 1, Scale: 1, Dropout: o.Dropout}
	if s.First() {
		in.IDs = make([]int32, rows)
	} else {
		in.Hidden = make([]F, rows*s.Spec.Width)
	}
	if s.Last() {
		in.Targets = make([]int32, rows)
	}
	tr, err := s.TrainForward(in)
	if err != nil {
		return 0, 0, err
	}
	var dOut []F
	if !s.Last() {
		dOut = make([]F, rows*s.Spec.Width)
	}
	g := &Params[F]{}
	for _, p := range s.params.Tensors {
		if !s.Trained(p.Name) {
			p.Data = nil
		}
		g.Tensors = append(g.Tensors, p)
	}
	if o.Split {
		if _, err = s.TrainBackwardInput(tr, dOut); err == nil {
			err = s.TrainBackwardWeight(tr, g)
		}
	} else {
		_, err = s.TrainBackward(tr, dOut, g)
	}
	if err != nil {
		return 0, 0, err
	}
	const size = 4 // of a float32
	n := s.scratch.size() + s.block.size() + s.low.size() + max(len(s.unused), s.Spec.Width)
	scratch = size * int64(n)
	if s.rounded != nil {
		scratch += size * int64(s.rounded.wide.size())
	}
	traced := func(tr *Trace[F]) int64 { return size*int64(tr.mem.size()) + 2*int64(tr.bf16.size()) }
	trace = traced(tr)
	if s.again != nil {
		scratch += traced(s.again)
	}
	kept, passing := s.expertElements(int64(rows), o.Split)
	return trace + size*kept, scratch + size*passing, nil
}

// expertElements returns what the experts of all layers keep for the backward pass of a micro-batch, and what one layer
// takes in a pass. They allocate it by the choice of the rows, so that no scratch memory is for it.
func (s *Stage[F]) expertElements(rows int64, split bool) (kept, passing int64) {
	for i := range s.blocks {
		x := s.blocks[i].FFN.Experts
		if x == nil {
			continue
		}
		k, width, ff := int64(x.TopK), int64(s.Spec.Width), int64(x.Width)
		forward := int64(x.Count) + k*(1+2*width+3*ff)
		backward := int64(x.Count) + k*(4*width+3*ff)
		if x.Alpha != 0 { // gate and up are clamped, for the activation and for its gradient
			forward += 2 * k * ff
			backward += 4 * k * ff
		}
		if kept += rows * forward; split {
			kept += rows * backward
		}
		passing = max(passing, rows*backward)
	}
	return kept, passing
}

// widestDecoded returns the bytes of the largest matrix that a device decodes for a product's gradient.
func (s *Stage[F]) widestDecoded(device kernel.Accelerator[float32]) int64 {
	widest := int64(0)
	add := func(m *kernel.Matrix[F]) {
		if m.Raw == nil {
			return
		}
		raw := kernel.Matrix[float32]{Rows: m.Rows, Cols: m.Cols, DType: m.DType, Raw: m.Raw, Plain: m.Plain}
		if decoded := 4 * int64(m.Rows) * int64(m.Cols); device.PackedBytes(&raw) < decoded {
			widest = max(widest, decoded)
		}
	}
	for i := range s.blocks {
		for _, m := range s.blocks[i].packable() {
			add(m)
		}
	}
	if s.head != nil {
		add(&s.head.Matrix)
	}
	return widest
}

// operationBytes bounds the workspace of a single operation: attention has a few values for each row and head, and the
// loss some for each chunk of 4096 logits of 4096 rows.
func (s *Stage[F]) operationBytes(rows int64) int64 {
	heads := 0
	for i := range s.blocks {
		heads = max(heads, s.blocks[i].Attention.Heads)
	}
	n := rows * int64(8+4*heads)
	if s.Last() {
		n = max(n, 8*4096*int64(s.Spec.Vocab/4096+2))
	}
	return n
}

// shapes gives a stage on a set that counts tensors without values.
type shapes struct{ count *counting }

func (f shapes) vector(w wanted) ([]float32, error) { return f.count.blank(w.rows), nil }

func (f shapes) matrix(w wanted) (kernel.Matrix[float32], error) {
	return kernel.Matrix[float32]{Rows: w.rows, Cols: w.cols, Dense: f.count.blank(w.rows * w.cols)}, nil
}

func (f shapes) expert(_ *Experts, _ int, _ expertPart, w wanted) (kernel.Matrix[float32], error) {
	return f.matrix(w)
}

func (f shapes) expertBias(_ *Experts, _ int, _ expertPart, w wanted) ([]float32, error) {
	return f.vector(w)
}

func (shapes) packed() {}

func (shapes) moved(int64) error { return nil }
