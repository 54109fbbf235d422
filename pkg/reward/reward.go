// Package reward scores generated texts with rewards that can be checked: an answer that matches exactly or as a
// number, a regular expression, a JSON Schema. Reinforcement learning (GRPO) uses them. A Rule says how a text is
// scored, as a training manifest holds it; Compile checks it once, and the result is safe for concurrent use.
//
// The package is pure: it runs no program and reads no file. A reward by a program of the user's is in
// pkg/reward/command, which passes itself to Compile as a Runner.
package reward

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"regexp"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// Sample is a generated text with what it is compared to.
type Sample struct {
	Prompt string `json:"prompt"`
	Text   string `json:"text"`   // what the model wrote
	Answer string `json:"answer"` // the right answer, if the data have one
}

// Rule says how texts are scored. Exactly one of Exact, Number, Regex, Schema and Command is set.
type Rule struct {
	// Exact compares with the answer, without the white space at both ends.
	Exact bool `json:"exact,omitempty"`
	// Number compares with the answer as numbers: 1,234.0 equals 1234.
	Number bool `json:"number,omitempty"`
	// Regex is a regular expression (RE2) that the text must contain.
	Regex string `json:"regex,omitempty"`
	// Schema is a JSON Schema that the text, without the white space at both ends, must match.
	Schema json.RawMessage `json:"schema,omitempty"`
	// Command is a program and its arguments; see pkg/reward/command.
	Command []string `json:"command,omitempty"`

	// Extract takes the part of the text that is compared: the first group of its last match, or the match if it has no
	// group. A text without a match scores 0. For Exact and Number.
	Extract    string  `json:"extract,omitempty"`
	IgnoreCase bool    `json:"ignore_case,omitempty"` // for Exact
	Weight     float64 `json:"weight,omitempty"`      // in the sum of several rules; 0 means 1
}

// Runner scores a text with a program. The score is from 0 to 1.
type Runner interface {
	Run(ctx context.Context, command []string, s Sample) (float64, error)
}

// Reward scores texts.
type Reward struct {
	rules []compiled
	total float64 // of the weights
}

// compiled is a rule that is ready to use.
type compiled struct {
	weight float64
	score  func(ctx context.Context, s Sample) (float64, error)
}

// Compile checks rules. runner runs commands; it may be nil if there are none. The error is an Invalid fault that
// names the field.
func Compile(rules []Rule, runner Runner) (*Reward, error) {
	if len(rules) == 0 {
		return nil, fault.Field("reward", "want one rule or more")
	}
	r := &Reward{}
	for _, rule := range rules {
		c, err := rule.compile(runner)
		if err != nil {
			return nil, err
		}
		r.rules = append(r.rules, c)
		r.total += c.weight
	}
	return r, nil
}

// Score returns the mean of the rules' scores by weight, from 0 to 1. The error is that of a program that could not
// be run.
func (r *Reward) Score(ctx context.Context, s Sample) (float64, error) {
	sum := 0.0
	for _, c := range r.rules {
		v, err := c.score(ctx, s)
		if err != nil {
			return 0, err
		}
		sum += float64(c.weight * v)
	}
	return sum / r.total, nil
}

func (r *Rule) compile(runner Runner) (compiled, error) {
	c := compiled{weight: r.Weight}
	if c.weight == 0 {
		c.weight = 1
	}
	if !(c.weight > 0) || math.IsInf(c.weight, 0) {
		return c, fault.Field("reward.weight", "want a positive number, got %g", r.Weight)
	}
	kinds := 0
	for _, set := range []bool{r.Exact, r.Number, r.Regex != "", r.Schema != nil, r.Command != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return c, fault.Field("reward", "want one of exact, number, regex, schema and command, got %d", kinds)
	}
	extract, err := r.extractor()
	if err != nil {
		return c, err
	}
	switch {
	case r.Exact:
		c.score = extracted(extract, r.exact)
	case r.Number:
		c.score = extracted(extract, sameNumber)
	case r.Regex != "":
		re, err := regexp.Compile(r.Regex)
		if err != nil {
			return c, fault.Field("reward.regex", "%v", err)
		}
		c.score = func(_ context.Context, s Sample) (float64, error) { return hit(re.MatchString(s.Text)), nil }
	case r.Schema != nil:
		c.score, err = schemaScore(r.Schema)
	default:
		if runner == nil || len(r.Command) == 0 {
			return c, fault.Field("reward.command", "programs are not run here")
		}
		command := r.Command
		c.score = func(ctx context.Context, s Sample) (float64, error) { return runner.Run(ctx, command, s) }
	}
	return c, err
}

func hit(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}

// extractor compiles Extract, or returns nil.
func (r *Rule) extractor() (*regexp.Regexp, error) {
	if r.Extract == "" {
		return nil, nil
	}
	if !r.Exact && !r.Number {
		return nil, fault.Field("reward.extract", "only exact and number extract a part")
	}
	re, err := regexp.Compile(r.Extract)
	if err != nil {
		return nil, fault.Field("reward.extract", "%v", err)
	}
	return re, nil
}

// extracted compares a part of the text with the answer.
func extracted(re *regexp.Regexp, same func(text, answer string) bool) func(context.Context, Sample) (float64, error) {
	return func(_ context.Context, s Sample) (float64, error) {
		text := s.Text
		if re != nil {
			all := re.FindAllStringSubmatch(text, -1)
			if len(all) == 0 {
				return 0, nil
			}
			last := all[len(all)-1]
			text = last[min(1, len(last)-1)]
		}
		return hit(same(text, s.Answer)), nil
	}
}

func (r *Rule) exact(text, answer string) bool {
	text, answer = strings.TrimSpace(text), strings.TrimSpace(answer)
	if r.IgnoreCase {
		return strings.EqualFold(text, answer)
	}
	return text == answer
}

// maxNumber bounds the spelling of a number, since exponents make short spellings of huge ones.
const maxNumber = 64

// sameNumber compares decimal numbers exactly. Commas between digits and a dollar sign in front do not count.
func sameNumber(text, answer string) bool {
	a, okA := decimal(text)
	b, okB := decimal(answer)
	return okA && okB && a.Cmp(b) == 0
}

func decimal(s string) (*big.Rat, bool) {
	s = strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(strings.TrimSpace(s), ",", ""), "$"), ".")
	if s == "" || len(s) > maxNumber || strings.Trim(s, "0123456789.+-") != "" {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}

// schemaScore scores 1 for a text that a JSON Schema accepts.
func schemaScore(schema []byte) (func(context.Context, Sample) (float64, error), error) {
	g, err := grammar.Schema(schema)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "reward.schema")
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "reward.schema")
	}
	return func(_ context.Context, s Sample) (float64, error) {
		m := c.NewMatcher()
		err := m.AcceptBytes([]byte(strings.TrimSpace(s.Text)))
		var reject *grammar.RejectError
		if err != nil && !errors.As(err, &reject) {
			return 0, err
		}
		return hit(err == nil && m.CanEnd()), nil
	}, nil
}
