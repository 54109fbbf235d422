package tuning

import "math"

// DPO returns the loss of a pair in direct preference optimization (Rafailov et al., arXiv 2305.18290), and its
// derivative. The margin is beta times the difference of the log-probability ratios of policy and reference
// between the chosen and the rejected answer. smoothing is the probability that the label is wrong
// (conservative DPO).
func DPO(margin, smoothing float64) (loss, slope float64) {
	loss = (1-smoothing)*softplus(-margin) + smoothing*softplus(margin)
	wrong := sigmoid(-margin)
	return loss, -(1-smoothing)*wrong + smoothing*(1-wrong)
}

// Sums are the log-probabilities of the two answers of a pair, in nats, each summed over the tokens of the answer.
type Sums struct{ Chosen, Rejected float64 }

// PairLoss is the loss of a pair of answers and its derivatives.
type PairLoss struct {
	Margin, Loss float64
	// Slopes are the derivatives of the loss with respect to the policy's sums. They have opposite signs.
	Slopes Sums
}

// DPOPair returns the loss of a pair, given the sums under policy and reference. beta and smoothing are those of DPO.
func DPOPair(policy, reference Sums, beta, smoothing float64) PairLoss {
	var p PairLoss
	p.Margin = beta * (policy.Chosen - reference.Chosen - (policy.Rejected - reference.Rejected))
	var slope float64
	p.Loss, slope = DPO(p.Margin, smoothing)
	p.Slopes = Sums{Chosen: slope * beta, Rejected: -slope * beta}
	return p
}

// softplus returns log(1 + exp(x)), also for large x.
func softplus(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

func sigmoid(x float64) float64 {
	if x >= 0 {
		return 1 / (1 + math.Exp(-x))
	}
	e := math.Exp(x)
	return e / (1 + e)
}
