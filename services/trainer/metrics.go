package trainer

import (
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// line is one step in metrics.jsonl.
type line struct {
	Step       uint64  `json:"step"`
	Loss       float64 `json:"loss"`                      // nats per token
	Validation float64 `json:"validation_loss,omitempty"` // if measured at this step
	Norm       float64 `json:"gradient_norm"`             // before clipping
	// BitsPerByte and ValidationBitsPerByte are the losses in bits per byte of the text that the targets
	// stand for.
	BitsPerByte           float64 `json:"bits_per_byte,omitempty"`
	ValidationBitsPerByte float64 `json:"validation_bits_per_byte,omitempty"`
	Rate                  float64 `json:"learning_rate"`
	StepMS                float64 `json:"step_ms"`
	TokensPerSecond       float64 `json:"tokens_per_second"`
	// Bubble is the share of the stages' time that they waited in the schedule, as measured, and
	// SimulatedBubble what a simulation with equal costs of all passes gives. Absent for one stage.
	Bubble          float64 `json:"bubble,omitempty"`
	SimulatedBubble float64 `json:"simulated_bubble,omitempty"`
	// Bytes of gradients that all stages have published and read in this step; how many times more they would
	// have published since the start if they exchanged float32 gradients in every step; and the norm of what
	// the wire type has left out in this step over that of the gradients. Absent if nothing was published.
	GradientBytes     uint64  `json:"gradient_bytes,omitempty"`
	GradientBytesRead uint64  `json:"gradient_bytes_read,omitempty"`
	GradientRatio     float64 `json:"gradient_ratio,omitempty"`
	GradientError     float64 `json:"gradient_error,omitempty"`
	// DirectBytes are bytes of gradients that stages have sent to replicas on their own machine.
	DirectBytes uint64 `json:"direct_bytes,omitempty"`
	// Flops are floating-point operations a second of forward, backward and update, counted as nanoGPT does, and
	// PeakShare is their share of what the machines reach in large matrix products of float32. Quantised bases are
	// multiplied as integers in the forward pass, which is faster.
	Flops     float64 `json:"flops,omitempty"`
	PeakShare float64 `json:"peak_share,omitempty"`
	*preferenceLine
	*policyLine
	// Skipped says that the step has left the weights as they were, because of a spike.
	Skipped bool `json:"skipped,omitempty"`
}

// bubble collects the busy times of stages in one step.
type bubble struct {
	busy, makespan float64 // of all stages; of each chain, times its stages
}

// add adds the stages of a chain. They begin a step at about the same time, so the last one to be done
// has taken as long as the chain.
func (b *bubble) add(stages []*shardv1.Folded) {
	var longest uint64
	for _, s := range stages {
		b.busy += max(0, float64(s.GetScheduleUs())-float64(s.GetIdleUs()))
		longest = max(longest, s.GetScheduleUs())
	}
	b.makespan += float64(longest) * float64(len(stages))
}

// share returns the share of time that is not busy.
func (b *bubble) share() float64 {
	if b.makespan == 0 {
		return 0
	}
	return 1 - b.busy/b.makespan
}

// simulatedBubble simulates the schedule of the first chain.
func (m *Manifest) simulatedBubble(l layout) (float64, error) {
	lo, hi := m.share(0, l.replicas)
	lists, err := schedule.Config{Name: m.Schedule, Stages: l.stages, Spans: m.spans(l.stages), Micro: hi - lo}.All()
	if err != nil {
		return 0, err
	}
	r, err := schedule.Simulate(lists, schedule.Costs{Forward: 1, Input: 1, Weight: 1})
	return r.Bubble, err
}
