package vocab

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/dlclark/regexp2/v2"
)

// hfComponent is a normalizer, pre-tokenizer, post-processor or decoder of a
// tokenizer.json: a type and that type's settings.
type hfComponent struct {
	Type          string        `json:"type"`
	Normalizers   []hfComponent `json:"normalizers"`
	PreTokenizers []hfComponent `json:"pretokenizers"`
	Processors    []hfComponent `json:"processors"`
	Decoders      []hfComponent `json:"decoders"`

	AddPrefixSpace bool      `json:"add_prefix_space"`
	UseRegex       *bool     `json:"use_regex"`
	Pattern        hfPattern `json:"pattern"`
	Behavior       string    `json:"behavior"`
	Invert         bool      `json:"invert"`
	Individual     bool      `json:"individual_digits"`
	Replacement    string    `json:"replacement"`
	PrependScheme  string    `json:"prepend_scheme"`
	Split          *bool     `json:"split"`
	Prepend        string    `json:"prepend"`
	StripLeft      bool      `json:"strip_left"`
	StripRight     bool      `json:"strip_right"`
	Start          int       `json:"start"`
	Stop           int       `json:"stop"`

	Content string `json:"-"` // of Replace and Strip; elsewhere the field has another shape

	Single []struct {
		SpecialToken *struct {
			ID string `json:"id"`
		} `json:"SpecialToken"`
		Sequence *struct {
			ID string `json:"id"`
		} `json:"Sequence"`
	} `json:"single"`
	SpecialTokens map[string]struct {
		IDs []int64 `json:"ids"`
	} `json:"special_tokens"`
}

