package httpapi

import (
	"strings"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// MaxTop is the most candidates that are reported with a token, as in the backend.
const MaxTop = 20

// Candidate is a token with its log-probability and UTF-8 bytes.
type Candidate struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// Logprob is a token of an answer with the likeliest ones at its place.
type Logprob struct {
	Candidate
	Top []Candidate `json:"top_logprobs"`
}

// Logprobs returns the log-probabilities of tokens.
func Logprobs(tokens ...*routerv1.TokenEvent) []Logprob {
	out := make([]Logprob, len(tokens))
	for i, t := range tokens {
		out[i] = Logprob{toCandidate(t.GetText(), t.GetLogprob()), make([]Candidate, len(t.GetTop()))}
		for j, top := range t.GetTop() {
			out[i].Top[j] = toCandidate(top.GetText(), top.GetLogprob())
		}
	}
	return out
}

func toCandidate(text string, logprob float32) Candidate {
	out := Candidate{Token: text, Logprob: logprob, Bytes: make([]int, len(text))}
	for i, b := range []byte(text) {
		out.Bytes[i] = int(b)
	}
	return out
}

// maxBehind bounds how many tokens of text that was held back or dropped may follow the last one of some content.
const maxBehind = 16

// TokenLog holds the tokens of an answer until it is known what the parser has made of their text. Text may be held
// back, since it may begin a tool call, and markers are dropped.
type TokenLog struct{ tokens []*routerv1.TokenEvent }

// Add adds the next token.
func (l *TokenLog) Add(t *routerv1.TokenEvent) { l.tokens = append(l.tokens, t) }

// All takes all tokens.
func (l *TokenLog) All() []*routerv1.TokenEvent {
	out := l.tokens
	l.tokens = nil
	return out
}

// Content takes the tokens that content comes from, which the parser has added just now, and drops those before: they
// belong to reasoning and to markers. They are the fewest last ones whose text has the content, and the tokens before
// them that have no text of their own, such as the first bytes of a character. No content takes none, and drops none:
// it may come later.
func (l *TokenLog) Content(content string) []*routerv1.TokenEvent {
	if content == "" {
		return nil
	}
	from := len(l.tokens)
	for size := 0; from > 0 && size < len(content); {
		from--
		size += len(l.tokens[from].GetText())
	}
	var joined strings.Builder
	for _, t := range l.tokens[from:] {
		joined.WriteString(t.GetText())
	}
	text := joined.String()
	for n := 0; from > 0 && n < maxBehind && !strings.Contains(text, content); n++ {
		from--
		text = l.tokens[from].GetText() + text
	}
	for from > 0 && l.tokens[from-1].GetText() == "" {
		from--
	}
	out := l.tokens[from:]
	l.tokens = nil
	return out
}
