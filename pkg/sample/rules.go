package sample

import (
	"cmp"
	"fmt"
	"slices"
)

// Rules are the sampling parameters of a request. The zero value is greedy sampling.
type Rules struct {
	Temperature       float64
	DynamicRange      float64 // 0: the temperature is fixed
	DynamicExponent   float64 // 0 means 1
	TopK              int     // 0 keeps all
	TopP              float64 // 0 or 1 keeps all
	MinP              float64 // 0 drops none
	TypicalP          float64 // 0 or 1 keeps all
	TopNSigma         float64 // 0 keeps all
	XTC               XTC
	EpsilonCutoff     float64
	EtaCutoff         float64
	RepetitionPenalty float64 // over prompt and emitted ids; 0 or 1 is off
	FrequencyPenalty  float64 // over emitted ids
	PresencePenalty   float64 // over emitted ids
	PenaltyLastN      int     // window of the repetition penalty, in ids; 0: all
	DRY               DRY
	NoRepeatNGram     int
	BadWords          BadWords
	LogitBias         LogitBias
	Mirostat          Mirostat
	Min               MinTokens
	Order             []string // names of the steps in the order they run; the default when empty
	Seed              uint64
	Choice            uint32 // index among the choices of a request; each has its own randomness
	TopLogprobs       int    // candidates to report
	Masked            bool   // every token must be in a token mask: see Picker.Allow
}

var defaultOrder = []string{
	"min_tokens", "logit_bias", "bad_words", "no_repeat_ngram", "repetition_penalty", "penalties", "dry",
	"temperature", "top_n_sigma", "top_k", "typical_p", "epsilon_cutoff", "eta_cutoff", "min_p", "top_p", "xtc",
	"mirostat",
}

// DefaultOrder returns the order of the steps of a request that names none.
func DefaultOrder() []string { return slices.Clone(defaultOrder) }

// step returns the step of a name, or nil if it is off.
func (r *Rules) step(name string) (Step, error) {
	on := func(is bool, s Step) (Step, error) {
		if is {
			return s, nil
		}
		return nil, nil
	}
	switch name {
	case "min_tokens":
		return on(r.Min.N > 0 && len(r.Min.Ends) > 0, r.Min)
	case "logit_bias":
		return on(len(r.LogitBias) > 0, r.LogitBias)
	case "bad_words":
		return on(len(r.BadWords) > 0, r.BadWords)
	case "no_repeat_ngram":
		return on(r.NoRepeatNGram > 0, NoRepeatNGram(r.NoRepeatNGram))
	case "repetition_penalty":
		if r.PenaltyLastN > 0 {
			return on(r.RepetitionPenalty != 0 && r.RepetitionPenalty != 1,
				Penalties{Repeat: r.RepetitionPenalty, LastN: r.PenaltyLastN})
		}
		return on(r.RepetitionPenalty != 0 && r.RepetitionPenalty != 1, RepetitionPenalty(r.RepetitionPenalty))
	case "penalties":
		p := Penalties{Frequency: r.FrequencyPenalty, Presence: r.PresencePenalty, EmittedOnly: true}
		return on(!p.off(), p)
	case "dry":
		return on(r.DRY.Multiplier != 0, r.DRY)
	case "temperature":
		if r.DynamicRange > 0 {
			return DynamicTemperature{r.Temperature, r.DynamicRange, cmp.Or(r.DynamicExponent, 1)}, nil
		}
		return on(r.Temperature != 1, Temperature(r.Temperature))
	case "top_n_sigma":
		return on(r.TopNSigma > 0, TopNSigma(r.TopNSigma))
	case "top_k":
		return on(r.TopK > 0, TopK(r.TopK))
	case "typical_p":
		return on(r.TypicalP > 0 && r.TypicalP < 1, TypicalP(r.TypicalP))
	case "epsilon_cutoff":
		return on(r.EpsilonCutoff > 0, EpsilonCutoff(r.EpsilonCutoff))
	case "eta_cutoff":
		return on(r.EtaCutoff > 0, EtaCutoff(r.EtaCutoff))
	case "min_p":
		return on(r.MinP > 0, MinP(r.MinP))
	case "top_p":
		return on(r.TopP > 0 && r.TopP < 1, TopP(r.TopP))
	case "xtc":
		return on(r.XTC.Probability > 0, r.XTC)
	case "mirostat":
		return on(r.Mirostat.Version > 0, r.Mirostat)
	}
	return nil, fmt.Errorf("unknown sampling step %q", name)
}

