package vocab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// hfFile is a tokenizer.json.
type hfFile struct {
	Version       string       `json:"version"`
	Truncation    any          `json:"truncation"`
	Padding       any          `json:"padding"`
	AddedTokens   []hfAdded    `json:"added_tokens"`
	Normalizer    *hfComponent `json:"normalizer"`
	PreTokenizer  *hfComponent `json:"pre_tokenizer"`
	PostProcessor *hfComponent `json:"post_processor"`
	Decoder       *hfComponent `json:"decoder"`
	Model         hfModel      `json:"model"`
}

type hfAdded struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

type hfModel struct {
	Type          string           `json:"type"`
	Dropout       *float64         `json:"dropout"`
	UnkToken      *string          `json:"unk_token"`
	SubwordPrefix *string          `json:"continuing_subword_prefix"`
	WordSuffix    *string          `json:"end_of_word_suffix"`
	FuseUnk       bool             `json:"fuse_unk"`
	ByteFallback  bool             `json:"byte_fallback"`
	IgnoreMerges  bool             `json:"ignore_merges"`
	Vocab         map[string]int64 `json:"vocab"`
	Merges        []hfMerge        `json:"merges"`
}

// hfMerge is ["a","b"], or "a b" in older files.
type hfMerge [2]string

// UnmarshalJSON reads either spelling.
func (m *hfMerge) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		var pair []string
		if err := json.Unmarshal(data, &pair); err != nil {
			return err
		}
		if len(pair) != 2 {
			return fmt.Errorf("merge of %d tokens", len(pair))
		}
		*m = hfMerge{pair[0], pair[1]}
		return nil
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	a, b, ok := strings.Cut(s, " ")
	if !ok || strings.Contains(b, " ") {
		return fmt.Errorf("merge %q is not two tokens", s)
	}
	*m = hfMerge{a, b}
	return nil
}

// hfIDs is an id or a list of them.
type hfIDs []int64

// UnmarshalJSON reads either, and null.
func (ids *hfIDs) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("[")) {
		return json.Unmarshal(data, (*[]int64)(ids))
	}
	var id *int64
	if err := json.Unmarshal(data, &id); err != nil {
		return err
	}
	*ids = nil
	if id != nil {
		*ids = hfIDs{*id}
	}
	return nil
}

// vocab builds the vocabulary, all but what tokenizer_config.json says.
func (f *hfFile) vocab() (*Vocab, error) {
	v := &Vocab{bos: -1, eos: -1, unk: -1}
	if err := f.fill(v); err != nil {
		return nil, err
	}
	var err error
	if v.normalize, err = hfNormalizer(f.Normalizer); err != nil {
		return nil, err
	}
	pre, err := hfPretokenizer(f.PreTokenizer)
	if err != nil {
		return nil, err
	}
	v.steps = pre.steps
	if err := f.decoding(v); err != nil {
		return nil, err
	}
	if err := f.model(v, pre.byteLevel); err != nil {
		return nil, err
	}
	f.matchers(v)
	return v, f.template(v)
}

// fill sets tokens, ids and kinds.
func (f *hfFile) fill(v *Vocab) error {
	m := &f.Model
	size := int64(0)
	for text, id := range m.Vocab {
		if id < 0 || id >= maxTokens || len(text) > maxToken {
			return malformed("tokenizer.json: vocab", "token %q has id %d or is too long", shorten(text), id)
		}
		size = max(size, id+1)
	}
	for _, a := range f.AddedTokens {
		if a.ID < 0 || a.ID >= maxTokens || len(a.Content) > maxToken {
			return malformed("tokenizer.json: added_tokens", "token %q has id %d or is too long", shorten(a.Content), a.ID)
		}
		size = max(size, a.ID+1)
	}
	if known := int64(len(m.Vocab) + len(f.AddedTokens)); size == 0 || size > 2*known+1024 {
		return malformed("tokenizer.json: vocab", "%d ids for %d tokens", size, known)
	}
	v.tokens = make([]token, size)
	v.ids = make(map[string]int32, size)
	for i := range v.tokens {
		v.tokens[i].kind = KindUnused
	}
	for text, id := range m.Vocab {
		if v.tokens[id].kind != KindUnused {
			return malformed("tokenizer.json: vocab", "two tokens have id %d", id)
		}
		v.tokens[id] = token{text: text, bytes: text, kind: KindNormal}
		v.ids[text] = int32(id)
	}
	for _, a := range f.AddedTokens {
		if id, ok := v.ids[a.Content]; ok && int64(id) != a.ID {
			return malformed("tokenizer.json: added_tokens", "token %q has ids %d and %d", shorten(a.Content), id, a.ID)
		}
		k := KindUserDefined
		if a.Special {
			k = KindControl
		}
		v.tokens[a.ID] = token{text: a.Content, bytes: a.Content, kind: k, added: true}
		v.ids[a.Content] = int32(a.ID)
	}
	if m.UnkToken != nil {
		id, ok := v.ids[*m.UnkToken]
		if !ok {
			return malformed("tokenizer.json: unk_token", "%q is outside the vocabulary", shorten(*m.UnkToken))
		}
		v.unk = id
	}
	return nil
}

