package model

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// hfFields reads settings of config.json by name. A setting that is missing or null takes
// the default; one of another type is an error. The first error stays, for err to return.
type hfFields struct {
	values map[string]any // numbers are json.Number
	outer  *hfFields      // of the multimodal model that holds this language model; nil: none
	usual  map[string]int // sizes that text_config may leave out, as transformers has them
	first  *error
}

// readHF reads the text of config.json or generation_config.json. file is what errors call it.
func readHF(file string, text []byte) (*hfFields, error) {
	d := json.NewDecoder(bytes.NewReader(plainJSON(text)))
	d.UseNumber()
	h := &hfFields{first: new(error)}
	if err := d.Decode(&h.values); err != nil {
		return nil, &FieldError{file, err.Error()}
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, &FieldError{file, fmt.Sprintf("text follows the object, at byte %d", d.InputOffset())}
	}
	return h, nil
}

// plainJSON is text without a byte-order mark, and with quotes around the numbers that
// Python writes and JSON lacks: Infinity, -Infinity and NaN.
func plainJSON(text []byte) []byte {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if !bytes.Contains(text, []byte("Infinity")) && !bytes.Contains(text, []byte("NaN")) {
		return text
	}
	var out []byte
	for i, quoted := 0, false; i < len(text); {
		switch c := text[i]; {
		case quoted && c == '\\' && i+1 < len(text):
			out = append(out, c, text[i+1])
			i += 2
			continue
		case c == '"':
			quoted = !quoted
		case !quoted:
			word := ""
			for _, w := range []string{"-Infinity", "Infinity", "NaN"} {
				if word == "" && bytes.HasPrefix(text[i:], []byte(w)) {
					word = w
				}
			}
			if word != "" {
				out = append(append(append(out, '"'), word...), '"')
				i += len(word)
				continue
			}
		}
		out = append(out, text[i])
		i++
	}
	return out
}

func (h *hfFields) err() error { return *h.first }

func (h *hfFields) fail(name, format string, args ...any) {
	if *h.first == nil {
		*h.first = &FieldError{name, fmt.Sprintf(format, args...)}
	}
}

func (h *hfFields) wrong(name, want string) {
	h.fail(name, "want %s, got %s", want, jsonText(h.values[name]))
}

func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil || len(text) > 64 {
		return fmt.Sprintf("%.64v", v)
	}
	return string(text)
}

// has reports whether the file names a setting, if only as null.
func (h *hfFields) has(name string) bool { _, ok := h.values[name]; return ok }

// number parses a number, or a string that holds one.
func number(v any) (float64, bool) {
	text := ""
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = strings.TrimSpace(v)
	}
	f, err := strconv.ParseFloat(text, 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}

func integer(v any) (int, bool) {
	f, ok := number(v)
	if !ok || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int(f), true
}

func (h *hfFields) int(name string, otherwise int) int {
	v := h.values[name]
	if v == nil {
		return otherwise
	}
	n, ok := integer(v)
	if !ok {
		h.wrong(name, "an integer")
	}
	return n
}

// size is a size that text_config may leave out, otherwise where there is none at all.
func (h *hfFields) size(name string, otherwise int) int {
	if n, ok := h.usual[name]; ok && h.outer != nil {
		otherwise = n
	}
	return h.int(name, otherwise)
}

// need is a size without a default.
func (h *hfFields) need(name string) int {
	n := h.size(name, 0)
	if n == 0 && h.values[name] == nil {
		h.fail(name, "is missing")
	}
	return n
}

func (h *hfFields) float(name string, otherwise float64) float64 {
	v := h.values[name]
	if v == nil {
		return otherwise
	}
	f, ok := number(v)
	if !ok {
		h.wrong(name, "a number")
	}
	return f
}

// maybe is a number, nil where there is none.
func (h *hfFields) maybe(name string) *float64 {
	if h.values[name] == nil {
		return nil
	}
	return new(h.float(name, 0))
}

func (h *hfFields) bool(name string, otherwise bool) bool {
	switch v := h.values[name].(type) {
	case nil:
		return otherwise
	case bool:
		return v
	}
	h.wrong(name, "true or false")
	return otherwise
}

func (h *hfFields) text(name, otherwise string) string {
	switch v := h.values[name].(type) {
	case nil:
		return otherwise
	case string:
		return v
	}
	h.wrong(name, "a string")
	return otherwise
}

// list reads an array, nil where there is none.
func list[T any](h *hfFields, name, want string, read func(v any) (T, bool)) []T {
	v := h.values[name]
	if v == nil {
		return nil
	}
	items, ok := v.([]any)
	if !ok {
		h.wrong(name, "a list of "+want)
		return nil
	}
	out := make([]T, len(items))
	for i, item := range items {
		if out[i], ok = read(item); !ok {
			h.fail(name, "element %d: want %s, got %s", i, want, jsonText(item))
		}
	}
	return out
}

func (h *hfFields) ints(name string) []int { return list(h, name, "integers", integer) }

func (h *hfFields) texts(name string) []string {
	return list(h, name, "strings", func(v any) (string, bool) { s, ok := v.(string); return s, ok })
}

func (h *hfFields) floats(name string) []float32 {
	return list(h, name, "numbers", func(v any) (float32, bool) { f, ok := number(v); return float32(f), ok })
}

// object reads settings within a setting, nil where there are none.
func (h *hfFields) object(name string) *hfFields {
	switch v := h.values[name].(type) {
	case nil:
		return nil
	case map[string]any:
		return &hfFields{values: v, first: h.first}
	}
	h.wrong(name, "an object")
	return nil
}

