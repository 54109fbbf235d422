package main

import (
	"encoding/json"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type tokenizeCmd struct {
	Model     string `short:"m" required:"" help:"GGUF file or Hugging Face folder."`
	NoSpecial bool   `help:"Leave special tokens alone: control-looking text stays text and no begin or end token is added; with --decode, control tokens leave no text."`
	NoBOS     bool   `name:"no-bos" help:"Add no begin or end token."`
	Decode    bool   `help:"Turn a JSON list of ids on standard input back into text."`
}

// Run turns standard input into ids, or ids into text.
func (c *tokenizeCmd) Run(e *env) error {
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return err
	}
	input, err := io.ReadAll(e.stdin)
	if err != nil {
		return err
	}
	if c.Decode {
		return c.decode(e, v, input)
	}
	ids, err := v.Encode(string(input), vocab.Options{Special: !c.NoSpecial, BOS: !c.NoSpecial && !c.NoBOS})
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "encode standard input")
	}
	if ids == nil {
		ids = []int32{}
	}
	return printJSON(e, ids)
}

// decode is the reverse: the begin token that encoding adds leaves no text.
func (c *tokenizeCmd) decode(e *env, v *vocab.Vocab, input []byte) error {
	var ids []int32
	if err := json.Unmarshal(input, &ids); err != nil {
		return fault.Wrap(fault.Invalid, err, "parse standard input: want a JSON list of token ids")
	}
	o := vocab.DecodeOptions{SkipSpecial: c.NoSpecial}
	if bos, ok := v.BOS(); ok && v.AddBOS() && !c.NoBOS && len(ids) > 0 && ids[0] == bos {
		o.Prefix, ids = ids[:1], ids[1:]
	}
	text, err := v.Decode(ids, o)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "decode standard input")
	}
	_, err = io.WriteString(e.stdout, text)
	return err
}
