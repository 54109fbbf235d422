package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
)

type logitsCmd struct {
	verb.KernelFlags
	Model     string `short:"m" required:"" help:"GGUF file or Hugging Face folder; no tokenizer is needed." type:"model"`
	IDs       string `name:"ids" required:"" help:"Token ids, separated by commas."`
	Stages    int    `help:"Number of stages into which the model is split." default:"1"`
	Loss      bool   `help:"Also print the mean cross-entropy loss of the next ids, computed with dequantised weights."`
	Gradients bool   `help:"Also print the L2 norm of the gradient of the loss for each tensor, by its Hugging Face name."`
	Format    string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// logitsResult is what --format json prints.
type logitsResult struct {
	Logits    []float32          `json:"logits"` // [V], of the last position
	Loss      *float64           `json:"loss,omitempty"`
	Gradients map[string]float64 `json:"gradients,omitempty"`
}

// Run computes the logits, and the loss and gradients if the flags request them, and prints them.
func (c *logitsCmd) Run(e *verb.Env) error {
	ids, err := c.ids()
	if err != nil {
		return err
	}
	var r logitsResult
	err = verb.WithModel(c.Model, c.KernelFlags, func(f *model.Files, set kernel.Set[float32]) error {
		if err := verb.CheckIDs(ids, f); err != nil {
			return err
		}
		if r.Logits, err = lastLogits(f, c.Stages, set, ids); err != nil || !c.Loss && !c.Gradients {
			return err
		}
		loss, gradients, err := lossAndGradients(f, c.Stages, set, ids, c.Gradients)
		r.Loss, r.Gradients = &loss, gradients
		return err
	})
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	return r.print(e)
}

func (c *logitsCmd) ids() ([]int32, error) {
	parsed, err := parseIDs(c.IDs)
	if err != nil {
		return nil, err
	}
	if (c.Loss || c.Gradients) && len(parsed) < 2 {
		return nil, fault.Field("ids", "compute the loss: want two ids or more, because the first one is not predicted")
	}
	ids := make([]int32, len(parsed))
	for i, id := range parsed {
		ids[i] = int32(id)
	}
	return ids, nil
}

// print writes the highest logits, the loss and the gradients as text.
func (r *logitsResult) print(e *verb.Env) error {
	order := make([]int, len(r.Logits))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case r.Logits[a] > r.Logits[b]:
			return -1
		case r.Logits[a] < r.Logits[b]:
			return 1
		}
		return 0
	})
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tLOGIT")
	for _, id := range order[:min(10, len(order))] {
		fmt.Fprintf(w, "%d\t%.6f\n", id, r.Logits[id])
	}
	if r.Loss != nil {
		fmt.Fprintf(w, "\nLOSS\t%.6f\n", *r.Loss)
	}
	if r.Gradients != nil {
		fmt.Fprintln(w, "\nTENSOR\tGRADIENT NORM")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Gradients)) {
		fmt.Fprintf(w, "%s\t%.6g\n", name, r.Gradients[name])
	}
	return w.Flush()
}

// lastLogits returns [V], the logits after the last id, as inference computes them.
func lastLogits(f *model.Files, stages int, set kernel.Set[float32], ids []int32) ([]float32, error) {
	c, err := verb.LoadChain(f, stages, 1, len(ids), set, model.LoadOptions{})
	if err != nil {
		return nil, err
	}
	s := c.NewSequence()
	defer s.Free()
	logits, err := c.Forward(verb.Entry{Seq: s, IDs: ids, Logits: 1})
	return slices.Clone(logits), err
}

// lossAndGradients runs the forward pass, and the backward pass if wanted, with dequantised weights
// as in training. It returns the loss and the norms of the gradients by tensor name. The gradient
// of a tied tensor is added to that of its owner.
func lossAndGradients(f *model.Files, stages int, set kernel.Set[float32], ids []int32, backward bool) (float64,
	map[string]float64, error) {
	c, err := verb.LoadChain(f, stages, 1, len(ids), set, model.LoadOptions{Dense: true})
	if err != nil {
		return 0, nil, err
	}
	targets := append(slices.Clone(ids[1:]), -1)
	count := float64(len(ids) - 1)
	var traces []*model.Trace[float32]
	var hidden []float32
	for _, s := range c.Stages {
		micro := model.Micro[float32]{B: 1, T: len(ids), Hidden: hidden, Targets: targets, Scale: 1 / count,
			ForwardOnly: !backward}
		if s.First() {
			micro.IDs = ids
		}
		trace, err := s.TrainForward(micro)
		if err != nil {
			return 0, nil, err
		}
		traces, hidden = append(traces, trace), trace.Out
	}
	var loss float64
	for _, l := range traces[len(traces)-1].Loss {
		loss += l
	}
	loss /= count
	if !backward {
		return loss, nil, nil
	}
	grads := make([]*model.Params[float32], len(c.Stages))
	var out []float32
	for i, s := range slices.Backward(c.Stages) {
		grads[i] = s.NewGrads()
		if out, err = s.TrainBackward(traces[i], out, grads[i]); err != nil {
			return 0, nil, err
		}
	}
	return loss, gradientNorms(grads), nil
}

// gradientNorms returns the L2 norm of the gradient of each tensor.
func gradientNorms(grads []*model.Params[float32]) map[string]float64 {
	whole := map[string][]float32{}
	var tied []model.Param[float32]
	for _, g := range grads {
		for _, p := range g.Tensors {
			if p.TiedTo != "" {
				tied = append(tied, p)
				continue
			}
			whole[p.Name] = p.Data
		}
	}
	for _, p := range tied {
		owner := whole[p.TiedTo]
		for i, v := range p.Data {
			owner[i] += v
		}
	}
	norms := map[string]float64{}
	for name, data := range whole {
		var sum float64
		for _, v := range data {
			sum += float64(v) * float64(v)
		}
		norms[name] = math.Sqrt(sum)
	}
	return norms
}
