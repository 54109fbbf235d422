package plan

import "slices"

// Calibration corrects the cost model by what lone streams have shown of pipelines. Stages count their own times. What
// only shows in a whole token is here: the way back over the sampler, and what a frame of a stream takes of the time
// that a ping has measured. The zero value corrects nothing.
type Calibration struct {
	RouterMS float64 // as in Request
	FirstMS  float64 // as in Request
	HopScale float64 // the time of a frame, as a share of that of a ping; 0 means 1
	Tokens   int     // observations of tokens so far
	Firsts   int     // observations of first tokens so far
}

// Observation is what lone streams have shown of a pipeline.
type Observation struct {
	TokenMS   float64 // mean time of a token
	ComputeMS float64 // sum of the mean times of one row in the stages
	HopsMS    float64 // sum of the times of the hops, as pings have measured them
	// Firsts are first tokens of prompts, and Predicted is what the model has predicted for the pipeline.
	Firsts    []First
	Predicted Prediction
}

// First is the time to the first token of a prompt that was computed alone and without cached positions.
type First struct {
	PromptTokens int
	MS           float64
}

// Weights and bounds of a Calibration.
const (
	calibrateShare = 0.3   // of a new observation
	leastHopScale  = 0.05  // pings do not take so much longer than frames
	mostFirstRows  = 256   // of prompts whose time is proportional to their length (chunkRows)
	mostRouterMS   = 60000 // a stream that takes longer was disturbed
)

// Observe takes an observation into account. What is left of a token's time besides stages and hops is the router's. If
// nothing is left, then the pings were slower than the frames.
func (c *Calibration) Observe(o Observation) {
	blend := func(old, value float64, n int) float64 {
		return old + (value-old)*max(calibrateShare, 1/float64(n))
	}
	if rest := o.TokenMS - o.ComputeMS; o.TokenMS > 0 && o.ComputeMS > 0 && rest < mostRouterMS {
		c.Tokens++
		scale := 1.0
		if rest < o.HopsMS {
			scale = max(leastHopScale, rest/o.HopsMS)
		}
		c.HopScale = blend(c.hopScale(), scale, c.Tokens)
		c.RouterMS = blend(c.RouterMS, max(0, rest-o.HopsMS), c.Tokens)
	}
	var more []float64
	for _, f := range o.Firsts {
		if want := o.Predicted.FirstToken(f.PromptTokens); want > 0 {
			more = append(more, f.MS-want)
		}
	}
	if len(more) > 0 {
		slices.Sort(more)
		c.Firsts++
		c.FirstMS = min(mostRouterMS, max(0, blend(c.FirstMS, more[len(more)/2], c.Firsts)))
	}
}

func (c *Calibration) hopScale() float64 {
	if c.HopScale == 0 {
		return 1
	}
	return c.HopScale
}

// Hop returns the time of a hop whose ping takes a time.
func (c *Calibration) Hop(pingMS float64) float64 { return pingMS * c.hopScale() }

// FirstToken returns the predicted time to the first token of a prompt, without Request.FirstMS, or 0 if the
// prediction does not say it: it knows prompts of one chunk.
func (p *Prediction) FirstToken(prompt int) float64 {
	if prompt < 1 || prompt > mostFirstRows || p.PromptTokens < 2 || p.PromptTokens > mostFirstRows {
		return 0
	}
	// A prompt of one token is a token, and each further row takes the same time.
	row := (p.TTFTMS - p.FirstMS - p.TokenMS) / float64(p.PromptTokens-1)
	return p.TokenMS + row*float64(prompt-1)
}

// Measured returns the time to the first token of the prompt of a prediction that first tokens of other prompts
// suggest, with the median of their ratios to what was predicted for them. It is 0 if there are none.
func (p *Prediction) Measured(firsts []First) float64 {
	var ratios []float64
	for _, f := range firsts {
		if want := p.FirstToken(f.PromptTokens); want > 0 {
			ratios = append(ratios, f.MS/(want+p.FirstMS))
		}
	}
	if len(ratios) == 0 {
		return 0
	}
	slices.Sort(ratios)
	return p.TTFTMS * ratios[len(ratios)/2]
}

// Off returns how far a measured time is from a predicted one, as a share of the measured one. It is 0 if one of them
// is not known.
func Off(predicted, measured float64) float64 {
	if predicted <= 0 || measured <= 0 {
		return 0
	}
	return predicted/measured - 1
}
