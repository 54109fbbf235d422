// Package schedule orders the work of a training step over pipeline stages. It is pure.
//
// A schedule is a list of actions for each stage: forward and backward passes of micro-batches,
// in the order in which the stage runs them. The executor in services/shard runs the same lists
// that Simulate measures. A list only says in which order a stage works. When an action starts
// follows from what it needs: the result of the neighbour that comes before it.
//
// A stage holds one or more spans of layers. Span c of stage s is position c·stages+s of the
// chain, so an activation passes all stages once for each span.
package schedule

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Kind is the kind of an action.
type Kind uint8

// The kinds of actions. A micro-batch has either a Backward or both a BackwardInput and a
// BackwardWeight on each span.
const (
	Forward        Kind = iota + 1 // run a micro-batch forward
	Backward                       // compute the gradients of its input and of the weights
	BackwardInput                  // compute the gradient of its input only, which the previous stage waits for
	BackwardWeight                 // compute the gradients of the weights, which nobody waits for
)

// letters are the short names of the kinds, as in the papers on zero-bubble schedules.
var letters = [...]string{Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}

// String returns the name of the pass.
func (k Kind) String() string {
	return [...]string{"none", "forward", "backward", "backward-input", "backward-weight"}[k]
}

// Action is one pass of a micro-batch over a span of a stage.
type Action struct {
	Kind  Kind
	Micro int // the micro-batch, from 0
	Span  int // the span of the stage, from 0
}

// String returns a text like "F3", or "F3.1" for span 1.
func (a Action) String() string {
	if a.Span > 0 {
		return fmt.Sprintf("%s%d.%d", letters[a.Kind], a.Micro, a.Span)
	}
	return fmt.Sprintf("%s%d", letters[a.Kind], a.Micro)
}

// The names of the schedules.
const (
	NameGPipe       = "gpipe"
	NameOneFOneB    = "1f1b"
	NameInterleaved = "interleaved-1f1b"
	NameZeroBubble  = "zero-bubble"
)

// Names lists the schedules.
func Names() []string { return []string{NameGPipe, NameOneFOneB, NameInterleaved, NameZeroBubble} }

// DefaultSpans returns the number of spans of a stage if nobody has said otherwise.
func DefaultSpans(name string) int {
	if name == NameInterleaved {
		return 2
	}
	return 1
}

// The largest sizes of a schedule.
const (
	MaxStages = 256
	MaxSpans  = 64
	MaxMicro  = 4096
)

// Config chooses a schedule.
type Config struct {
	Name   string
	Stages int // stages of the chain
	Spans  int // spans of each stage; more than 1 only if interleaved
	Micro  int // micro-batches of a step
}

// Check returns an error that names the field that is out of range.
func (c Config) Check() error {
	for _, f := range []struct {
		name   string
		v, max int
	}{{"stages", c.Stages, MaxStages}, {"spans", c.Spans, MaxSpans}, {"microbatches", c.Micro, MaxMicro}} {
		if f.v < 1 || f.v > f.max {
			return fault.Field(f.name, "%d is not within 1..%d", f.v, f.max)
		}
	}
	switch c.Name {
	case NameInterleaved:
		return nil
	case NameGPipe, NameOneFOneB, NameZeroBubble:
		if c.Spans > 1 {
			return fault.Field("spans", "%d spans a stage: only %s has more than one", c.Spans, NameInterleaved)
		}
		return nil
	}
	return fault.Field("schedule", "%q is not one of %v", c.Name, Names())
}

// Stage returns the actions of a stage.
func (c Config) Stage(stage int) ([]Action, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if stage < 0 || stage >= c.Stages {
		return nil, fault.Field("stage", "%d is not one of %d stages", stage, c.Stages)
	}
	switch c.Name {
	case NameGPipe:
		return gpipe(c.Micro), nil
	case NameInterleaved:
		return interleaved(stage, c.Stages, c.Spans, c.Micro), nil
	case NameZeroBubble:
		return zeroBubble(stage, c.Stages, c.Micro), nil
	}
	return oneFOneB(stage, c.Stages, c.Micro), nil
}

