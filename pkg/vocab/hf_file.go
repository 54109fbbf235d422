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
	Type          string    `json:"type"`
	Dropout       *float64  `json:"dropout"`
	UnkToken      *string   `json:"unk_token"`
	SubwordPrefix *string   `json:"continuing_subword_prefix"`
	WordSuffix    *string   `json:"end_of_word_suffix"`
	FuseUnk       bool      `json:"fuse_unk"`
	ByteFallback  bool      `json:"byte_fallback"`
	IgnoreMerges  bool      `json:"ignore_merges"`
	Vocab         hfTokens  `json:"vocab"`
	Merges        []hfMerge `json:"merges"`
	UnkID         *int64    `json:"unk_id"`
	MaxChars      *int      `json:"max_input_chars_per_word"`
}

// hfTokens holds the ids of a model's tokens and, for a unigram model, their scores in
// the order of ids.
type hfTokens struct {
	ids    map[string]int64
	scores []float64 // nil for other models
}

// UnmarshalJSON reads {"token": id, …} or [["token", score], …].
func (t *hfTokens) UnmarshalJSON(data []byte) error {
	if !bytes.HasPrefix(data, []byte("[")) {
		return json.Unmarshal(data, &t.ids)
	}
	var list []hfScored
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	t.ids, t.scores = make(map[string]int64, len(list)), make([]float64, len(list))
	for i, x := range list {
		t.ids[x.text], t.scores[i] = int64(i), x.score
	}
	if len(t.ids) != len(list) {
		return fmt.Errorf("%d of %d tokens are duplicates", len(list)-len(t.ids), len(list))
	}
	return nil
}

// hfScored is ["token", score].
type hfScored struct {
	text  string
	score float64
}

// UnmarshalJSON reads the pair.
func (x *hfScored) UnmarshalJSON(data []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("want [token, score], got %d elements", len(parts))
	}
	if err := json.Unmarshal(parts[0], &x.text); err != nil {
		return err
	}
	return json.Unmarshal(parts[1], &x.score)
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
			return fmt.Errorf("want a merge of two tokens, got %d", len(pair))
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

// UnmarshalJSON reads either, and null. A number may be quoted.
func (ids *hfIDs) UnmarshalJSON(data []byte) error {
	*ids = nil
	list := []json.RawMessage{data}
	if bytes.HasPrefix(data, []byte("[")) {
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
	}
	for _, x := range list {
		var id *int64
		if err := json.Unmarshal(bytes.Trim(x, `"`), &id); err != nil {
			return fmt.Errorf("want a token id, got %.40s", x)
		}
		if id != nil {
			*ids = append(*ids, *id)
		}
	}
	return nil
}

// vocab builds the vocabulary, except for what tokenizer_config.json adds.
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
	if err := f.model(v, pre.byteLevel); err != nil {
		return nil, err
	}
	if err := f.decoding(v); err != nil {
		return nil, err
	}
	f.matchers(v)
	return v, f.template(v)
}

// fill sets tokens, ids and kinds.
func (f *hfFile) fill(v *Vocab) error {
	m := &f.Model
	size := int64(0)
	for text, id := range m.Vocab.ids {
		if id < 0 || id >= maxTokens || len(text) > maxToken {
			return malformed("tokenizer.json: vocab", "token %q has id %d or is too long", shorten(text), id)
		}
		size = max(size, id+1)
	}
	for _, a := range f.AddedTokens {
		if a.ID < 0 || a.ID >= maxTokens || len(a.Content) > maxToken {
			return malformed("tokenizer.json: added_tokens", "token %q has id %d or is too long", shorten(a.Content),
				a.ID)
		}
		size = max(size, a.ID+1)
	}
	if known := int64(len(m.Vocab.ids) + len(f.AddedTokens)); size == 0 || size > 2*known+1024 {
		return malformed("tokenizer.json: vocab", "%d ids for %d tokens", size, known)
	}
	v.tokens = make([]token, size)
	v.ids = make(map[string]int32, size)
	for i := range v.tokens {
		v.tokens[i].kind = KindUnused
	}
	for text, id := range m.Vocab.ids {
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
	if m.UnkID != nil {
		if *m.UnkID < 0 || *m.UnkID >= int64(len(m.Vocab.ids)) {
			return malformed("tokenizer.json: unk_id", "%d is outside the vocabulary", *m.UnkID)
		}
		v.unk = int32(*m.UnkID)
	}
	if m.UnkToken != nil && *m.UnkToken != "" {
		id, ok := v.ids[*m.UnkToken]
		if !ok {
			return malformed("tokenizer.json: unk_token", "%q is outside the vocabulary", shorten(*m.UnkToken))
		}
		v.unk = id
	}
	return nil
}

// byteTokens finds the 256 tokens of a byte fallback. It returns nil if one is
// missing: Hugging Face then uses none of them.
func (v *Vocab) byteTokens() (*[256]int32, error) {
	var ids [256]int32
	n := 0
	for i := range v.tokens {
		t := &v.tokens[i]
		if c, ok := byteToken(t.text); ok && (t.kind == KindNormal || t.kind == KindByte) {
			ids[c] = int32(i)
			n++
		}
	}
	if n < 256 {
		return nil, nil
	}
	v.byteSpellings()
	return &ids, nil
}

// byteSpellings marks the tokens that are spelled like bytes as byte tokens.
func (v *Vocab) byteSpellings() {
	for i := range v.tokens {
		t := &v.tokens[i]
		if c, ok := byteToken(t.text); ok && t.kind == KindNormal {
			t.kind, t.bytes = KindByte, string([]byte{c})
		}
	}
}

// matchers collects the added tokens.
func (f *hfFile) matchers(v *Vocab) {
	var raw, normalized []addedToken
	for _, a := range f.AddedTokens {
		t := addedToken{id: int32(a.ID), text: a.Content, control: a.Special,
			lstrip: a.LStrip, rstrip: a.RStrip, singleWord: a.SingleWord}
		if a.Normalized {
			t.text, _ = v.normalize.apply(t.text, true, false)
			normalized = append(normalized, t)
		} else {
			raw = append(raw, t)
		}
	}
	v.raw, v.normalized = newMatcher(raw), newMatcher(normalized)
}

// template reads the tokens that the post-processor puts around a text.
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
		case "BertProcessing", "RobertaProcessing":
			for _, p := range []hfPair{c.Cls, c.Sep} {
				if p.ID < 0 || p.ID >= int64(len(v.tokens)) || p.Token == "" {
					return malformed("tokenizer.json: post_processor", "token %q has id %d", shorten(p.Token), p.ID)
				}
			}
			v.prefix, v.suffix = append(v.prefix, int32(c.Cls.ID)), append(v.suffix, int32(c.Sep.ID))
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
