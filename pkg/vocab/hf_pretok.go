package vocab

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// hfComponent is a normalizer, pre-tokenizer, post-processor or decoder of a
// tokenizer.json: a type and its settings.
type hfComponent struct {
	Type          string        `json:"type"`
	Normalizers   []hfComponent `json:"normalizers"`
	PreTokenizers []hfComponent `json:"pretokenizers"`
	Processors    []hfComponent `json:"processors"`
	Decoders      []hfComponent `json:"decoders"`

	AddPrefixSpace *bool     `json:"add_prefix_space"`
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
	CleanText      *bool     `json:"clean_text"`
	Chinese        *bool     `json:"handle_chinese_chars"`
	StripAccents   *bool     `json:"strip_accents"`
	Lowercase      *bool     `json:"lowercase"`
	Length         int       `json:"length"`
	Delimiter      string    `json:"delimiter"`
	Prefix         string    `json:"prefix"`
	Suffix         string    `json:"suffix"`
	Cleanup        *bool     `json:"cleanup"`
	PadToken       string    `json:"pad_token"`
	WordDelimiter  string    `json:"word_delimiter_token"`
	Charsmap       hfBytes   `json:"precompiled_charsmap"`
	Sep            hfPair    `json:"sep"`
	Cls            hfPair    `json:"cls"`

	Content string `json:"-"` // of Replace and Strip; other types use the field for something else

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

// hfBytes is bytes in base64, or null.
type hfBytes []byte

// UnmarshalJSON reads either.
func (b *hfBytes) UnmarshalJSON(data []byte) error {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil || s == nil {
		return err
	}
	raw, err := base64.StdEncoding.DecodeString(*s)
	*b = raw
	return err
}

// hfPair is a token and its id.
type hfPair struct {
	Token string
	ID    int64
}

// UnmarshalJSON reads ["token", id] and ignores other values, which belong to other
// components.
func (p *hfPair) UnmarshalJSON(data []byte) error {
	if !bytes.HasPrefix(data, []byte("[")) {
		return nil
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil || len(parts) != 2 {
		return err
	}
	if err := json.Unmarshal(parts[0], &p.Token); err != nil {
		return err
	}
	return json.Unmarshal(parts[1], &p.ID)
}

// hfSteps is a pre-tokenizer. byteLevel says that its pieces are spelled in GPT-2's
// byte alphabet.
type hfSteps struct {
	steps     []step
	byteLevel bool
}

// hfPretokenizer builds the pre-tokenizer of a tokenizer.json.
func hfPretokenizer(c *hfComponent) (hfSteps, error) {
	if c == nil {
		return hfSteps{}, nil
	}
	const field = "tokenizer.json: pre_tokenizer"
	one := func(s ...step) (hfSteps, error) { return hfSteps{steps: s}, nil }
	switch c.Type {
	case "Sequence":
		var out hfSteps
		for i := range c.PreTokenizers {
			s, err := hfPretokenizer(&c.PreTokenizers[i])
			if err != nil {
				return hfSteps{}, err
			}
			if out.byteLevel && len(s.steps) > 0 {
				if s.byteLevel {
					return hfSteps{}, unsupported(field, "two ByteLevel steps")
				}
				s.steps = []step{&spelled{steps: s.steps, alphabet: newByteLevel()}}
			}
			out.steps, out.byteLevel = append(out.steps, s.steps...), out.byteLevel || s.byteLevel
		}
		return out, nil
	case "ByteLevel":
		out := hfSteps{byteLevel: true}
		if c.AddPrefixSpace == nil || *c.AddPrefixSpace {
			out.steps = append(out.steps, stepFunc(spaceFirst))
		}
		if c.UseRegex == nil || *c.UseRegex {
			st := styleGPT2()
			out.steps = append(out.steps, scan{&st})
		}
		return out, nil
	case "Digits":
		limit := 0
		if c.Individual {
			limit = 1
		}
		return one(scan{newIsolate(runs(classNumber, "", 0, limit))})
	case "Punctuation":
		b := c.Behavior
		if b == "" {
			b = isolated
		}
		return splitting(field, findClass(isPunctuation), b, false)
	case "Whitespace":
		return one(&splitter{find: findRuns, behavior: removed, invert: true})
	case "WhitespaceSplit":
		return one(&splitter{find: findClass(isSpace), behavior: removed})
	case "BertPreTokenizer":
		return one(&splitter{find: findClass(isSpace), behavior: removed},
			&splitter{find: findClass(isPunctuation), behavior: isolated})
	case "CharDelimiterSplit":
		d, n := utf8.DecodeRuneInString(c.Delimiter)
		if n == 0 || n != len(c.Delimiter) {
			return hfSteps{}, malformed(field, "delimiter %q is not one character", c.Delimiter)
		}
		return one(&splitter{find: findClass(func(r rune) bool { return r == d }), behavior: removed})
	case "FixedLength":
		n := c.Length
		if n == 0 {
			n = 5
		}
		if n < 0 {
			return hfSteps{}, malformed(field, "want a positive length, got %d", n)
		}
		return one(scan{fixedLength(n)})
	case "UnicodeScripts":
		return one(stepFunc(cutScripts))
	case "Metaspace":
		return hfMetaspace(c)
	case "Split":
		return hfSplit(c)
	default:
		return hfSteps{}, unsupported(field, "type %q", c.Type)
	}
}

// findRuns finds runs of word characters and runs of other characters except spaces.
func findRuns(s string, found func(start, end int) bool) {
	const spaces, words, others = 0, 1, 2
	kind := func(r rune) int {
		switch {
		case isWord(r):
			return words
		case isSpace(r):
			return spaces
		}
		return others
	}
	start, last := 0, spaces
	for i, r := range s {
		k := kind(r)
		if k == last {
			continue
		}
		if last != spaces && !found(start, i) {
			return
		}
		start, last = i, k
	}
	if last != spaces {
		found(start, len(s))
	}
}

// isPunctuation is punctuation as BERT defines it: \p{P} and the ASCII symbols.
func isPunctuation(r rune) bool {
	c := classOf(r)
	return c&classPunct != 0 || r < utf8.RuneSelf && c&classSymbol != 0
}

// mustCompile compiles a pattern that this package contains.
func mustCompile(src string) *pattern.Pattern {
	p, err := pattern.Compile(src)
	if err != nil {
		panic(err)
	}
	return p
}

// fixedLength splits after every n characters.
type fixedLength int

func (n fixedLength) next(s string, i, end int) int {
	for k := 0; k < int(n) && i < end; k++ {
		_, w := utf8.DecodeRuneInString(s[i:end])
		i += w
	}
	return i
}

func hfMetaspace(c *hfComponent) (hfSteps, error) {
	const field = "tokenizer.json: pre_tokenizer"
	mark := c.Replacement
	if mark == "" {
		mark = wordMark
	}
	if !singleRune(mark) {
		return hfSteps{}, malformed(field, "replacement %q is not one character", mark)
	}
	scheme := c.PrependScheme
	switch scheme {
	case "":
		scheme = "always"
		if c.AddPrefixSpace != nil && !*c.AddPrefixSpace {
			scheme = "never"
		}
	case "always", "first", "never":
	default:
		return hfSteps{}, malformed(field, "prepend scheme %q", scheme)
	}
	steps := []step{metaspace(mark, scheme)}
	if c.Split == nil || *c.Split {
		steps = append(steps, scan{markScan(mark)})
	}
	return hfSteps{steps: steps}, nil
}

// markScan splits before each mark.
type markScan string

func (m markScan) next(s string, i, end int) int {
	_, n := utf8.DecodeRuneInString(s[i:end])
	if n := indexFrom(s[:end], string(m), i+n); n >= 0 {
		return n
	}
	return end
}

// cutScripts splits where the Unicode script changes. Characters common to all scripts
// stay with the text before them, and the scripts of Japanese count as one.
func cutScripts(p piece, emit func(piece) error) error {
	const unknown, common = "", "any"
	last, start := unknown, 0
	for i, r := range p.text {
		script := common
		if r != ' ' {
			script = scriptOf(r)
		}
		if script != common && last != common && script != last && i > start && last != unknown {
			if err := emit(p.part(start, i)); err != nil {
				return err
			}
			start = i
		}
		if script != common {
			if last == unknown {
				start = i // Hugging Face drops the text before
			}
			last = script
		}
	}
	if last != unknown && start < len(p.text) {
		return emit(p.part(start, len(p.text)))
	}
	return nil
}

func scriptOf(r rune) string {
	if r == 0x30fc || unicode.In(r, unicode.Hiragana, unicode.Katakana) {
		return "Han"
	}
	for _, name := range [...]string{"Latin", "Han", "Common", "Inherited", "Cyrillic", "Greek", "Arabic"} {
		if unicode.Is(unicode.Scripts[name], r) {
			return name
		}
	}
	for _, name := range sorted(unicode.Scripts) {
		if unicode.Is(unicode.Scripts[name], r) {
			return name
		}
	}
	return "Unknown"
}

// splitting returns a Split step.
func splitting(field string, find func(string, func(int, int) bool), behavior string, invert bool) (hfSteps, error) {
	switch behavior {
	case removed, isolated, toPrevious, toNext, contiguous:
		return hfSteps{steps: []step{&splitter{find, behavior, invert}}}, nil
	}
	return hfSteps{}, malformed(field, "behavior %q", behavior)
}

// hfSplit builds a Split step.
func hfSplit(c *hfComponent) (hfSteps, error) {
	const field = "tokenizer.json: pre_tokenizer"
	switch {
	case c.Pattern.String != nil:
		if *c.Pattern.String == "" {
			return hfSteps{}, malformed(field, "the pattern is empty")
		}
		return splitting(field, findString(*c.Pattern.String), c.Behavior, c.Invert)
	case c.Pattern.Regex != nil:
		if sc := knownPattern(*c.Pattern.Regex); sc != nil {
			if c.Behavior == isolated && !c.Invert || c.Behavior == removed && c.Invert && covers(sc) {
				return hfSteps{steps: []step{scan{sc}}}, nil
			}
		}
		p, err := pattern.Compile(*c.Pattern.Regex)
		if err != nil {
			return hfSteps{}, unsupported(field, "%v", err)
		}
		return splitting(field, findPattern(p), c.Behavior, c.Invert)
	}
	return hfSteps{}, malformed(field, "the pattern is missing")
}