// model builds the BPE model.
func (f *hfFile) model(v *Vocab, byteLevel bool) error {
	m := &f.Model
	if m.Type != "BPE" && (m.Type != "" || m.Merges == nil) {
		return unsupported("tokenizer.json: model", "type %q", m.Type)
	}
	if m.Dropout != nil && *m.Dropout != 0 {
		return unsupported("tokenizer.json: dropout", "%g", *m.Dropout)
	}
	if m.SubwordPrefix != nil && *m.SubwordPrefix != "" || m.WordSuffix != nil && *m.WordSuffix != "" {
		return unsupported("tokenizer.json: model", "subword prefix or word suffix")
	}
	pairs := make([][2]string, len(m.Merges))
	for i, p := range m.Merges {
		pairs[i] = p
	}
	if byteLevel {
		v.family = FamilyBPE
		model, err := v.byteBPE("tokenizer.json: merges", pairs)
		if err != nil {
			return err
		}
		if m.IgnoreMerges {
			model.words = v.words()
		}
		v.model = model
		return nil
	}
	table, err := v.merges("tokenizer.json: merges", pairs)
	if err != nil {
		return err
	}
	model := &charBPE{merges: table, chars: map[string]int32{}, unk: v.unk, fuseUnk: m.FuseUnk}
	longest := 0
	for text, id := range v.ids {
		if k := v.tokens[id].kind; k == KindNormal || k == KindUserDefined {
			if singleRune(text) {
				model.chars[text] = id
			} else if k == KindNormal {
				longest = max(longest, len(text))
			}
		}
	}
	v.family = FamilySPM
	if len(pairs) == 0 && longest == 0 && !m.ByteFallback {
		v.family = FamilyChar
		model.strict = true
	}
	if m.ByteFallback {
		if model.bytes, err = v.byteTokens(); err != nil {
			return err
		}
	}
	model.index()
	if m.IgnoreMerges {
		model.words = map[string]int32{}
		for i, t := range v.tokens {
			if t.kind == KindNormal && !t.added {
				model.words[t.text] = int32(i)
			}
		}
	}
	v.model = model
	return nil
}

// byteTokens finds the 256 tokens of a byte fallback; nil where one is missing,
// as then none is used.
func (v *Vocab) byteTokens() (*[256]int32, error) {
	var ids [256]int32
	n := 0
	for i := range v.tokens {
		t := &v.tokens[i]
		if c, ok := byteToken(t.text); ok && t.kind == KindNormal {
			t.kind, t.bytes = KindByte, string([]byte{c})
			ids[c] = int32(i)
			n++
		}
	}
	if n < 256 {
		return nil, nil
	}
	return &ids, nil
}

// matchers collects the added tokens.
func (f *hfFile) matchers(v *Vocab) {
	var raw, normalized []addedToken
	for _, a := range f.AddedTokens {
		t := addedToken{id: int32(a.ID), text: a.Content, control: a.Special,
			lstrip: a.LStrip, rstrip: a.RStrip, singleWord: a.SingleWord}
		if a.Normalized && len(v.normalize) > 0 {
			t.text, _ = v.normalize.apply(t.text, true, false)
			normalized = append(normalized, t)
		} else {
			raw = append(raw, t)
		}
	}
	v.raw, v.normalized = newMatcher(raw), newMatcher(normalized)
}

// template reads what the post-processor puts around a text.
func (f *hfFile) template(v *Vocab) error {
	var walk func(c *hfComponent) error
	walk = func(c *hfComponent) error {
		switch c.Type {
		case "Sequence":
			for i := range c.Processors {
				if err := walk(&c.Processors[i]); err != nil {
					return err
				}
			}
		case "ByteLevel":
		case "TemplateProcessing":
			into := &v.prefix
			for _, p := range c.Single {
				if p.Sequence != nil {
					into = &v.suffix
					continue
				}
				if p.SpecialToken == nil {
					continue
				}
				for _, id := range c.SpecialTokens[p.SpecialToken.ID].IDs {
					if id < 0 || id >= int64(len(v.tokens)) {
						return malformed("tokenizer.json: post_processor", "id %d is outside the vocabulary", id)
					}
					*into = append(*into, int32(id))
				}
			}
		default:
			return unsupported("tokenizer.json: post_processor", "type %q", c.Type)
		}
		return nil
	}
	if f.PostProcessor == nil {
		return nil
	}
	return walk(f.PostProcessor)
}

// decoding reads the decoder: how tokens become bytes and join.
func (f *hfFile) decoding(v *Vocab) error {
	var replace [][2]string
	var walk func(c *hfComponent) error
	walk = func(c *hfComponent) error {
		switch c.Type {
		case "Sequence":
			for i := range c.Decoders {
				if err := walk(&c.Decoders[i]); err != nil {
					return err
				}
			}
		case "ByteLevel", "Fuse", "ByteFallback":
		case "Metaspace":
			replace = append(replace, [2]string{c.Replacement, " "})
			v.decoding.stripSpace = c.PrependScheme != "never"
		case "Replace":
			if c.Pattern.String == nil || *c.Pattern.String == "" {
				return unsupported("tokenizer.json: decoder", "replacement by a regular expression")
			}
			replace = append(replace, [2]string{*c.Pattern.String, c.Content})
		case "Strip":
			if c.Content != " " || c.Start > 1 || c.Stop != 0 {
				return unsupported("tokenizer.json: decoder", "strip of %q, %d and %d", c.Content, c.Start, c.Stop)
			}
			v.decoding.stripSpace = c.Start == 1
		default:
			return unsupported("tokenizer.json: decoder", "type %q", c.Type)
		}
		return nil
	}
	if f.Decoder == nil {
		v.decoding.joinSpace = true
		return nil
	}
	if err := walk(f.Decoder); err != nil {
		return err
	}
	for i := range v.tokens {
		t := &v.tokens[i]
		for _, r := range replace {
			if !t.added {
				t.bytes = strings.ReplaceAll(t.bytes, r[0], r[1])
			}
		}
	}
	return nil
}