// UnmarshalJSON reads the settings.
func (c *hfComponent) UnmarshalJSON(data []byte) error {
	type plain hfComponent
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	*c = hfComponent(p)
	var content struct {
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(data, &content) == nil && len(content.Content) > 0 && content.Content[0] == '"' {
		return json.Unmarshal(content.Content, &c.Content)
	}
	return nil
}

// hfPattern is {"String": "…"} or {"Regex": "…"}.
type hfPattern struct {
	String *string `json:"String"`
	Regex  *string `json:"Regex"`
}

// hfCut is a pre-tokenizer and whether its pieces are byte-level.
type hfCut struct {
	cut       pretokenizer
	byteLevel bool
}

// hfPretokenizer builds the pre-tokenizer of a tokenizer.json.
func hfPretokenizer(c *hfComponent) (hfCut, error) {
	if c == nil {
		return hfCut{}, nil
	}
	const field = "tokenizer.json: pre_tokenizer"
	switch c.Type {
	case "Sequence":
		var steps []pretokenizer
		byteLevel := false
		for i := range c.PreTokenizers {
			if byteLevel {
				return hfCut{}, unsupported(field, "a step after ByteLevel")
			}
			s, err := hfPretokenizer(&c.PreTokenizers[i])
			if err != nil {
				return hfCut{}, err
			}
			byteLevel = s.byteLevel
			steps = append(steps, s.cut)
		}
		return hfCut{sequence(steps...), byteLevel}, nil
	case "ByteLevel":
		cut := whole
		if c.UseRegex == nil || *c.UseRegex {
			cut = styled(styleGPT2())
		}
		if c.AddPrefixSpace {
			cut = sequence(spaceFirst, cut)
		}
		return hfCut{cut, true}, nil
	case "Digits":
		limit := 0
		if c.Individual {
			limit = 1
		}
		return hfCut{isolate(runs(classNumber, "", 0, limit)), false}, nil
	case "Metaspace":
		if !singleRune(c.Replacement) {
			return hfCut{}, malformed(field, "replacement %q is not one character", c.Replacement)
		}
		switch c.PrependScheme {
		case "", "always", "first", "never":
		default:
			return hfCut{}, malformed(field, "prepend scheme %q", c.PrependScheme)
		}
		return hfCut{metaspace(c.Replacement, c.PrependScheme, c.Split == nil || *c.Split), false}, nil
	case "Split":
		return hfSplit(c)
	default:
		return hfCut{}, unsupported(field, "type %q", c.Type)
	}
}

func spaceFirst(text string, first bool, emit func(string, bool) error) error {
	if text != "" && text[0] != ' ' {
		text = " " + text
	}
	return whole(text, first, emit)
}

// metaspace writes spaces as mark, puts one before the text as the scheme says,
// and cuts before each.
func metaspace(mark, scheme string, split bool) pretokenizer {
	return func(text string, first bool, emit func(string, bool) error) error {
		text = strings.ReplaceAll(text, " ", mark)
		if (scheme == "" || scheme == "always" || scheme == "first" && first) && !strings.HasPrefix(text, mark) {
			text = mark + text
		}
		if !split {
			return whole(text, first, emit)
		}
		for at := 0; at < len(text); {
			end := len(text)
			if n := strings.Index(text[at+1:], mark); n >= 0 {
				end = at + 1 + n
			}
			if err := emit(text[at:end], first && at == 0); err != nil {
				return err
			}
			at = end
		}
		return nil
	}
}

// Regular expressions that styles stand for, as the authors' files spell them.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternGPT2b  = `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen2  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen35 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternO200k  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternTekken = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// knownPattern returns the scanner for a regular expression, where there is one.
func knownPattern(p string) pretokenizer {
	switch p {
	case patternGPT2, patternGPT2b:
		return styled(styleGPT2())
	case patternLlama3:
		return styled(styleLlama3())
	case patternQwen2:
		return styled(styleQwen2())
	case patternQwen35:
		return styled(styleQwen35())
	case patternO200k:
		return styled(styleO200k())
	case patternTekken:
		return styled(styleTekken())
	case `\p{N}`, `\d`:
		return isolate(runs(classNumber, "", 0, 1))
	case `\p{N}+`, `\d+`:
		return isolate(runs(classNumber, "", 0, 0))
	case `\p{N}{1,3}`:
		return isolate(runs(classNumber, "", 0, 3))
	case `[\r\n]`:
		return isolate(runs(classNewline, "", 0, 1))
	case `\s?\p{L}+`:
		return isolate(runs(classLetter, "", classSpace, 0))
	case `\s?\p{P}+`:
		return isolate(runs(classPunct, "", classSpace, 0))
	}
	return nil
}

// hfSplit builds a Split step.
func hfSplit(c *hfComponent) (hfCut, error) {
	const field = "tokenizer.json: pre_tokenizer"
	if p := c.Pattern.Regex; p != nil && c.Behavior == "Isolated" && !c.Invert {
		if cut := knownPattern(*p); cut != nil {
			return hfCut{cut, false}, nil
		}
	}
	var find func(text string) ([][2]int, error)
	switch {
	case c.Pattern.String != nil:
		sub := *c.Pattern.String
		if sub == "" {
			return hfCut{}, malformed(field, "split at nothing")
		}
		find = func(text string) ([][2]int, error) {
			var m [][2]int
			for at := 0; ; {
				n := strings.Index(text[at:], sub)
				if n < 0 {
					return m, nil
				}
				m = append(m, [2]int{at + n, at + n + len(sub)})
				at += n + len(sub)
			}
		}
	case c.Pattern.Regex != nil:
		re, err := regexp2.Compile(*c.Pattern.Regex, regexp2.None)
		if err != nil {
			return hfCut{}, unsupported(field, "pattern %q: %v", shorten(*c.Pattern.Regex), err)
		}
		re.MatchTimeout = patternTime
		find = func(text string) ([][2]int, error) { return regexMatches(re, text) }
	default:
		return hfCut{}, malformed(field, "split without a pattern")
	}
	switch c.Behavior {
	case "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous":
	default:
		return hfCut{}, malformed(field, "behavior %q", c.Behavior)
	}
	return hfCut{splitBy(find, c.Behavior, c.Invert), false}, nil
}

// stretch is part of a text and whether the pattern matched it.
type stretch struct {
	start, end int
	match      bool
}

// splitBy cuts at matches and treats them as the behavior says.
func splitBy(find func(string) ([][2]int, error), behavior string, invert bool) pretokenizer {
	return func(text string, first bool, emit func(string, bool) error) error {
		matches, err := find(text)
		if err != nil {
			return err
		}
		var parts []stretch
		at := 0
		for _, m := range matches {
			if m[0] > at {
				parts = append(parts, stretch{at, m[0], invert})
			}
			parts = append(parts, stretch{m[0], m[1], !invert})
			at = m[1]
		}
		if at < len(text) {
			parts = append(parts, stretch{at, len(text), invert})
		}
		for _, p := range joined(parts, behavior) {
			if err := emit(text[p.start:p.end], first && p.start == 0); err != nil {
				return err
			}
		}
		return nil
	}
}

// joined merges or drops stretches as the behavior says.
func joined(parts []stretch, behavior string) []stretch {
	var out []stretch
	for i, p := range parts {
		last := len(out) - 1
		switch {
		case behavior == "Removed" && p.match:
		case behavior == "Contiguous" && i > 0 && parts[i-1].match == p.match,
			behavior == "MergedWithPrevious" && i > 0 && p.match && !parts[i-1].match,
			behavior == "MergedWithNext" && i > 0 && !p.match && parts[i-1].match:
			out[last].end = p.end
		default:
			out = append(out, p)
		}
	}
	return out
}

// patternTime bounds the time that a pattern without a scanner may take on one
// text.
const patternTime = 2 * time.Second

// regexMatches lists the byte ranges of matches that are not empty.
func regexMatches(re *regexp2.Regexp, text string) ([][2]int, error) {
	var out [][2]int
	end := time.Now().Add(patternTime)
	m, err := re.FindStringMatch(text)
	for ; err == nil && m != nil; m, err = re.FindNextMatch(m) {
		if at, n := m.ByteRange(); n > 0 {
			out = append(out, [2]int{at, at + n})
		}
		if time.Now().After(end) {
			return nil, &TextError{Piece: shorten(text), Reason: "the pre-tokenizer's pattern took too long"}
		}
	}
	if err != nil {
		return nil, errors.Join(&TextError{Piece: shorten(text), Reason: "the pre-tokenizer's pattern took too long"}, err)
	}
	return out, nil
}

func isSpace(r rune) bool { return unicode.IsSpace(r) }
