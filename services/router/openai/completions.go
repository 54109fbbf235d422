package openai

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// defaultTokens is OpenAI's default of max_tokens for completions.
const defaultTokens = 16

type completionRequest struct {
	common
	Prompt   json.RawMessage `json:"prompt"`
	Echo     bool            `json:"echo"`
	Logprobs *int            `json:"logprobs"`
	BestOf   *int            `json:"best_of"`
	Suffix   *string         `json:"suffix"`
}

// prompt is a text, or a list of ids if ids is not nil.
type prompt struct {
	text string
	ids  []uint32
}

func (c *completionRequest) prompts() ([]prompt, error) { return readPrompts("prompt", c.Prompt) }

// readPrompts reads a text, a list of ids, or a list of either.
func readPrompts(field string, raw json.RawMessage) ([]prompt, error) {
	var one string
	var texts []string
	var ids []uint32
	var lists [][]uint32
	var out []prompt
	switch {
	case !given(raw):
		return nil, fault.Field(field, "is missing")
	case json.Unmarshal(raw, &one) == nil:
		out = []prompt{{text: one}}
	case json.Unmarshal(raw, &texts) == nil:
		for _, t := range texts {
			out = append(out, prompt{text: t})
		}
	case json.Unmarshal(raw, &ids) == nil:
		out = []prompt{{ids: ids}}
	case json.Unmarshal(raw, &lists) == nil:
		for _, l := range lists {
			out = append(out, prompt{ids: append([]uint32{}, l...)})
		}
	default:
		return nil, fault.Field(field,
			"want a string, a list of strings, a list of token ids, or a list of such lists")
	}
	if len(out) == 0 {
		return nil, fault.Field(field, "the list is empty")
	}
	return out, nil
}

// check validates the request. It returns how many choices are shown, how many are run for
// each prompt, and how many candidates are reported with each token.
func (c *completionRequest) check() (n, run, top int, err error) {
	if n, err = c.common.check(); err != nil {
		return 0, 0, 0, err
	}
	run = n
	if c.BestOf != nil {
		switch run = *c.BestOf; {
		case run < n || run > maxChoices:
			return 0, 0, 0, fault.Field("best_of", "%d is not within n (%d) to %d", run, n, maxChoices)
		case run > n && c.Stream:
			return 0, 0, 0, fault.Field("best_of", "%d is more than n (%d), which a stream does not support", run, n)
		}
	}
	if c.Logprobs != nil {
		top = *c.Logprobs
	}
	switch {
	case top < 0 || top > httpapi.MaxTop:
		return 0, 0, 0, fault.Field("logprobs", "%d is not within 0..%d", top, httpapi.MaxTop)
	case c.Echo && c.Suffix != nil && *c.Suffix != "":
		return 0, 0, 0, fault.Field("echo", "cannot be combined with suffix")
	}
	return n, run, top, nil
}

// maxTokens returns the most tokens to generate. 0 is allowed with echo, which then reports
// the prompt alone.
func (c *completionRequest) maxTokens() (most uint32, promptOnly bool, err error) {
	switch {
	case c.MaxTokens == nil:
		return defaultTokens, false, nil
	case *c.MaxTokens == 0 && c.Echo:
		return 0, true, nil
	}
	most, err = limit("max_tokens", c.MaxTokens)
	return most, false, err
}

// tokenLogprobs is the legacy format of log-probabilities: parallel lists, with offsets in
// characters. The prompt's first token has neither a log-probability nor candidates.
type tokenLogprobs struct {
	Tokens  []string             `json:"tokens"`
	Values  []*float32           `json:"token_logprobs"`
	Top     []map[string]float32 `json:"top_logprobs"`
	Offsets []int                `json:"text_offset"`
	next    int
}

// newLogprobs starts lists whose first token begins at the given offset.
func newLogprobs(offset int) *tokenLogprobs {
	return &tokenLogprobs{Tokens: []string{}, Values: []*float32{}, Top: []map[string]float32{}, Offsets: []int{},
		next: offset}
}

// add appends a token. The token is always among its own candidates, as in OpenAI's API.
func (l *tokenLogprobs) add(text string, logprob *float32, candidates []*routerv1.TopCandidate) {
	var top map[string]float32
	if logprob != nil {
		top = map[string]float32{}
		for _, c := range candidates { // best first; if two ids have the same text, the likelier counts
			if _, ok := top[c.GetText()]; !ok {
				top[c.GetText()] = c.GetLogprob()
			}
		}
		if _, ok := top[text]; !ok {
			top[text] = *logprob
		}
	}
	l.Tokens, l.Values = append(l.Tokens, text), append(l.Values, logprob)
	l.Top, l.Offsets = append(l.Top, top), append(l.Offsets, l.next)
	l.next += utf8.RuneCountInString(text)
}

func (l *tokenLogprobs) addToken(t *routerv1.TokenEvent) {
	logprob := t.GetLogprob()
	l.add(t.GetText(), &logprob, t.GetTop())
}