// Chain returns the steps that are on, in their order. It is an error if the order names a
// step twice or leaves out one that is on.
func (r *Rules) Chain() (Chain, error) {
	order := r.Order
	if len(order) == 0 {
		order = defaultOrder
	}
	var chain Chain
	for i, name := range order {
		step, err := r.step(name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(order[:i], name) {
			return nil, fmt.Errorf("the order names %s twice", name)
		}
		if step != nil {
			chain = append(chain, step)
		}
	}
	for _, name := range defaultOrder {
		if step, _ := r.step(name); step != nil && !slices.Contains(order, name) {
			if name == "min_tokens" {
				chain = append(Chain{step}, chain...)
				continue
			}
			return nil, fmt.Errorf("the order does not name %s, which is on", name)
		}
	}
	return chain, nil
}

// Chain is a sampler chain: steps that run one after another.
type Chain []Step

func (c Chain) run(s *state) error {
	for _, step := range c {
		if len(s.kept) == 0 {
			return ErrNone
		}
		if err := step.apply(s); err != nil {
			return err
		}
	}
	if len(s.kept) == 0 {
		return ErrNone
	}
	return nil
}

// firstTry is the number of candidates to ask for where their probabilities decide how many
// are needed. From mostNeeded on it is cheaper to send the whole row.
const (
	firstTry   = 256
	mostNeeded = 2048
)

// need returns the number of best candidates that are likely to decide the token, given the
// length of the history; 0 means the whole row.
func (c Chain) need(ids int, masked bool) int {
	changed, pristine := 0, !masked // ids that the steps so far may lower
	if masked {
		changed = firstTry
	}
	for _, step := range c {
		switch r := step.(type) {
		case MinTokens:
			changed += len(r.Ends)
		case BadWords:
			changed += len(r)
		case LogitBias:
			for _, v := range r {
				if v > 0 {
					return 0
				}
			}
			changed += len(r)
		case RepetitionPenalty:
			if r < 1 {
				return 0
			}
			changed += ids
		case Penalties:
			if r.raises() {
				return 0
			}
			changed += ids
		case DRY:
			if r.Multiplier < 0 {
				return 0
			}
			changed += ids
		case NoRepeatNGram:
			changed += ids
		case Temperature:
			if r <= 0 {
				return 1 + changed
			}
			pristine = false
			continue
		case TopK:
			return int(r) + changed
		case MinP:
			return firstTry + changed
		case TopP, XTC, EpsilonCutoff:
			if !pristine {
				return 0
			}
		case Mirostat:
			if !pristine || r.Version != 2 {
				return 0
			}
		default: // needs the whole row
			return 0
		}
		pristine = pristine && changed == 0
	}
	if !pristine {
		return 0
	}
	return firstTry
}

// decides reports whether the candidates that need asks for always decide the token.
func (c Chain) decides() bool {
	for _, step := range c {
		switch r := step.(type) {
		case MinTokens, BadWords, LogitBias, RepetitionPenalty, Penalties, DRY, NoRepeatNGram:
		case Temperature:
			if r <= 0 {
				return true
			}
		case TopK:
			return true
		default:
			return false
		}
	}
	return false
}

// Choice is a sampled token.
type Choice struct {
	ID      int32
	Logprob float64     // log-probability under the model, before any step
	Top     []Candidate // the best ids before any step, with log-probabilities as Logit
}

// Picker samples tokens. It reuses its memory from one token to the next and keeps no other
// state. One goroutine may use it at a time.
type Picker struct {
	rules Rules
	chain Chain
	state state
	mask  []uint64
}

// NewPicker returns a picker, or an error if the order of the steps is wrong.
func NewPicker(r Rules) (*Picker, error) {
	chain, err := r.Chain()
	if err != nil {
		return nil, err
	}
	return &Picker{rules: r, chain: chain, state: state{seed: r.Seed, choice: r.Choice}}, nil
}

// Allow sets the token mask of the tokens that follow: bit id%64 of word id/64. The mask is
// read when a token is sampled. Rules.Masked must be set.
func (p *Picker) Allow(mask []uint64) { p.mask = mask }

// Need returns the number of best candidates to ask for first, given the number of ids of the
// generation; 0 means the whole row.
func (p *Picker) Need(vocab, ids int) int {
	n := p.chain.need(ids, p.rules.Masked)
	if n == 0 {
		return 0
	}
	if n = max(n, p.rules.TopLogprobs); n > mostNeeded || n >= vocab/2 {
		return 0
	}
	return n
}

// Decides reports whether the candidates that Need asks for always decide the token, so that
// Pick never returns ErrTooFew.
func (p *Picker) Decides(vocab, ids int) bool {
	return !p.rules.Masked && p.chain.decides() && p.Need(vocab, ids) > 0
}

// Pick samples the token of a position from the best candidates of its row, in the order of
// Best, and the row's exact log-sum-exp. It returns what PickRow would return, or ErrTooFew.
func (p *Picker) Pick(candidates []Candidate, lse float64, h *History, position int) (Choice, error) {
	if len(candidates) == 0 || len(candidates) < p.rules.TopLogprobs {
		return Choice{}, ErrTooFew
	}
	p.state.best(candidates, lse)
	id, err := p.draw(h, position)
	if err != nil {
		return Choice{}, err
	}
	choice := Choice{ID: id, Top: p.top(candidates, lse)}
	at := slices.IndexFunc(candidates, func(c Candidate) bool { return c.ID == id })
	choice.Logprob = float64(candidates[at].Logit) - lse
	return choice, nil
}

// PickRow samples the token of a position from its whole row.
func (p *Picker) PickRow(row []float32, lse float64, h *History, position int) (Choice, error) {
	if n := p.Need(len(row), h.Len()); n > 0 { // a few candidates are faster
		if c, err := p.Pick(Best(row, n), lse, h, position); err == nil {
			return c, nil
		}
	}
	return p.PickWhole(row, lse, h, position)
}

// PickWhole is like PickRow, but does not try a few candidates first.
func (p *Picker) PickWhole(row []float32, lse float64, h *History, position int) (Choice, error) {
	p.state.row(row, lse)
	id, err := p.draw(h, position)
	if err != nil {
		return Choice{}, err
	}
	return Choice{ID: id, Logprob: float64(row[id]) - lse, Top: p.top(Best(row, p.rules.TopLogprobs), lse)}, nil
}

func (p *Picker) draw(h *History, position int) (int32, error) {
	p.state.history, p.state.position = h, position
	if p.rules.Masked {
		if err := p.state.allow(p.mask); err != nil {
			return 0, err
		}
	}
	if err := p.chain.run(&p.state); err != nil {
		return 0, err
	}
	return p.state.draw()
}

func (p *Picker) top(best []Candidate, lse float64) []Candidate {
	var out []Candidate
	for _, c := range best[:min(p.rules.TopLogprobs, len(best))] {
		out = append(out, Candidate{c.ID, float32(float64(c.Logit) - lse)})
	}
	return out
}
