package vocab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/pyjson"
)

const maxFile = 256 << 20 // maximum size of a tokenizer file in bytes

// FromHF reads the vocabulary of a Hugging Face model folder: tokenizer.json and, if
// they exist, tokenizer_config.json, generation_config.json, config.json and
// chat_template.jinja. The error is a *FormatError for a malformed or unsupported
// file, and wraps fs.ErrNotExist if there is no tokenizer.json.
func FromHF(dir string) (*Vocab, error) { return FromFS(os.DirFS(dir)) }

// FromFS is FromHF on a file system.
func FromFS(fsys fs.FS) (*Vocab, error) {
	tokenizer, err := readFile(fsys, "tokenizer.json")
	if err != nil {
		return nil, err
	}
	config, err := readFile(fsys, "tokenizer_config.json")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	v, err := parseHF(tokenizer, config)
	if err != nil {
		return nil, err
	}
	if template, err := readFile(fsys, "chat_template.jinja"); err == nil {
		v.chatTemplate = string(template)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, name := range []string{"generation_config.json", "config.json"} {
		var g struct {
			EOS hfIDs `json:"eos_token_id"`
		}
		data, err := readFile(fsys, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = parseJSON(name, data, &g)
		}
		if err != nil {
			return nil, err
		}
		if v.endings(g.EOS) {
			break
		}
	}
	return v, nil
}

// parseHF reads a tokenizer.json and, unless nil, a tokenizer_config.json.
func parseHF(tokenizer, config []byte) (*Vocab, error) {
	var f hfFile
	if err := parseJSON("tokenizer.json", tokenizer, &f); err != nil {
		return nil, err
	}
	var c hfConfig
	if config != nil {
		if err := parseJSON("tokenizer_config.json", config, &c); err != nil {
			return nil, err
		}
	}
	v, err := f.vocab()
	if err != nil {
		return nil, err
	}
	v.special(&c)
	v.source = &hfSource{tokenizer: tokenizer, config: config}
	if err := v.template(&c); err != nil {
		return nil, err
	}
	v.findFIM(nil)
	v.finish(nil)
	v.ready()
	return v, nil
}

// endings adds the end tokens that a model's configuration lists and reports whether
// there were any.
func (v *Vocab) endings(ids hfIDs) bool {
	var eog []int32
	for _, id := range ids {
		if id >= 0 && id < int64(len(v.tokens)) {
			eog = append(eog, int32(id))
		}
	}
	if len(eog) == 0 {
		return false
	}
	if v.eos < 0 {
		v.eos = eog[0]
	}
	v.finish(eog)
	return true
}

func parseJSON(name string, data []byte, into any) error {
	if err := pyjson.Unmarshal(data, into); err != nil {
		return malformed(name, "%v", err)
	}
	return nil
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	file, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read vocabulary: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read vocabulary: %s: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, malformed(name, "longer than %d bytes", maxFile)
	}
	return data, nil
}

// hfConfig is a tokenizer_config.json.
type hfConfig struct {
	BOS          hfName          `json:"bos_token"`
	EOS          hfName          `json:"eos_token"`
	AddBOS       *bool           `json:"add_bos_token"`
	AddEOS       *bool           `json:"add_eos_token"`
	ChatTemplate json.RawMessage `json:"chat_template"`
}

// hfName is a token's text, or an object that holds it.
type hfName string

// UnmarshalJSON reads either, and null.
func (n *hfName) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("{")) {
		var o struct {
			Content string `json:"content"`
		}
		err := json.Unmarshal(data, &o)
		*n = hfName(o.Content)
		return err
	}
	var s *string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if s != nil {
		*n = hfName(*s)
	}
	return nil
}

// special reads the begin and end tokens. add_bos_token and add_eos_token override the
// post-processor if they are set, as in transformers.
func (v *Vocab) special(c *hfConfig) {
	if id, ok := v.ids[string(c.BOS)]; ok && c.BOS != "" {
		v.bos = id
	}
	if id, ok := v.ids[string(c.EOS)]; ok && c.EOS != "" {
		v.eos = id
	}
	if v.bos < 0 && len(v.prefix) > 0 {
		v.bos = v.prefix[0]
	}
	if c.AddBOS != nil && v.bos >= 0 {
		v.prefix = slices.DeleteFunc(v.prefix, func(id int32) bool { return id == v.bos })
		if *c.AddBOS {
			v.prefix = append([]int32{v.bos}, v.prefix...)
		}
	}
	if c.AddEOS != nil && v.eos >= 0 {
		v.suffix = slices.DeleteFunc(v.suffix, func(id int32) bool { return id == v.eos })
		if *c.AddEOS {
			v.suffix = append(v.suffix, v.eos)
		}
	}
}

// template reads the chat template: a string, or a list of named templates, of which
// "default" is used. A file chat_template.jinja overrides it.
func (v *Vocab) template(c *hfConfig) error {
	if len(c.ChatTemplate) == 0 || json.Unmarshal(c.ChatTemplate, &v.chatTemplate) == nil {
		return nil
	}
	var named []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	}
	if err := json.Unmarshal(c.ChatTemplate, &named); err != nil {
		return malformed("tokenizer_config.json: chat_template", "%v", err)
	}
	for _, t := range named {
		if t.Name == "default" {
			v.chatTemplate = t.Template
		}
	}
	return nil
}
