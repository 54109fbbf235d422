package tuning

import "math"

// GRPO is group relative policy optimization (Shao et al., arXiv 2402.03300) with the clipped ratio of PPO. The loss
// of a step is the mean of Token over all tokens of all answers.
type GRPO struct {
	// ClipLow and ClipHigh bound the ratio of probabilities to 1-ClipLow..1+ClipHigh.
	ClipLow, ClipHigh float64
	KL                float64 // the weight of the divergence from the reference; 0 for none
}

// minDeviation is added to the standard deviation of a group's rewards.
const minDeviation = 1e-4

// Advantages returns how much better each answer of a group is than their mean, in standard deviations of the
// group's rewards. It is 0 for all answers of a group with equal rewards, from which nothing can be learned.
func Advantages(rewards []float64) []float64 {
	out := make([]float64, len(rewards))
	n := float64(len(rewards))
	var mean, squares float64
	for _, r := range rewards {
		mean += r / n
	}
	equal := true
	for i, r := range rewards {
		equal = equal && r == rewards[0]
		out[i] = r - mean
		squares += float64(out[i] * out[i])
	}
	deviation := math.Sqrt(squares / n)
	for i := range out {
		if equal {
			out[i] = 0
			continue
		}
		out[i] /= deviation + minDeviation
	}
	return out
}

// TokenLoss is the loss of one token and its derivative.
type TokenLoss struct {
	Loss float64
	// Slope is the derivative of the loss with respect to the log-probability under the policy.
	Slope   float64
	Clipped bool    // the ratio is beyond its bound on the side that the advantage pulls to
	KL      float64 // the estimate of the divergence from the reference
}

// Token returns the loss of a token, given its log-probabilities under the policy, when it was sampled, and under the
// reference, and the advantage of its answer. The divergence is estimated by exp(d)-d-1 with d = reference - policy,
// which is not negative and has no bias.
func (c GRPO) Token(policy, sampled, reference, advantage float64) TokenLoss {
	var out TokenLoss
	ratio := math.Exp(policy - sampled)
	bounded := min(max(ratio, 1-c.ClipLow), 1+c.ClipHigh)
	if gain := ratio * advantage; gain <= bounded*advantage {
		out.Loss, out.Slope = -gain, -gain
	} else {
		out.Loss, out.Clipped = -bounded*advantage, true
	}
	if c.KL != 0 {
		d := reference - policy
		e := math.Exp(d)
		out.KL = e - d - 1
		out.Loss += float64(c.KL * out.KL)
		out.Slope += float64(c.KL * (1 - e))
	}
	return out
}