// ids reads a token id or a list of token ids. Ids outside the vocabulary are left out.
func (h *hfFields) ids(name string, vocab int) []int32 {
	var ids []int
	if _, ok := h.values[name].([]any); ok {
		ids = h.ints(name)
	} else if h.values[name] != nil {
		ids = []int{h.int(name, -1)}
	}
	var out []int32
	for _, id := range ids {
		if id >= 0 && id < vocab {
			out = append(out, int32(id))
		}
	}
	return out
}

// generationIDs takes the ids that generation_config.json gives in place of those of
// config.json, as transformers does. A folder may lack the file.
func (s *Spec) generationIDs(folder string) error {
	text, err := os.ReadFile(filepath.Join(folder, "generation_config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := readHF("generation_config.json", text)
	if err != nil {
		return err
	}
	if ids := h.ids("bos_token_id", s.Vocab); ids != nil {
		s.BOS = ids
	}
	if ids := h.ids("eos_token_id", s.Vocab); ids != nil {
		s.EOS = ids
	}
	return h.err()
}

// hfDefaults are what an architecture assumes where config.json says nothing.
type hfDefaults struct {
	eps, base float64 // 0: 1e-6 and 10000
	headDim   int     // 0: hidden_size over heads
	tied      bool
	ownRope   bool // the architecture reads the rotation itself
	ownAct    bool // and the activation
}

// decoder reads the settings that the llama family shares.
func (h *hfFields) decoder(architecture string, o hfDefaults) (Spec, error) {
	if o.eps == 0 {
		o.eps = 1e-6
	}
	d := Shape{
		Layers: h.need("num_hidden_layers"), Width: h.need("hidden_size"), Heads: h.need("num_attention_heads"), FF: h.need("intermediate_size"),
		Vocab: h.need("vocab_size"), Context: h.need("max_position_embeddings"),
		NormEps: h.float("rms_norm_eps", o.eps), TiedHead: h.tied(o.tied),
	}
	d.KVHeads = h.size("num_key_value_heads", d.Heads)
	if d.Heads > 0 && o.headDim == 0 {
		o.headDim = d.Width / d.Heads
	}
	d.HeadDim = h.int("head_dim", o.headDim)
	if !o.ownRope {
		d.Rope = h.rope(d.HeadDim, o.base)
	}
	if h.err() != nil {
		return Spec{}, h.err()
	}
	if err := d.check(); err != nil {
		return Spec{}, err
	}
	s := decoder(architecture, d)
	if !o.ownAct {
		s.setAct(h.act("hidden_act", "silu"))
	}
	return s, h.err()
}

// tied reports whether the head shares the embedding's weight. The setting may stand
// beside text_config.
func (h *hfFields) tied(otherwise bool) bool {
	const name = "tie_word_embeddings"
	if !h.has(name) && h.outer != nil {
		return h.outer.bool(name, otherwise)
	}
	return h.bool(name, otherwise)
}

// act reads the name of an activation.
func (h *hfFields) act(name, otherwise string) kernel.Act {
	switch name := cmp.Or(h.text(name, ""), otherwise); name {
	case "silu", "swish":
		return kernel.SiLU
	case "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate":
		return kernel.GELUTanh
	case "gelu", "gelu_python":
		return kernel.GELU
	default:
		h.refuse("activation", name, "silu, gelu, gelu_new, gelu_pytorch_tanh")
	}
	return kernel.SiLU
}

// refuse reports a setting that this build cannot run.
func (h *hfFields) refuse(field, value, supported string) {
	if *h.first == nil {
		*h.first = &UnsupportedError{field, value, supported}
	}
}

// activationName is the inverse of act.
func activationName(a kernel.Act) string {
	return map[kernel.Act]string{kernel.SiLU: "silu", kernel.GELUTanh: "gelu_pytorch_tanh", kernel.GELU: "gelu"}[a]
}

// window is the sliding window: none where the file says null, otherwise where it says nothing.
func (h *hfFields) window(otherwise int) int {
	if !h.has("sliding_window") {
		return otherwise
	}
	w := h.int("sliding_window", 0)
	if h.values["sliding_window"] != nil && (w < 1 || w > maxSize) {
		h.wrong("sliding_window", "a positive integer")
	}
	return w
}

// setWindow gives the layers a window: those that layer_types says, or else those that
// full does not name.
func (h *hfFields) setWindow(s *Spec, window int, full func(l int) bool) {
	if window == 0 {
		return
	}
	if kinds := h.texts("layer_types"); kinds != nil {
		if len(kinds) != len(s.Layers) {
			h.fail("layer_types", "%d of %d layers", len(kinds), len(s.Layers))
			return
		}
		full = func(l int) bool { return kinds[l] == "full_attention" }
	}
	s.setWindow(window, full)
}

// layerTypes is layer_types as config.json has it, written where layers differ or the
// architecture asks for it.
func (s *Spec) layerTypes() []string {
	out := make([]string, len(s.Layers))
	for l := range out {
		out[l] = "full_attention"
		if s.Layers[l].Attention.Window > 0 {
			out[l] = "sliding_attention"
		}
	}
	return out
}

// windowJSON is sliding_window: null for none.
func (s *Spec) windowJSON() any {
	if w := s.Window(); w > 0 {
		return w
	}
	return nil
}

// fullBelow are Qwen's layers without the window: the first max_window_layers.
func (h *hfFields) fullBelow() func(l int) bool {
	most := h.int("max_window_layers", 28)
	return func(l int) bool { return l < most }
}

// every names each n-th layer.
func every(n int) func(l int) bool {
	return func(l int) bool { return n > 0 && (l+1)%n == 0 }
}
