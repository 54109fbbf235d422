package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pyjson"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// maxTemplate is the maximum size of a file with chat templates.
const maxTemplate = 32 << 20

// Chat holds the chat templates of a model and the special tokens that they use.
type Chat struct {
	// Templates are the chat templates by name; one without a name is "default".
	Templates map[string]string
	// Special holds the text of special tokens by the variable that templates read:
	// "bos_token", "eos_token", "unk_token" and so on.
	Special map[string]string
}

// Pick returns the name of the template for a chat: name itself, or for an empty name
// "tool_use" if the chat has tools and the model has that template, else "default", else
// the only template. The error is a fault.Error of code NotFound.
func (c Chat) Pick(name string, tools bool) (string, error) {
	names := slices.Sorted(maps.Keys(c.Templates))
	if name == "" {
		name = "default"
		if _, ok := c.Templates["tool_use"]; ok && tools {
			name = "tool_use"
		} else if _, ok := c.Templates[name]; !ok && len(names) == 1 {
			name = names[0]
		}
	}
	if _, ok := c.Templates[name]; ok {
		return name, nil
	}
	if len(names) == 0 {
		return "", fault.New(fault.NotFound, "find a chat template: the model has none")
	}
	return "", fault.New(fault.NotFound, "find chat template %q: the model has %s", name, strings.Join(names, ", "))
}

// LoadChat reads the chat templates and special tokens of a GGUF model or a Hugging Face
// folder; the folder needs no vocabulary. In a folder they come from chat_template.jinja
// and additional_chat_templates/*.jinja, else from tokenizer_config.json, else from
// chat_template.json. A model without templates is not an error. Errors are those of Load.
func LoadChat(path string) (Chat, error) {
	kind, file, err := kindOf(path)
	if err != nil {
		return Chat{}, chatFault(path, err)
	}
	var c Chat
	if kind == kindFolder {
		c, err = chatFS(os.DirFS(path))
	} else {
		c, err = chatGGUF(file)
	}
	if err != nil {
		return Chat{}, chatFault(path, err)
	}
	return c, nil
}

func chatFault(path string, err error) error {
	code := fault.Invalid
	if errors.Is(err, fs.ErrNotExist) {
		code = fault.NotFound
	}
	return fault.Wrap(code, err, "load the chat template of %s", path)
}

func chatGGUF(path string) (Chat, error) {
	file, err := weights.OpenGGUF(path)
	if err != nil {
		return Chat{}, err
	}
	defer file.Close()
	meta := file.Meta()
	const key = "tokenizer.chat_template"
	c := Chat{Templates: map[string]string{}, Special: map[string]string{}}
	for _, k := range meta.Keys() {
		if name, ok := strings.CutPrefix(k, key+"."); ok {
			if t, ok := meta.String(k); ok {
				c.Templates[name] = t
			}
		}
	}
	if t, ok := meta.String(key); ok && t != "" {
		c.Templates["default"] = t
	}
	tokens, _ := meta.Strings("tokenizer.ggml.tokens")
	for variable, id := range map[string]string{"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown",
		"sep_token": "seperator", //nolint:misspell // the converters' spelling
		"pad_token": "padding", "cls_token": "cls", "mask_token": "mask"} {
		if i, ok := meta.Uint("tokenizer.ggml." + id + "_token_id"); ok && i < uint64(len(tokens)) {
			c.Special[variable] = tokens[i]
		}
	}
	return c, nil
}

func chatFS(fsys fs.FS) (Chat, error) {
	c := Chat{Templates: map[string]string{}, Special: map[string]string{}}
	config, found, err := readConfig(fsys, "tokenizer_config.json")
	if err != nil {
		return c, err
	}
	if !found {
		if config, _, err = readConfig(fsys, "special_tokens_map.json"); err != nil {
			return c, err
		}
	}
	c.special(config)
	if err := c.jinja(fsys); err != nil || len(c.Templates) > 0 {
		return c, err
	}
	if err := c.templates("tokenizer_config.json", config); err != nil || len(c.Templates) > 0 {
		return c, err
	}
	processor, _, err := readConfig(fsys, "chat_template.json")
	if err != nil {
		return c, err
	}
	return c, c.templates("chat_template.json", processor)
}

// jinja reads the templates that have their own files.
func (c *Chat) jinja(fsys fs.FS) error {
	const dir = "additional_chat_templates"
	text, err := readSmall(fsys, "chat_template.jinja")
	switch {
	case err == nil:
		c.Templates["default"] = string(text)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	entries, err := fs.ReadDir(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".jinja")
		if !ok || e.IsDir() {
			continue
		}
		if text, err = readSmall(fsys, path.Join(dir, e.Name())); err != nil {
			return err
		}
		c.Templates[name] = string(text)
	}
	return nil
}

// templates reads the chat_template of a configuration: one template, a list of named
// ones, or an object of them.
func (c *Chat) templates(file string, config map[string]json.RawMessage) error {
	raw := config["chat_template"]
	var one *string
	var named map[string]string
	var list []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	}
	switch {
	case len(raw) == 0:
	case json.Unmarshal(raw, &one) == nil:
		if one != nil {
			c.Templates["default"] = *one
		}
	case json.Unmarshal(raw, &named) == nil:
		maps.Copy(c.Templates, named)
	default:
		if err := json.Unmarshal(raw, &list); err != nil {
			return fmt.Errorf("parse %s: chat_template: %w", file, err)
		}
		for _, t := range list {
			c.Templates[t.Name] = t.Template
		}
	}
	return nil
}

// special reads every "..._token" of a configuration and of its extra_special_tokens.
func (c *Chat) special(config map[string]json.RawMessage) {
	var more map[string]json.RawMessage
	if json.Unmarshal(config["extra_special_tokens"], &more) == nil {
		maps.Copy(config, more)
	}
	for name, raw := range config {
		if !strings.HasSuffix(name, "_token") {
			continue
		}
		var token struct {
			Content string `json:"content"`
		}
		if json.Unmarshal(raw, &token.Content) != nil && json.Unmarshal(raw, &token) != nil {
			continue // a setting with such a name
		}
		if token.Content != "" {
			c.Special[name] = token.Content
		}
	}
}

// readConfig reads a JSON object. found is false if there is no such file.
func readConfig(fsys fs.FS, name string) (fields map[string]json.RawMessage, found bool, err error) {
	text, err := readSmall(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]json.RawMessage{}, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if err := pyjson.Unmarshal(text, &fields); err != nil {
		return nil, false, fmt.Errorf("parse %s: %w", name, err)
	}
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	return fields, true, nil
}

func readSmall(fsys fs.FS, name string) ([]byte, error) {
	file, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxTemplate+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("read %s: want at most %d bytes", name, maxTemplate)
	}
	return text, nil
}

// chatOf returns the chat template and special tokens that a vocabulary holds.
func chatOf(v *vocab.Vocab) Chat {
	c := Chat{Templates: map[string]string{}, Special: map[string]string{}}
	if t := v.ChatTemplate(); t != "" {
		c.Templates["default"] = t
	}
	for variable, token := range map[string]func() (int32, bool){"bos_token": v.BOS, "eos_token": v.EOS} {
		if id, ok := token(); ok {
			if text, err := v.Spelling(id); err == nil {
				c.Special[variable] = text
			}
		}
	}
	return c
}

// modelName returns the file name of a path without its extension and without the number of a
// part.
func modelName(path string) string {
	name := weights.ModelName(path)
	for _, ending := range []string{".tiktoken", ".model"} {
		name = strings.TrimSuffix(name, ending)
	}
	return name
}
