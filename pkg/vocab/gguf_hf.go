package vocab

import (
	"cmp"
	"encoding/json"
	"path/filepath"
	"slices"
)

// object is a JSON object.
type object = map[string]any

// WriteGGUFAsHF writes tokenizer.json and tokenizer_config.json for the vocabulary of a GGUF file into dir, which
// must exist. FromHF reads them back as a vocabulary that encodes text alike, which is checked with a text of many
// kinds. The error is a *FormatError for a vocabulary without merges or scores, and for a pre-tokenizer that only
// llama.cpp has.
func WriteGGUFAsHF(meta Meta, dir string) error {
	v, err := FromGGUF(meta)
	if err != nil {
		return err
	}
	var parts hfParts
	switch v.family {
	case FamilyBPE:
		parts, err = v.hfByteLevel(meta)
	case FamilySPM:
		parts, err = v.hfSentencePiece(meta)
	default:
		err = unsupported("write tokenizer.json", "a %s vocabulary of a GGUF file", v.family)
	}
	if err != nil {
		return err
	}
	tokenizer, config, err := v.hfFiles(&parts)
	if err != nil {
		return err
	}
	again, err := parseHF(tokenizer, config)
	if err != nil {
		return err
	}
	if err := v.encodesLike(again); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "tokenizer.json"), tokenizer); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "tokenizer_config.json"), config)
}

// hfParts are the sections of a tokenizer.json that depend on the family.
type hfParts struct {
	merges                    [][2]string
	normalizer, pre, decoder  any
	byteFallback, ignoreMerge bool
}

// hfByteLevel describes byte-level BPE.
func (v *Vocab) hfByteLevel(meta Meta) (hfParts, error) {
	pairs, err := ggufMerges(meta)
	if err != nil {
		return hfParts{}, err
	}
	pre, _ := meta.String(keyPre)
	known, err := ggufPreTokenizer(pre)
	if err != nil {
		return hfParts{}, err
	}
	level := func(regex bool) object {
		return object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex}
	}
	split := func(pattern string) any {
		return object{"type": "Sequence", "pretokenizers": []any{
			object{
				"type":     "Split",
				"pattern":  object{"Regex": pattern},
				"behavior": "Isolated",
				"invert":   false,
			},
			level(false),
		}}
	}
	const (
		words = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|`
		rest  = `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	)
	p := hfParts{merges: pairs, decoder: level(true), ignoreMerge: known.wholeWords}
	// The pre-tokenizers in use, tried in turn: names that split alike have the same form.
	for _, form := range []any{
		level(true),
		object{"type": "Sequence", "pretokenizers": []any{object{"type": "Digits", "individual_digits": true},
			level(true)}},
		split(words + `\p{N}{1,3}` + rest), split(words + `\p{N}` + rest),
	} {
		text, err := json.Marshal(form)
		if err != nil {
			return p, err
		}
		var c hfComponent
		if err := json.Unmarshal(text, &c); err != nil {
			return p, err
		}
		steps, err := hfPretokenizer(&c)
		if err != nil {
			return p, err
		}
		got, errA := splitBy(steps.steps)
		want, errB := splitBy(known.steps)
		if err := cmp.Or(errA, errB); err != nil {
			return p, err
		}
		if slices.Equal(got, want) {
			p.pre = form
			return p, nil
		}
	}
	return p, unsupported("write tokenizer.json", "the pre-tokenizer %q", pre)
}

