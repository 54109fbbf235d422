package trainer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

// meter measures ranges of layers. Equal layers inside the model are measured once. Weights are random unless an
// adapter is trained beside those of files.
type meter struct {
	manifest *Manifest
	spec     model.Spec
	set      kernel.Set[float32]
	seen     map[string]cost // by what kindOf returns

	low   *lowRank         // nil without an adapter; so are the others
	made  *adapter.Adapter // with its initial values
	files *model.Files     // of the base
}

// cost is what one layer of a range takes for one slot.
type cost struct {
	forward, backward float64 // seconds
	activations       int64   // bytes
}

// newMeter prepares for measuring the layers of a manifest's model.
func newMeter(b *blueprint, spec model.Spec, set kernel.Set[float32]) (*meter, error) {
	t := &meter{manifest: b.manifest, spec: spec, set: set, seen: map[string]cost{}, low: b.lowRank}
	if t.low == nil {
		return t, nil
	}
	var err error
	if t.low.from != "" {
		t.made, err = adapter.Open(t.low.from)
	} else {
		t.made, err = spec.NewAdapterFor(*t.low.config, b.manifest.Seed)
	}
	if err != nil {
		return nil, err
	}
	t.files, err = model.Open(b.from)
	return t, err
}

func (t *meter) close() error {
	if t.files == nil {
		return nil
	}
	return t.files.Close()
}

// stage builds a range of layers as a shard does.
func (t *meter) stage(r model.Range, set kernel.Set[float32]) (*model.Stage[float32], error) {
	if t.low == nil {
		return model.Init(t.spec, r, set, t.manifest.Seed)
	}
	stage, err := model.Load(t.files, r, set, model.LoadOptions{Dense: !t.low.stored, Saved: t.made})
	if err != nil {
		return nil, err
	}
	part, err := stage.NewAdapter(t.made)
	if err != nil {
		return nil, err
	}
	stage.Train(part)
	return stage, nil
}

// group returns how a parameter is stepped.
func (t *meter) group(c *optim.Config, p model.Param[float32]) optim.Group {
	return c.For(optim.Parameter{Name: p.Owner(), Shape: p.Shape, Hidden: t.spec.Hidden(p.Name)})
}

// kindOf returns the same text for layers that cost the same: those inside the model with the same modules of the
// adapter.
func (t *meter) kindOf(r model.Range) string {
	if r.Lo == 0 || r.Hi == len(t.spec.Layers) {
		return r.String()
	}
	if t.made == nil {
		return "inside"
	}
	var modules []string
	for _, m := range t.made.Modules {
		if slices.Contains(t.spec.Holders(m.Name+".weight", []model.Range{{Hi: r.Lo}, r, {Lo: r.Hi,
			Hi: len(t.spec.Layers)}}), 1) {
			modules = append(modules, fmt.Sprintf("%dx%d of %d", m.Out, m.In, m.Rank))
		}
	}
	for _, p := range t.low.names {
		if at := t.spec.PartOf(p.Name); at >= r.Lo && at < r.Hi && slices.Contains(t.low.saved, p.Name) {
			modules = append(modules, fmt.Sprintf("all of %v", p.Shape))
		}
	}
	return "inside with " + strings.Join(modules, ", ")
}

// add adds a range of layers to a stage.
func (t *meter) add(ctx context.Context, s *StageEstimate, r model.Range) error {
	config := t.manifest.optim()
	stage, err := t.stage(r, t.set)
	if err != nil {
		return err
	}
	s.Layers = append(s.Layers, r.String())
	for _, p := range stage.Params().Tensors {
		n := elements(p.Shape)
		s.Parameters += n
		trained := stage.Trained(p.Name)
		if t.low == nil || trained || !t.low.stored {
			s.Weights += 4 * n
		}
		if g := t.group(&config, p); trained && g.Trainable {
			s.Gradients += 4 * n
			s.OptimizerState += 4 * n * int64(config.Moments(g))
		}
	}
	if t.low != nil && t.low.stored {
		s.Weights += t.storedBytes(r)
	}
	if t.manifest.Model.Storage == storageBF16 { // copies beside the masters
		stage.StoreBF16()
		s.Weights += int64(stage.StorageBytes())
	}
	for at := r.Lo; at < r.Hi; at++ {
		c, err := t.measure(ctx, model.Range{Lo: at, Hi: at + 1})
		if err != nil {
			return err
		}
		s.ForwardSeconds += c.forward
		s.BackwardSeconds += c.backward
		s.Activations += c.activations
	}
	return nil
}