// All returns the actions of all stages.
func (c Config) All() ([][]Action, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	out := make([][]Action, c.Stages)
	for s := range out {
		var err error
		if out[s], err = c.Stage(s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// gpipe (Huang et al., 2019) runs all forward passes, then all backward passes. It holds the
// activations of all micro-batches.
func gpipe(micro int) []Action {
	out := make([]Action, 0, 2*micro)
	for i := range micro {
		out = append(out, Action{Kind: Forward, Micro: i})
	}
	for i := range micro {
		out = append(out, Action{Kind: Backward, Micro: i})
	}
	return out
}

// oneFOneB is PipeDream-Flush (Narayanan et al., 2021). A stage first runs one forward pass for
// each stage behind it, then alternates forward and backward passes, then runs the remaining
// backward passes. It holds the activations of at most stages-stage micro-batches.
func oneFOneB(stage, stages, micro int) []Action {
	warm := min(stages-stage-1, micro)
	out := make([]Action, 0, 2*micro)
	for i := range warm {
		out = append(out, Action{Kind: Forward, Micro: i})
	}
	for i := warm; i < micro; i++ {
		out = append(out, Action{Kind: Forward, Micro: i}, Action{Kind: Backward, Micro: i - warm})
	}
	for i := micro - warm; i < micro; i++ {
		out = append(out, Action{Kind: Backward, Micro: i})
	}
	return out
}

// interleaved is the interleaved 1F1B of Megatron-LM (Narayanan et al., 2021). The layers of a
// stage are several spans that are spread over the chain, so a micro-batch reaches the last
// stage after 1/spans of the time, and the bubble is that much smaller. Micro-batches are run in
// groups of one for each stage: a group passes span 0, then span 1, and so on.
//
// The last group may be smaller. Its order is that of a full group without the missing
// micro-batches. This cannot cause a deadlock, because no micro-batch waits for another one:
// removing some from lists that complete leaves lists that complete.
func interleaved(stage, stages, spans, micro int) []Action {
	groups := (micro + stages - 1) / stages
	total := groups * stages * spans
	at := func(kind Kind, k int) Action {
		group, within := k/(stages*spans), k%(stages*spans)
		a := Action{Kind: kind, Micro: group*stages + within%stages, Span: within / stages}
		if kind == Backward {
			a.Span = spans - 1 - a.Span
		}
		return a
	}
	// A stage starts its backward passes after its forward passes of all but the last span, and two
	// more for each stage behind it: one that the gradient passes on its way back, as in 1F1B, and one
	// that hides the time of sending.
	warm := min(2*(stages-stage-1)+(spans-1)*stages, total)
	out := make([]Action, 0, 2*micro*spans)
	add := func(a Action) {
		if a.Micro < micro {
			out = append(out, a)
		}
	}
	for k := range warm {
		add(at(Forward, k))
	}
	for k := warm; k < total; k++ {
		add(at(Forward, k))
		add(at(Backward, k-warm))
	}
	for k := total - warm; k < total; k++ {
		add(at(Backward, k))
	}
	return out
}

// zeroBubble is ZB-H1 (Qi et al., 2024). The order of forward and input passes is that of 1F1B.
// The previous stage waits for the input pass only, so weight passes fill the time in which a
// stage would wait. Stage s runs them s micro-batches late. It holds the activations of a
// micro-batch until its weight pass, and so those of at most as many micro-batches as there are
// stages, like the first stage of 1F1B.
//
// ZB-H2 of the same paper has no bubble between steps, but it holds twice the activations and
// lets stages step their optimizers at different times. Here the optimizers wait for the norm
// of the whole gradient.
func zeroBubble(stage, stages, micro int) []Action {
	warm := min(stages-stage-1, micro)
	out := make([]Action, 0, 3*micro)
	inputs, weights := 0, 0
	input := func(late int) {
		out = append(out, Action{Kind: BackwardInput, Micro: inputs})
		inputs++
		if inputs-weights > late {
			out = append(out, Action{Kind: BackwardWeight, Micro: weights})
			weights++
		}
	}
	for i := range warm {
		out = append(out, Action{Kind: Forward, Micro: i})
	}
	for i := warm; i < micro; i++ {
		out = append(out, Action{Kind: Forward, Micro: i})
		input(stage)
	}
	// Each of the last input passes waits for the next stage, which runs a weight pass behind each
	// of its own, so there is time for one here.
	for inputs < micro {
		input(stage)
	}
	for ; weights < micro; weights++ {
		out = append(out, Action{Kind: BackwardWeight, Micro: weights})
	}
	return out
}
