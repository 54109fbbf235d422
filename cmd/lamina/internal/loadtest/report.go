package loadtest

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Report is what a load measured. Its JSON is the output of --format json.
type Report struct {
	URLs        []string `json:"urls"`
	Model       string   `json:"model"`
	Loop        string   `json:"loop"` // "closed" or "open"
	Streams     int      `json:"streams"`
	Rate        float64  `json:"rate"` // requests per second of an open loop
	Seed        int64    `json:"seed"`
	Prompts     int      `json:"prompts"`
	ElapsedS    float64  `json:"elapsed_s"`
	Interrupted bool     `json:"interrupted"` // stopped before its end
	// Late is by how much requests of an open loop were sent after they were due, because all
	// streams were busy.
	Late        Quantiles         `json:"late_ms"`
	All         *Group            `json:"all"`
	Tenants     map[string]*Group `json:"tenants,omitempty"`
	Differences []Difference      `json:"differences,omitempty"`

	// Texts holds the answers, if Config.Record was set.
	Texts *Texts `json:"-"`
}

// Group holds the figures of all requests, or of a tenant's.
type Group struct {
	Requests    int `json:"requests"`
	OK          int `json:"ok"`
	Failed      int `json:"failed"`
	Refused     int `json:"refused"`
	Interrupted int `json:"interrupted"`
	Resumed     int `json:"resumed"` // streams that broke and went on, mostly at another server

	Tokens int `json:"tokens"` // of all streams
	// Goodput counts the tokens of streams that ended well, and whose first token came within the
	// limit if there is one.
	Goodput        float64 `json:"goodput_tokens_per_s"`
	GoodRequests   int     `json:"good_requests"`
	RequestsPerSec float64 `json:"requests_per_s"` // that were good

	TTFT       Quantiles `json:"ttft_ms"`
	InterToken Quantiles `json:"inter_token_ms"`
	Latency    Quantiles `json:"latency_ms"` // of streams that ended well
	Stalls     Stalls    `json:"stalls"`
	Errors     []Errors  `json:"errors"`
	Refusals   Refusals  `json:"refusals"`
	Identity   Identity  `json:"identity"`

	ttft, inter, latency, answer sketch
	goodTokens                   int
}

// Stalls counts gaps between two tokens that are longer than the limit.
type Stalls struct {
	LimitMS   float64 `json:"limit_ms"`
	Count     int     `json:"count"`
	Streams   int     `json:"streams"` // that had one
	LongestMS float64 `json:"longest_ms"`
}

// Errors counts failures of one class.
type Errors struct {
	Class   Outcome `json:"class"`
	Status  int     `json:"status"` // HTTP status; 0 if none came
	Count   int     `json:"count"`
	Message string  `json:"message"` // of the first one
}

// Refusals counts answers with status 429 or 503.
type Refusals struct {
	Status         map[string]int `json:"status"`
	WithRetryAfter int            `json:"with_retry_after"`
	RetryAfterMax  float64        `json:"retry_after_max_s"`
	Answer         Quantiles      `json:"answer_ms"` // from the request to the refusal
}

// Identity counts answers that were compared with an answer to the same request.
type Identity struct {
	Compared  int     `json:"compared"`
	Identical int     `json:"identical"`
	Share     float64 `json:"share"` // 1 if nothing was compared
	// Diverged counts failed streams whose text is not the beginning of the right one.
	Diverged int `json:"diverged"`
}

// Difference is an answer that differs from another answer to the same request.
type Difference struct {
	Line   int    `json:"line"` // of the prompt
	Key    string `json:"key"`
	Index  int    `json:"index"` // of the request
	Choice int    `json:"choice"`
	Byte   int    `json:"byte"` // at which the texts differ
	Got    string `json:"got"`  // from there on
	Want   string `json:"want"`
}

const (
	maxDifferences = 8
	shownText      = 60
	maxTenants     = 1000 // with figures of their own
)

// collector adds up samples.
type collector struct {
	config Config
	mu     sync.Mutex
	out    *Report
	texts  *Texts
	late   sketch
}

func newCollector(c Config) *collector {
	out := &Report{
		URLs: c.URLs, Model: c.Model, Loop: "closed", Streams: c.Streams, Rate: c.Rate, Seed: c.Seed,
		Prompts: len(c.Prompts), All: newGroup(c), Tenants: map[string]*Group{},
	}
	if c.Rate > 0 {
		out.Loop = "open"
	}
	return &collector{config: c, out: out, texts: NewTexts()}
}

func newGroup(c Config) *Group {
	return &Group{
		Stalls: Stalls{LimitMS: millis(c.Stall)}, Errors: []Errors{},
		Refusals: Refusals{Status: map[string]int{}},
	}
}

// add counts a stream that has ended.
func (c *collector) add(s *Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compare(s)
	if c.config.Rate > 0 {
		c.late.add(s.Sent.Sub(s.Planned))
	}
	c.out.All.add(s, c.config)
	if s.Tenant != "" {
		g := c.out.Tenants[s.Tenant]
		if g == nil && len(c.out.Tenants) < maxTenants {
			g = newGroup(c.config)
			c.out.Tenants[s.Tenant] = g
		}
		if g != nil {
			g.add(s, c.config)
		}
	}
	if c.config.Observe != nil {
		c.config.Observe(*s)
	}
}

