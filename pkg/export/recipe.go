package export

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Recipe says which type each tensor of a GGUF file gets.
type Recipe struct {
	Name string // as llama-quantize spells it
	// Pure gives every matrix the base type. Otherwise the output matrix and some others get more bits.
	Pure bool

	base     tensor.DType
	fileType uint32 // general.file_type
	mixture  mixture
}

// mixture says which tensors of a K recipe get more bits.
type mixture int

const (
	noMixture mixture = iota
	small             // the _S recipes
	medium            // the _M recipes
)

// recipes lists all recipes. The numbers are llama.cpp's.
func recipes() []Recipe {
	return []Recipe{
		{Name: "F32", base: tensor.F32, fileType: 0},
		{Name: "F16", base: tensor.F16, fileType: 1},
		{Name: "BF16", base: tensor.BF16, fileType: 32},
		{Name: "Q8_0", base: tensor.Q8_0, fileType: 7},
		{Name: "Q4_0", base: tensor.Q4_0, fileType: 2},
		{Name: "Q4_1", base: tensor.Q4_1, fileType: 3},
		{Name: "Q5_0", base: tensor.Q5_0, fileType: 8},
		{Name: "Q5_1", base: tensor.Q5_1, fileType: 9},
		{Name: "Q4_K_S", base: tensor.Q4_K, fileType: 14, mixture: small},
		{Name: "Q4_K_M", base: tensor.Q4_K, fileType: 15, mixture: medium},
		{Name: "Q5_K_S", base: tensor.Q5_K, fileType: 16, mixture: small},
		{Name: "Q5_K_M", base: tensor.Q5_K, fileType: 17, mixture: medium},
		{Name: "Q6_K", base: tensor.Q6_K, fileType: 18},
	}
}

// Recipes lists the names of all recipes.
func Recipes() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.Name)
	}
	return names
}

// ParseRecipe returns the recipe with a name, in upper or lower case. Q4_K and Q5_K mean the _M recipes.
func ParseRecipe(name string) (Recipe, error) {
	want := strings.ToUpper(name)
	if want == "Q4_K" || want == "Q5_K" {
		want += "_M"
	}
	for _, r := range recipes() {
		if r.Name == want {
			return r, nil
		}
	}
	return Recipe{}, fault.Field("type", "unknown type %q: want one of %s", name, strings.Join(Recipes(), ", "))
}

// Quantised reports whether the recipe stores blocks.
func (r Recipe) Quantised() bool { return r.base.BlockLen() > 1 }

// shape is what a recipe knows of a model.
type shape struct {
	layers  int
	experts int  // of a layer, or 0
	tied    bool // the embedding is the output matrix, too
	weighed bool // there is an importance matrix
}

// typeOf returns the type of a weight matrix, whose rows have row elements. layer is -1 outside the layers.
func (r Recipe) typeOf(name string, layer, row int, s shape) tensor.DType {
	kind := strings.TrimSuffix(name[strings.LastIndexByte(strings.TrimSuffix(name, ".weight"), '.')+1:], ".weight")
	d := r.base
	switch {
	case r.Pure || !r.Quantised():
	case kind == "output" || kind == "token_embd" && s.tied:
		if d != tensor.Q8_0 {
			d = tensor.Q6_K
		}
	case r.mixture != noMixture:
		d = r.mixed(kind, layer, s)
	case s.weighed && isDown(kind) && layer < s.layers/8:
		// As in llama-quantize: errors that are weighed by activations can be large in the first down projections.
		switch d {
		case tensor.Q4_0:
			d = tensor.Q4_1
		case tensor.Q5_0:
			d = tensor.Q5_1
		}
	}
	return fitting(d, row)
}

// isDown reports whether a matrix is a down projection of the feed-forward network.
func isDown(kind string) bool { return kind == "ffn_down" || kind == "ffn_down_exps" }

// mixed returns the type of a matrix in a K recipe. The value and down projections lose the most by quantisation, so
// some layers get more bits for them; the few values of a mixture of eight experts cost little.
func (r Recipe) mixed(kind string, layer int, s shape) tensor.DType {
	manyExperts := s.experts == 8
	switch kind {
	case "attn_v":
		switch {
		case manyExperts:
			return tensor.Q8_0
		case r.mixture == medium && moreBits(layer, s.layers):
			return tensor.Q6_K
		case r.Name == "Q4_K_S" && layer < 4:
			return tensor.Q5_K
		}
	case "attn_k":
		if manyExperts {
			return tensor.Q8_0
		}
	case "attn_output":
		if manyExperts {
			return tensor.Q5_K
		}
	case "attn_qkv":
		if r.mixture == medium {
			return map[tensor.DType]tensor.DType{tensor.Q4_K: tensor.Q5_K, tensor.Q5_K: tensor.Q6_K}[r.base]
		}
	case "ffn_down", "ffn_down_exps":
		switch {
		case r.mixture == medium && moreBits(layer, s.layers):
			return tensor.Q6_K
		case r.Name == "Q4_K_S" && layer < s.layers/8:
			return tensor.Q5_K
		}
	}
	return r.base
}

// moreBits selects the first and the last eighth of the layers and every third one between.
func moreBits(layer, layers int) bool {
	return layer < layers/8 || layer >= 7*layers/8 || (layer-layers/8)%3 == 2
}

// fitting returns the type itself, or one with shorter blocks of at least as many bits if rows are no whole number of
// blocks.
func fitting(d tensor.DType, row int) tensor.DType {
	if row%d.BlockLen() != 0 {
		switch d {
		case tensor.Q4_K:
			d = tensor.Q5_0
		case tensor.Q5_K:
			d = tensor.Q5_1
		case tensor.Q6_K:
			d = tensor.Q8_0
		}
	}
	if row%d.BlockLen() != 0 {
		return tensor.F16
	}
	return d
}

// kindOf returns the name of a tensor without the number of its layer, and the number or -1.
func kindOf(name string) (kind string, layer int) {
	rest, ok := strings.CutPrefix(name, "blk.")
	if !ok {
		return name, -1
	}
	number, kind, ok := strings.Cut(rest, ".")
	if _, err := fmt.Sscanf(number, "%d", &layer); !ok || err != nil {
		return name, -1
	}
	return kind, layer
}

// order compares the names of tensors: those outside the layers first, then by layer.
func order(a, b string) int {
	_, la := kindOf(a)
	_, lb := kindOf(b)
	if la != lb {
		return la - lb
	}
	return strings.Compare(a, b)
}

// plainNames are matrices that stay in their plain type: few elements on which much depends.
func plainMatrix(name string) bool {
	return !strings.HasSuffix(name, ".weight") ||
		slices.ContainsFunc([]string{"_norm.", "ffn_gate_inp.", "position_embd.",
			"token_types.", "rope_", "ssm_conv1d.", "attn_rel_b", "altup", "laurel", "per_layer_model_proj",
			"shortconv", "time_mix_", "pos_embd"}, func(part string) bool { return strings.Contains(name, part) })
}