// storedBytes returns the size of a range of layers in the files of the base.
func (t *meter) storedBytes(r model.Range) int64 {
	sizes, n, all := t.files.Sizes(), int64(0), int64(0)
	for _, bytes := range sizes.Layers[r.Lo:r.Hi] {
		n += bytes
	}
	if r.Lo == 0 {
		n += sizes.Embedding
	}
	if r.Hi == len(t.spec.Layers) {
		n += sizes.Head
	}
	for _, name := range t.files.Source.Names() {
		info, _ := t.files.Source.Info(name)
		all += info.Bytes
	}
	return min(n, all) // a tied embedding is there once if the range has both of its uses
}

// How often and how long a layer is measured.
const (
	measureRuns = 5
	measureTime = time.Second
)

// measure returns the cost of a layer: medians of its times, after one run that is not counted.
func (t *meter) measure(ctx context.Context, r model.Range) (cost, error) {
	key := t.kindOf(r)
	if c, ok := t.seen[key]; ok {
		return c, nil
	}
	counted := &counting{Set: t.set}
	stage, err := t.stage(r, counted)
	if err != nil {
		return cost{}, err
	}
	in := t.micro(stage)
	grads := stage.NewGrads()
	var forward, backward []float64
	var c cost
	end := time.Now().Add(measureTime)
	for len(forward) <= measureRuns && (len(forward) < 2 || time.Now().Before(end)) {
		if err := ctx.Err(); err != nil {
			return cost{}, err
		}
		begin := time.Now()
		tr, err := stage.TrainForward(in)
		if err != nil {
			return cost{}, err
		}
		middle := time.Now()
		if len(forward) == 0 { // a second trace shares no memory with the first one, but all scratch
			before := counted.bytes
			second, err := stage.TrainForward(in)
			if err != nil {
				return cost{}, err
			}
			c.activations = counted.bytes - before
			stage.Drop(second)
			middle = time.Now()
		}
		var dOut []float32
		if !stage.Last() {
			dOut = make([]float32, in.B*in.T*t.spec.Width)
		}
		if _, err := stage.TrainBackward(tr, dOut, grads); err != nil {
			return cost{}, err
		}
		forward = append(forward, middle.Sub(begin).Seconds())
		backward = append(backward, time.Since(middle).Seconds())
	}
	c.forward, c.backward = median(forward[1:]), median(backward[1:])
	t.seen[key] = c
	return c, nil
}

// micro returns a slot for a stage. Its values do not matter to the time.
func (t *meter) micro(stage *model.Stage[float32]) model.Micro[float32] {
	m := t.manifest
	in := model.Micro[float32]{B: m.SlotSequences, T: m.SequenceLen, Scale: 1}
	n := in.B * in.T
	if stage.First() {
		in.IDs = make([]int32, n)
		for i := range in.IDs {
			in.IDs[i] = int32(i % t.spec.Vocab)
		}
	} else {
		in.Hidden = make([]float32, n*t.spec.Width)
		for i := range in.Hidden {
			in.Hidden[i] = float32(i%7) - 3
		}
	}
	if stage.Last() {
		in.Targets = make([]int32, n)
	}
	if m.GRPO != nil { // a sequence has the answers of a group, and may be longer than the context
		in.AsServed = true
		each := max(1, min(in.T/m.GRPO.Group, t.spec.Context))
		for range in.B {
			for left := in.T; left > 0; left -= min(each, left) {
				in.Documents = append(in.Documents, min(each, left))
			}
		}
	}
	return in
}

// counting counts the bytes that a kernel set allocates.
type counting struct {
	kernel.Set[float32]
	bytes int64
}

// Scope returns the set itself, which counts what is allocated for any time.
func (c *counting) Scope() kernel.Memory[float32] { return c }

// Alloc allocates floats.
func (c *counting) Alloc(n int) kernel.Buffer[float32] {
	c.bytes += 4 * int64(n)
	return c.Set.Alloc(n)
}

// AllocBF16 allocates bfloat16 values.
func (c *counting) AllocBF16(n int) []uint16 {
	c.bytes += 2 * int64(n)
	return c.Set.AllocBF16(n)
}
