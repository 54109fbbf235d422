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

// softplus returns log(1 + exp(x)), also for large x.
func softplus(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

func sigmoid(x float64) float64 {
	if x >= 0 {
		return 1 / (1 + math.Exp(-x))
	}
	e := math.Exp(x)
	return e / (1 + e)
}