// logprobs returns the log-probabilities of a choice, or nil if none are asked for.
func (c *completionRequest) logprobs(a *answer) any {
	if c.Logprobs == nil {
		return nil
	}
	out := newLogprobs(0)
	for _, t := range a.prompt {
		out.add(t.GetText(), t.Logprob, t.GetTop())
	}
	for _, t := range a.tokens {
		out.addToken(t)
	}
	return out
}

// completionJobs returns one job for each choice of each prompt.
func (s *server) completionJobs(c *completionRequest) ([]job, error) {
	_, run, top, err := c.check()
	if err != nil {
		return nil, err
	}
	prompts, err := c.prompts()
	if err != nil {
		return nil, err
	}
	if len(prompts)*run > maxJobs {
		return nil, fault.Field("prompt", "%d prompts with %d choices each are more than %d", len(prompts), run,
			maxJobs)
	}
	most, promptOnly, err := c.maxTokens()
	if err != nil {
		return nil, err
	}
	size := 0
	for _, p := range prompts {
		size += len(p.text) + 4*len(p.ids)
	}
	if err := checkSize(size, run); err != nil {
		return nil, err
	}
	var jobs []job
	for at, p := range prompts {
		if p.ids != nil && c.Suffix != nil && *c.Suffix != "" {
			return nil, fault.Field("suffix", "requires prompts that are strings: prompt %d is a list of ids", at)
		}
		for i := range run {
			rules, err := c.sampling(i, run)
			if err != nil {
				return nil, err
			}
			req := &routerv1.GenerateRequest{
				Model: c.Model, MaxTokens: most, Sampling: rules, Stop: c.Stop, TopLogprobs: uint32(top),
				IgnoreEnd: c.IgnoreEnd,
				Prompt:    &routerv1.GenerateRequest_Text{Text: p.text},
				Echo:      c.Echo, PromptLogprobs: c.Echo && c.Logprobs != nil, PromptOnly: promptOnly,
			}
			if err := c.serve(&req.ContextPolicy, &req.Priority, &req.WaitForCapacity); err != nil {
				return nil, err
			}
			if p.ids != nil {
				req.Prompt = &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: p.ids}}
			}
			if c.Suffix != nil && *c.Suffix != "" {
				req.Suffix = c.Suffix
			}
			if req.Resumable = c.Resumable; c.Resumable {
				if req.ClientState, err = c.state().encode(len(prompts) * run); err != nil {
					return nil, err
				}
			}
			jobs = append(jobs, job{again: i > 0, run: func(ctx context.Context, send func(event) error) error {
				return c.nameField(s.backend.Generate(ctx, req, func(e *routerv1.GenerateResponse) error {
					return send(event{e.GetStarted(), e.GetPrompt(), e.GetToken(), e.GetFinished(), e.GetLoading()})
				}))
			}})
		}
	}
	return jobs, nil
}

// state returns what is needed to format the answer once more.
func (c *completionRequest) state() *resumeState {
	s := c.baseState(c.created)
	s.Logprobs = c.Logprobs
	return s
}

func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	var c completionRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	c.created = time.Now().Unix()
	jobs, err := s.completionJobs(&c)
	if err != nil {
		s.fail(w, err)
		return
	}
	f := c.shape(len(jobs), c.created)
	if n, run, _, _ := c.check(); run > n {
		f.keep = func(answers []answer) []int { return bestOf(answers, run, n) }
	}
	if c.Stream {
		s.stream(w, r, jobs, f, 0)
		return
	}
	s.gather(w, r, jobs, f)
}

// piece returns the function that formats the events of a stream with the given number of choices.
func (c *completionRequest) piece(choices int) func(i int, e event) map[string]any {
	offsets := make([]int, choices) // offset of the next token of each choice
	return func(i int, e event) map[string]any {
		text, logprobs := "", newLogprobs(offsets[i])
		switch {
		case e.started != nil:
			return nil
		case e.prompt != nil:
			text = promptText(e.prompt.GetTokens())
			for _, t := range e.prompt.GetTokens() {
				logprobs.add(t.GetText(), t.Logprob, t.GetTop())
			}
		case e.token != nil:
			text = e.token.GetText()
			logprobs.addToken(e.token)
		case e.finished != nil:
			return map[string]any{"text": e.finished.GetText(), "logprobs": nil}
		}
		if text == "" && c.Logprobs == nil {
			return nil
		}
		offsets[i] = logprobs.next
		out := map[string]any{"text": text, "logprobs": nil}
		if c.Logprobs != nil {
			out["logprobs"] = logprobs
		}
		return out
	}
}

// promptText returns the text of tokens of a prompt.
func promptText(tokens []*routerv1.PromptToken) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(t.GetText())
	}
	return b.String()
}

// shape returns the format of a completion's responses.
func (c *completionRequest) shape(jobs int, created int64) *shape {
	return &shape{
		prefix: "cmpl", whole: "text_completion", part: "text_completion", created: created,
		usage: c.usageWanted(),
		choice: func(_ int, a *answer) map[string]any {
			return map[string]any{"text": promptText(a.prompt) + a.text.String(), "logprobs": c.logprobs(a)}
		},
		piece: c.piece(jobs),
		empty: func() map[string]any { return map[string]any{"text": "", "logprobs": nil} },
	}
}
