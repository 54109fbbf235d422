package vocab

import "slices"

// FIM holds the tokens of fill-in-the-middle prompts, by which a model is asked for the
// text between a prefix and a suffix.
type FIM struct {
	Prefix int32 // precedes the text before the gap
	Suffix int32 // precedes the text after the gap
	Middle int32 // ends the prompt; -1 where the prefix comes last and ends it by itself
}

// fimRole is one role in a fill-in-the-middle prompt: the GGUF keys of its token, the
// current one first, and the spellings of the model families known today.
type fimRole struct {
	keys      []string
	spellings []string
}

func fimPrefix() fimRole {
	return fimRole{[]string{"fim_pre_token_id", "prefix_token_id"}, []string{
		"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
		"[PREFIX]",
	}}
}

func fimSuffix() fimRole {
	return fimRole{[]string{"fim_suf_token_id", "suffix_token_id"}, []string{
		"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
		"[SUFFIX]",
	}}
}

func fimMiddle() fimRole {
	return fimRole{[]string{"fim_mid_token_id", "middle_token_id"}, []string{
		"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
	}}
}

// fimEnds are the tokens that separate files and pad prompts in repository-level
// prompts. A model that writes one has ended its answer.
func fimEnds() []fimRole {
	return []fimRole{
		{[]string{"fim_pad_token_id"}, []string{"<|fim_pad|>", "<fim-pad>", "<fim_pad>"}},
		{[]string{"fim_rep_token_id"}, []string{"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
		{[]string{"fim_sep_token_id"}, []string{"<|file_sep|>"}},
	}
}

// FIM returns the tokens of fill-in-the-middle prompts; ok is false for a model that
// has none.
func (v *Vocab) FIM() (f FIM, ok bool) {
	if v.fim == nil {
		return FIM{}, false
	}
	return *v.fim, true
}

// findFIM looks the tokens up in GGUF metadata (nil for none) and then by their
// spellings. A spelling counts only where the token is no piece of ordinary text, so
// that a vocabulary which merely contains it has no FIM.
func (v *Vocab) findFIM(meta Meta) {
	f := FIM{Prefix: v.findRole(meta, fimPrefix()), Suffix: v.findRole(meta, fimSuffix()),
		Middle: v.findRole(meta, fimMiddle())}
	// Mistral's code models have no middle token: the suffix comes first.
	suffixFirst := f.Middle < 0 && f.Prefix >= 0 && v.tokens[f.Prefix].text == "[PREFIX]"
	if f.Prefix >= 0 && f.Suffix >= 0 && (f.Middle >= 0 || suffixFirst) {
		v.fim = &f
	}
}

func (v *Vocab) findRole(meta Meta, r fimRole) int32 {
	if meta != nil {
		for _, key := range r.keys {
			if id := v.metaID(meta, "tokenizer.ggml."+key); id >= 0 {
				return id
			}
		}
	}
	for _, spelling := range r.spellings {
		if id, ok := v.ids[spelling]; ok && (v.tokens[id].kind == KindControl || v.tokens[id].kind == KindUserDefined) {
			return id
		}
	}
	return -1
}

// EncodeFIM encodes the prompt that asks for the text between two texts: a begin token
// as o says, then prefix and suffix behind their tokens, and the middle token. ok is
// false for a model without fill-in-the-middle tokens. o.Limit is not applied.
func (v *Vocab) EncodeFIM(prefix, suffix string, o Options) (ids []int32, ok bool, err error) {
	f, ok := v.FIM()
	if !ok {
		return nil, false, nil
	}
	begins := o.BOS && v.AddBOS()
	o.BOS, o.Limit = false, 0
	before, err := v.Encode(prefix, o)
	if err != nil {
		return nil, true, err
	}
	after, err := v.Encode(suffix, o)
	if err != nil {
		return nil, true, err
	}
	if begins {
		ids = append(ids, v.bos)
	}
	if f.Middle < 0 {
		return slices.Concat(ids, []int32{f.Suffix}, after, []int32{f.Prefix}, before), true, nil
	}
	return slices.Concat(ids, []int32{f.Prefix}, before, []int32{f.Suffix}, after, []int32{f.Middle}), true, nil
}