// compare compares the text of a stream with the expected one, or else with the first complete answer
// to the same request.
func (c *collector) compare(s *Sample) {
	var want Text
	var known bool
	if c.config.Expect != nil {
		want, known = c.config.Expect.Get(s.Key)
	}
	if !known {
		want, known = c.texts.Get(s.Key)
	}
	switch {
	case s.Outcome == OK && !known || c.config.Record && s.Outcome == OK:
		if _, have := c.texts.Get(s.Key); !have {
			c.texts.byKey[s.Key] = s.Text
		}
		if !known {
			return
		}
	case !known, s.Outcome != OK && s.Pieces == 0:
		return
	}
	s.Compared = true
	if s.Outcome == OK {
		s.Identical = s.Text.equal(want)
	} else {
		s.Identical = s.Text.begins(want)
	}
	if !s.Identical && len(c.out.Differences) < maxDifferences {
		choice, at := s.Text.firstDifference(want)
		c.out.Differences = append(c.out.Differences, Difference{
			Line: c.config.Prompts[s.Prompt].Line, Key: s.Key, Index: s.Index, Choice: choice, Byte: at,
			Got: tail(s.Text, choice, at), Want: tail(want, choice, at),
		})
	}
}

// tail returns the text of a choice from a byte on, and its finish reason if that is its end.
func tail(t Text, choice, at int) string {
	if choice >= len(t.Choices) {
		return "(no such choice)"
	}
	rest := t.Choices[choice][min(at, len(t.Choices[choice])):]
	if len(rest) > shownText {
		return rest[:shownText]
	}
	return fmt.Sprintf("%s(%s)", rest, cmp.Or(t.Finish[choice], "unfinished"))
}

func (g *Group) add(s *Sample, c Config) {
	g.Requests++
	g.Tokens += s.Tokens
	if s.Resumed > 0 {
		g.Resumed++
	}
	if !s.First.IsZero() {
		g.ttft.add(s.First.Sub(s.Planned))
	}
	stalled := false
	for _, d := range s.between {
		g.inter.add(d)
		if d > c.Stall {
			g.Stalls.Count++
			stalled = true
		}
		g.Stalls.LongestMS = max(g.Stalls.LongestMS, millis(d))
	}
	if stalled {
		g.Stalls.Streams++
	}
	switch s.Outcome {
	case OK:
		g.OK++
		g.latency.add(s.End.Sub(s.Planned))
		if c.TTFTLimit == 0 || !s.First.IsZero() && s.First.Sub(s.Planned) <= c.TTFTLimit {
			g.GoodRequests++
			g.goodTokens += s.Tokens
		}
	case Refused:
		g.Refused++
		g.answer.add(s.Answer.Sub(s.Sent))
		g.Refusals.Status[fmt.Sprint(s.Code)]++
		if s.RetryAfter > 0 {
			g.Refusals.WithRetryAfter++
			g.Refusals.RetryAfterMax = max(g.Refusals.RetryAfterMax, s.RetryAfter.Seconds())
		}
	case Interrupted:
		g.Interrupted++
	default:
		g.Failed++
		g.addError(s)
	}
	switch {
	case s.Compared && s.Outcome == OK:
		g.Identity.Compared++
		if s.Identical {
			g.Identity.Identical++
		}
	case s.Compared && !s.Identical:
		g.Identity.Diverged++
	}
}

func (g *Group) addError(s *Sample) {
	at := slices.IndexFunc(g.Errors, func(e Errors) bool { return e.Class == s.Outcome && e.Status == s.Code })
	if at < 0 {
		at = len(g.Errors)
		g.Errors = append(g.Errors, Errors{Class: s.Outcome, Status: s.Code, Message: s.Message})
	}
	g.Errors[at].Count++
}

// report computes the figures.
func (c *collector) report(elapsed time.Duration, interrupted bool) *Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.ElapsedS, c.out.Interrupted = round(elapsed.Seconds()), interrupted
	c.out.Late = c.late.quantiles()
	c.out.All.finish(elapsed)
	for _, g := range c.out.Tenants {
		g.finish(elapsed)
	}
	if c.config.Record {
		c.out.Texts = c.texts
	}
	return c.out
}

func (g *Group) finish(elapsed time.Duration) {
	seconds := max(elapsed.Seconds(), 1e-9)
	g.Goodput = round(float64(g.goodTokens) / seconds)
	g.RequestsPerSec = round(float64(g.GoodRequests) / seconds)
	g.TTFT, g.InterToken, g.Latency = g.ttft.quantiles(), g.inter.quantiles(), g.latency.quantiles()
	g.Refusals.Answer = g.answer.quantiles()
	g.Identity.Share = 1
	if g.Identity.Compared > 0 {
		g.Identity.Share = float64(g.Identity.Identical) / float64(g.Identity.Compared)
	}
	slices.SortFunc(g.Errors, func(a, b Errors) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Status, b.Status))
	})
}
