package eval

import (
	"math"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Part is what a doc adds to a metric, whose value is the sum of Num over the sum of Den of all docs, or e to that
// power.
type Part struct {
	Num float64 `json:"num"`
	Den float64 `json:"den"`
}

// Parts are what a doc adds to each metric.
type Parts map[string]Part

// Pair returns the ids of a context and its continuation, and the index of the first id of the continuation. White
// space at the end of the context belongs to the continuation. The continuation's ids are those that the whole text
// has beyond the ids of the context. start is put before an empty context.
func Pair(encode func(string) ([]int32, error), context, continuation string, start []int32) (ids []int32, from int,
	err error) {
	if context == "" {
		ids, err = encode(continuation)
		return append(append([]int32{}, start...), ids...), len(start), err
	}
	trimmed := strings.TrimRight(context, " \t\n\r\v\f")
	continuation = context[len(trimmed):] + continuation
	if ids, err = encode(trimmed + continuation); err != nil {
		return nil, 0, err
	}
	alone, err := encode(trimmed)
	return ids, min(len(alone), len(ids)), err
}

// Choose returns what a doc adds to the metrics of multiple choice. scores are the log-likelihoods of the choices. acc
// takes the most likely one; acc_norm takes the one with the highest log-likelihood for each character.
func (d *Doc) Choose(scores []float64) Parts {
	best, normal, top, topNormal := 0, 0, math.Inf(-1), math.Inf(-1)
	for i, s := range scores {
		if s > top {
			best, top = i, s
		}
		if n := s / float64(max(1, utf8.RuneCountInString(d.Choices[i]))); n > topNormal {
			normal, topNormal = i, n
		}
	}
	return Parts{"acc": hit(best == d.Gold), "acc_norm": hit(normal == d.Gold)}
}

func hit(ok bool) Part {
	if ok {
		return Part{1, 1}
	}
	return Part{0, 1}
}

var (
	strictNumber   = regexp.MustCompile(`#### (-?[0-9.,]+)`)
	flexibleNumber = regexp.MustCompile(`-?[$0-9.,]{2,}|-?[0-9]+`)
)

// Judge returns what a doc adds to the metrics of a generated text. In the form gsm8k, the number after "####" is
// compared (exact_match,strict) and the last number of the text (exact_match,flexible). Otherwise the texts are
// compared without the white space around them. matches, unless nil, says whether the text has the form that a
// schema or a regular expression asks for.
func (d *Doc) Judge(form, text string, matches *bool) Parts {
	out := Parts{}
	if matches != nil {
		out["valid"] = hit(*matches)
	}
	if form != "gsm8k" {
		out["exact_match"] = hit(strings.TrimSpace(text) == strings.TrimSpace(d.Answer))
		return out
	}
	want := plainNumber(d.Answer)
	strict := "[invalid]"
	if m := strictNumber.FindStringSubmatch(text); m != nil {
		strict = m[1]
	}
	flexible := "[invalid]"
	if all := flexibleNumber.FindAllString(text, -1); len(all) > 0 {
		flexible = all[len(all)-1]
	}
	out["exact_match,strict"], out["exact_match,flexible"] = hit(plainNumber(strict) == want),
		hit(plainNumber(flexible) == want)
	return out
}

// plainNumber leaves of an answer what the harness compares: the text after the last "#### ", without commas,
// dollar signs and a point at the end.
func plainNumber(s string) string {
	if at := strings.LastIndex(s, "#### "); at >= 0 {
		s = s[at+len("#### "):]
	}
	return strings.TrimSpace(strings.ToLower(strings.TrimSuffix(strings.NewReplacer(",", "", "$", "").Replace(s), ".")))
}

// Window is a part of a text: its ids, and the index of the first one that is scored.
type Window struct {
	IDs  []int32
	From int
}

// Windows cuts the ids of a text into windows that a model of the given context length can score. Every id is
// scored once. The first window begins with start, which is not scored. Each further window begins with the last id
// of the one before, as in lm-evaluation-harness; the last one begins earlier, so that it is full.
func Windows(ids []int32, start int32, context int) []Window {
	if len(ids) == 0 || context < 1 {
		return nil
	}
	first := min(context, len(ids))
	out := []Window{{IDs: append([]int32{start}, ids[:first]...), From: 1}}
	for at := first; at < len(ids); {
		end := min(at+context, len(ids))
		begin := max(0, end-context-1)
		out = append(out, Window{IDs: ids[begin:end], From: at - begin})
		at = end
	}
	return out
}

// Rolling returns what a text adds to the metrics of perplexity. nll is its negative log-likelihood in nats, over
// tokens ids. Words are separated by white space.
func Rolling(text string, nll float64, tokens int) Parts {
	words := float64(len(spaces.Split(text, -1)))
	size := float64(len(text))
	return Parts{
		"token_perplexity": {nll, float64(tokens)}, "word_perplexity": {nll, words}, "byte_perplexity": {nll, size},
		"bits_per_byte": {nll / math.Ln2, size},
	}
}

var spaces = regexp.MustCompile(`\s+`)
