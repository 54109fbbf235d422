package main

import (
	"encoding/json"
	"io"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

type tokenizeCmd struct {
	Model     string `short:"m" required:"" help:"GGUF file (it may have a vocabulary only), model folder, tokenizer.json, SentencePiece .model file or tiktoken rank file." type:"model"`
	NoSpecial bool   `help:"Do not recognise control tokens in the text, and add no begin-of-text or end-of-text id. With --decode: omit control tokens."`
	NoBOS     bool   `name:"no-bos" help:"Add no begin-of-text or end-of-text id."`
	Decode    bool   `help:"Decode a JSON list of ids on standard input."`
	InputList string `help:"File with many texts to encode instead of standard input. The output is a JSON list of ids for each text, one on each line. The texts are plain text unless --special is given."`
	Separator string `help:"Line that separates the texts of --input-list." default:"__ggml_vocab_test__"`
	Special   bool   `help:"With --input-list: recognise control tokens in the texts, and add begin-of-text and end-of-text ids."`
}

// Run encodes or decodes standard input.
func (c *tokenizeCmd) Run(e *verb.Env) error {
	v, err := tokenizer.LoadVocab(c.Model)
	if err != nil {
		return err
	}
	if c.InputList != "" {
		return c.list(e, v)
	}
	input, err := io.ReadAll(e.Stdin)
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
	return verb.PrintJSON(e, ids)
}

// list encodes the texts of a file.
func (c *tokenizeCmd) list(e *verb.Env, v *vocab.Vocab) error {
	if c.Decode {
		return fault.Field("input-list", "use --input-list without --decode: it holds texts, not ids")
	}
	if c.Separator == "" || strings.Contains(c.Separator, "\n") {
		return fault.Field("separator", "want one line of text, got %q", c.Separator)
	}
	input, err := readInput(e, c.InputList)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "read texts")
	}
	o := vocab.Options{Special: c.Special && !c.NoSpecial, BOS: c.Special && !c.NoSpecial && !c.NoBOS}
	out := json.NewEncoder(e.Stdout)
	for i, text := range texts(string(input), c.Separator) {
		ids, err := v.Encode(text, o)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "encode text %d", i)
		}
		if ids == nil {
			ids = []int32{}
		}
		if err := out.Encode(ids); err != nil {
			return err
		}
	}
	return nil
}

// texts splits the input at the lines that are equal to separator. The last line may also be one.
func texts(input, separator string) []string {
	if input == "" {
		return nil
	}
	input = strings.TrimSuffix(input, "\n")
	if rest, ok := strings.CutSuffix(input, "\n"+separator); ok {
		input = rest
	} else if input == separator {
		return []string{""}
	}
	var out []string
	if rest, ok := strings.CutPrefix(input, separator+"\n"); ok {
		out, input = append(out, ""), rest
	}
	return append(out, strings.Split(input, "\n"+separator+"\n")...)
}

// decode decodes a JSON list of ids. It omits a begin-of-text id that encoding would add.
func (c *tokenizeCmd) decode(e *verb.Env, v *vocab.Vocab, input []byte) error {
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
	_, err = io.WriteString(e.Stdout, text)
	return err
}
