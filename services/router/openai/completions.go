package openai

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// defaultTokens is OpenAI's most tokens of a completion that names none.
const defaultTokens = 16

type completionRequest struct {
	common
	Prompt   json.RawMessage `json:"prompt"`
	Echo     bool            `json:"echo"`
	Logprobs *int            `json:"logprobs"`
	BestOf   *int            `json:"best_of"`
	Suffix   *string         `json:"suffix"`
}

// prompt is a text, or ids where they are not nil.
type prompt struct {
	text string
	ids  []uint32
}

// prompts reads a text, a list of ids, or a list of either.
func (c *completionRequest) prompts() ([]prompt, error) {
	var one string
	var texts []string
	var ids []uint32
	var lists [][]uint32
	var out []prompt
	switch {
	case !given(c.Prompt):
		return nil, fault.Field("prompt", "give one")
	case json.Unmarshal(c.Prompt, &one) == nil:
		out = []prompt{{text: one}}
	case json.Unmarshal(c.Prompt, &texts) == nil:
		for _, t := range texts {
			out = append(out, prompt{text: t})
		}
	case json.Unmarshal(c.Prompt, &ids) == nil:
		out = []prompt{{ids: ids}}
	case json.Unmarshal(c.Prompt, &lists) == nil:
		for _, l := range lists {
			out = append(out, prompt{ids: append([]uint32{}, l...)})
		}
	default:
		return nil, fault.Field("prompt", "want a text, a list of texts, a list of ids, or a list of those")
	}
	if len(out) == 0 {
		return nil, fault.Field("prompt", "the list is empty")
	}
	return out, nil
}

// check refuses what cannot be done, and returns how many choices are run and the
// candidates to report.
func (c *completionRequest) check() (n, top int, err error) {
	if n, err = c.common.check(); err != nil {
		return 0, 0, err
	}
	if c.BestOf != nil {
		switch {
		case *c.BestOf < n || *c.BestOf > maxChoices:
			return 0, 0, fault.Field("best_of", "%d is not within n, %d, to %d", *c.BestOf, n, maxChoices)
		case *c.BestOf > n && c.Stream:
			return 0, 0, fault.Field("best_of", "%d is more than n, %d, and a stream shows all", *c.BestOf, n)
		}
		n = *c.BestOf
	}
	if c.Logprobs != nil {
		top = *c.Logprobs
	}
	switch {
	case top < 0 || top > maxTop:
		return 0, 0, fault.Field("logprobs", "%d is not within 0..%d", top, maxTop)
	case c.Suffix != nil && *c.Suffix != "":
		return 0, 0, fault.Field("suffix", "is not supported")
	case c.Echo && c.Logprobs != nil:
		return 0, 0, fault.Field("echo", "is not supported with logprobs: a prompt's are not known")
	}
	return n, top, nil
}

// logprobs is the older shape: parallel lists, offsets in characters.
func (c *completionRequest) logprobs(offset int, tokens ...*routerv1.TokenEvent) any {
	if c.Logprobs == nil {
		return nil
	}
	texts, values := make([]string, len(tokens)), make([]float32, len(tokens))
	offsets, top := make([]int, len(tokens)), make([]map[string]float32, len(tokens))
	for i, t := range tokens {
		texts[i], values[i], offsets[i] = t.GetText(), t.GetLogprob(), offset
		offset += utf8.RuneCountInString(t.GetText())
		top[i] = map[string]float32{}
		for _, c := range t.GetTop() { // best first: of two ids with one text the better counts
			if _, ok := top[i][c.GetText()]; !ok {
				top[i][c.GetText()] = c.GetLogprob()
			}
		}
	}
	return map[string]any{"tokens": texts, "token_logprobs": values, "text_offset": offsets, "top_logprobs": top}
}

// completionJobs is one job for each choice of each prompt, and what to show before
// each.
func (s *server) completionJobs(c *completionRequest) ([]job, []string, error) {
	n, top, err := c.check()
	if err != nil {
		return nil, nil, err
	}
	prompts, err := c.prompts()
	if err != nil {
		return nil, nil, err
	}
	if len(prompts)*n > maxJobs {
		return nil, nil, fault.Field("prompt", "%d prompts with %d choices each are more than %d", len(prompts), n, maxJobs)
	}
	most, err := limit("max_tokens", c.MaxTokens)
	if err != nil {
		return nil, nil, err
	}
	if c.MaxTokens == nil {
		most = defaultTokens
	}
	var jobs []job
	var echoes []string
	for _, p := range prompts {
		echo := ""
		if c.Echo {
			if echo = p.text; p.ids != nil {
				return nil, nil, fault.Field("echo", "is not supported with a prompt of ids")
			}
		}
		for i := range n {
			rules, err := c.sampling(i)
			if err != nil {
				return nil, nil, err
			}
			req := &routerv1.GenerateRequest{
				Model: c.Model, MaxTokens: most, Sampling: rules, Stop: c.Stop, TopLogprobs: uint32(top), IgnoreEnd: c.IgnoreEnd,
				Prompt: &routerv1.GenerateRequest_Text{Text: p.text},
			}
			if p.ids != nil {
				req.Prompt = &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: p.ids}}
			}
			jobs = append(jobs, job{again: i > 0, run: func(ctx context.Context, send func(event) error) error {
				return s.backend.Generate(ctx, req, func(e *routerv1.GenerateResponse) error {
					return send(event{e.GetStarted(), e.GetToken(), e.GetFinished()})
				})
			}})
			echoes = append(echoes, echo)
		}
	}
	return jobs, echoes, nil
}

func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	var c completionRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	jobs, echoes, err := s.completionJobs(&c)
	if err != nil {
		s.fail(w, err)
		return
	}
	var keep func([]answer) []int
	if n, _ := c.common.check(); c.BestOf != nil && *c.BestOf > n {
		keep = func(answers []answer) []int { return bestOf(answers, *c.BestOf, n) }
	}
	offsets := make([]int, len(jobs)) // of a stream's next token
	f := &shape{
		prefix: "cmpl", whole: "text_completion", part: "text_completion", created: time.Now().Unix(), usage: c.usageWanted(), keep: keep,
		choice: func(i int, a *answer) map[string]any {
			return map[string]any{"text": echoes[i] + a.text.String(), "logprobs": c.logprobs(0, a.tokens...)}
		},
		piece: func(i int, e event) map[string]any {
			text, logprobs := "", any(nil)
			switch {
			case e.started != nil:
				if text = echoes[i]; text == "" {
					return nil
				}
			case e.token != nil:
				if text = e.token.GetText(); text == "" && c.Logprobs == nil {
					return nil
				}
				logprobs = c.logprobs(offsets[i], e.token)
				offsets[i] += utf8.RuneCountInString(text)
			case e.finished != nil:
				text = e.finished.GetText()
			}
			return map[string]any{"text": text, "logprobs": logprobs}
		},
	}
	if c.Stream {
		s.stream(w, r, jobs, f)
		return
	}
	s.gather(w, r, jobs, f)
}
