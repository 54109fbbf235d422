package shard

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// maxPicks bounds the tokens that a microbatch asks for. Each holds a row of logits.
const maxPicks = 1024

// length returns the number of tokens in a sequence of this step.
func (s *stepRun) length() uint32 {
	if n := s.step.GetLength(); n > 0 {
		return n
	}
	return s.open.GetSequenceLen()
}

// checkPicks checks what a microbatch asks for. TrainForward checks the rows.
func (s *stepRun) checkPicks(picks []*shardv1.Pick) error {
	if len(picks) > maxPicks || len(picks) > 0 && !s.step.GetForwardOnly() {
		return fault.Field("microbatch.picks", "%d tokens, forward_only is %v", len(picks), s.step.GetForwardOnly())
	}
	for i, p := range picks {
		if t := p.GetTemperature(); !(t >= 0 && t <= 100) {
			return fault.Field("microbatch.picks", "the temperature of %d is %v", i, t)
		}
		if u := p.GetDraw(); !(u >= 0 && u < 1) {
			return fault.Field("microbatch.picks", "the draw of %d is %v", i, u)
		}
		if p.GetRow() > math.MaxInt32 {
			return fault.Field("microbatch.picks", "the row of %d is %d", i, p.GetRow())
		}
	}
	return nil
}

// picked answers the tokens that a microbatch has asked for.
func (s *stepRun) picked(slot int, tr *model.Trace[float32], picks []*shardv1.Pick) error {
	out := &shardv1.Picked{Step: s.step.GetStep(), Slot: uint32(slot)}
	for i, p := range picks {
		out.Ids = append(out.Ids, pickToken(tr.Logits[i], p.GetTemperature(), p.GetDraw()))
	}
	return s.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Picked{Picked: out}})
}

// pickToken picks the most likely token, or with a temperature the first at which the sum of the probabilities
// exceeds the draw.
func pickToken(logits []float32, temperature, draw float64) uint32 {
	best := 0
	for id, v := range logits {
		if v > logits[best] {
			best = id
		}
	}
	if temperature == 0 {
		return uint32(best)
	}
	weight := func(v float32) float64 { return math.Exp((float64(v) - float64(logits[best])) / temperature) }
	var sum, reached float64
	for _, v := range logits {
		sum += weight(v)
	}
	for id, v := range logits {
		if reached += weight(v); reached > draw*sum {
			return uint32(id)
		}
	}
	return uint32(best) // the sums are not finite
}