// hfSentencePiece describes SentencePiece's BPE. Two pieces merge if together they are a piece, and the best score
// first.
func (v *Vocab) hfSentencePiece(meta Meta) (hfParts, error) {
	scores, ok := meta.Floats(keyScores)
	if !ok || len(scores) != len(v.tokens) {
		return hfParts{}, malformed(keyScores, "%d scores for %d tokens", len(scores), len(v.tokens))
	}
	type merge struct {
		pair [2]string
		made int32
	}
	var all []merge
	for id, t := range v.tokens {
		if t.kind != KindNormal {
			continue
		}
		for cut := range t.text {
			left, ok1 := v.ids[t.text[:cut]]
			right, ok2 := v.ids[t.text[cut:]]
			if cut > 0 && ok1 && ok2 && v.tokens[left].kind == KindNormal && v.tokens[right].kind == KindNormal {
				all = append(all, merge{[2]string{t.text[:cut], t.text[cut:]}, int32(id)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b merge) int {
		return cmp.Or(cmp.Compare(scores[b.made], scores[a.made]), cmp.Compare(a.made, b.made))
	})
	p := hfParts{byteFallback: true}
	for _, m := range all {
		p.merges = append(p.merges, m.pair)
	}
	replace := func(from, to string) object {
		return object{"type": "Replace", "pattern": object{"String": from}, "content": to}
	}
	steps := []any{replace(wordMark, " "), object{"type": "ByteFallback"}, object{"type": "Fuse"}}
	normal := []any{replace(" ", wordMark)}
	if add, ok := meta.Bool("tokenizer.ggml.add_space_prefix"); !ok || add {
		normal = append([]any{object{"type": "Prepend", "prepend": wordMark}}, normal...)
		steps = append(steps, object{"type": "Strip", "content": " ", "start": 1, "stop": 0})
	}
	p.normalizer = object{"type": "Sequence", "normalizers": normal}
	p.decoder = object{"type": "Sequence", "decoders": steps}
	return p, nil
}

// hfFiles returns the two files.
func (v *Vocab) hfFiles(p *hfParts) (tokenizer, config []byte, err error) {
	l := layout{}
	added := []hfAdded{}
	for id, t := range v.tokens {
		if v.ids[t.text] != int32(id) {
			return nil, nil, unsupported("write tokenizer.json", "two tokens are spelled %q", shorten(t.text))
		}
		l.tokens = append(l.tokens, t.text)
		switch t.kind {
		case KindControl, KindUnknown, KindUserDefined:
			added = append(added, hfAdded{ID: int64(id), Content: t.text, Special: t.kind != KindUserDefined})
		}
	}
	words, err := l.vocabJSON()
	if err != nil {
		return nil, nil, err
	}
	settings := object{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
		"add_bos_token": v.bos >= 0 && slices.Contains(v.prefix, v.bos),
		"add_eos_token": v.eos >= 0 && slices.Contains(v.suffix, v.eos)}
	var unk any
	for name, id := range map[string]int32{"bos_token": v.bos, "eos_token": v.eos, "unk_token": v.unk} {
		if id >= 0 {
			settings[name] = v.tokens[id].text
		}
	}
	if v.unk >= 0 {
		unk = v.tokens[v.unk].text
	}
	if v.chatTemplate != "" {
		settings["chat_template"] = v.chatTemplate
	}
	model := object{"type": "BPE", "dropout": nil, "unk_token": unk, "continuing_subword_prefix": nil,
		"end_of_word_suffix": nil, "fuse_unk": p.byteFallback, "byte_fallback": p.byteFallback,
		"ignore_merges": p.ignoreMerge, "vocab": words, "merges": append([][2]string{}, p.merges...)}
	tokenizer, err = marshal(object{"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added,
		"normalizer": p.normalizer, "pre_tokenizer": p.pre, "post_processor": v.hfAround(), "decoder": p.decoder,
		"model": model})
	if err != nil {
		return nil, nil, err
	}
	config, err = marshal(settings)
	return tokenizer, config, err
}

// hfAround returns the post-processor that puts the vocabulary's tokens around a text, or nil if there are none.
func (v *Vocab) hfAround() any {
	if len(v.prefix)+len(v.suffix) == 0 {
		return nil
	}
	special := object{}
	sequence := func(id string, n int) (out []any) {
		one := func(ids []int32) {
			for _, t := range ids {
				text := v.tokens[t].text
				special[text] = object{"id": text, "ids": []int32{t}, "tokens": []string{text}}
				out = append(out, object{"SpecialToken": object{"id": text, "type_id": n}})
			}
		}
		one(v.prefix)
		out = append(out, object{"Sequence": object{"id": id, "type_id": n}})
		one(v.suffix)
		return out
	}
	single := sequence("A", 0)
	return object{
		"type":           "TemplateProcessing",
		"single":         single,
		"pair":           append(slices.Clone(single), sequence("B", 1)...),
		"special_tokens": special,
	}
}
