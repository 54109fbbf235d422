package model

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/pyjson"
)

// hfFields reads settings of config.json by name. A setting that is missing or null takes
// the default; one of another type is an error. err returns the first error.
type hfFields struct {
	values map[string]any
	outer  *hfFields      // settings around text_config; nil if these are not text_config
	usual  map[string]int // defaults that transformers has for sizes that text_config leaves out
	first  *error
}

// readHF reads the text of config.json or generation_config.json. file is its name in errors.
func readHF(file string, text []byte) (*hfFields, error) {
	h := &hfFields{first: new(error)}
	if err := pyjson.Unmarshal(text, &h.values); err != nil {
		return nil, &FieldError{file, err.Error()}
	}
	return h, nil
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

// has reports whether the file has a setting, even if it is null.
func (h *hfFields) has(name string) bool { _, ok := h.values[name]; return ok }

// number reads a number, or a string that spells one.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case string:
		f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		return f, err == nil || errors.Is(err, strconv.ErrRange)
	}
	return 0, false
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

// size reads a size that text_config may leave out. If there is no default, it returns otherwise.
func (h *hfFields) size(name string, otherwise int) int {
	if n, ok := h.usual[name]; ok && h.outer != nil {
		otherwise = n
	}
	return h.int(name, otherwise)
}

// need reads a required size.
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

// maybe reads a number, or returns nil if there is none.
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

// list reads an array, or returns nil if there is none.
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

// object reads a setting that holds settings, or returns nil if there is none.
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

// ids reads a token id or a list of token ids. It leaves out ids outside the vocabulary.
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

// generationIDs replaces BOS and EOS by those of generation_config.json, if the folder has
// that file and the file names them, as transformers does.
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

// hfDefaults holds an architecture's defaults for settings that config.json lacks.
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
		Layers: h.need("num_hidden_layers"), Width: h.need("hidden_size"), Heads: h.need("num_attention_heads"),
		FF:    h.need("intermediate_size"),
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

// tied reports whether the head shares the embedding's weight. Multimodal models may say so
// outside text_config.
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

// window reads the sliding window. null means none. If the setting is missing, it returns
// otherwise.
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

// setWindow gives a window to the layers that layer_types names or, without that setting,
// to those for which full does not report true.
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

// layerTypes returns the setting layer_types of config.json.
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

// windowJSON returns the setting sliding_window of config.json.
func (s *Spec) windowJSON() any {
	if w := s.Window(); w > 0 {
		return w
	}
	return nil
}

// fullBelow selects Qwen's layers with full attention: the first max_window_layers.
func (h *hfFields) fullBelow() func(l int) bool {
	most := h.int("max_window_layers", 28)
	return func(l int) bool { return l < most }
}

// every selects every n-th layer.
func every(n int) func(l int) bool {
	return func(l int) bool { return n > 0 && (l+1)%n == 0 }
}
