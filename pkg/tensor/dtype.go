package tensor

import "fmt"

// Float is the element type of a computation: float32 in production, float64
// where gradients are checked against central differences.
type Float interface{ ~float32 | ~float64 }

// DType is the type of the elements of a stored tensor. The zero value is
// invalid, so that an unset field is never taken for a type.
type DType uint8

// The element types of weights on disk. The block types are those of GGUF,
// named as llama.cpp names them.
const (
	Invalid DType = iota
	F32
	F16
	BF16
	F64
	I8
	I16
	I32
	I64
	U8
	Bool
	Q4_0
	Q4_1
	Q5_0
	Q5_1
	Q8_0
	Q2_K
	Q3_K
	Q4_K
	Q5_K
	Q6_K
	IQ4_NL
	IQ4_XS
	TQ1_0
	TQ2_0
	MXFP4
	IQ1_S
	IQ1_M
	IQ2_XXS
	IQ2_XS
	IQ2_S
	IQ3_XXS
	IQ3_S
	NVFP4
	Q1_0
	numDTypes
)

type layout struct {
	name  string
	block int // elements in a block
	bytes int // bytes in a block
}

var layouts = [numDTypes]layout{
	Invalid: {"invalid", 1, 0},
	F32:     {"F32", 1, 4},
	F16:     {"F16", 1, 2},
	BF16:    {"BF16", 1, 2},
	F64:     {"F64", 1, 8},
	I8:      {"I8", 1, 1},
	I16:     {"I16", 1, 2},
	I32:     {"I32", 1, 4},
	I64:     {"I64", 1, 8},
	U8:      {"U8", 1, 1},
	Bool:    {"BOOL", 1, 1},
	Q4_0:    {"Q4_0", 32, 18},
	Q4_1:    {"Q4_1", 32, 20},
	Q5_0:    {"Q5_0", 32, 22},
	Q5_1:    {"Q5_1", 32, 24},
	Q8_0:    {"Q8_0", 32, 34},
	Q2_K:    {"Q2_K", 256, 84},
	Q3_K:    {"Q3_K", 256, 110},
	Q4_K:    {"Q4_K", 256, 144},
	Q5_K:    {"Q5_K", 256, 176},
	Q6_K:    {"Q6_K", 256, 210},
	IQ4_NL:  {"IQ4_NL", 32, 18},
	IQ4_XS:  {"IQ4_XS", 256, 136},
	TQ1_0:   {"TQ1_0", 256, 54},
	TQ2_0:   {"TQ2_0", 256, 66},
	MXFP4:   {"MXFP4", 32, 17},
	IQ1_S:   {"IQ1_S", 256, 50},
	IQ1_M:   {"IQ1_M", 256, 56},
	IQ2_XXS: {"IQ2_XXS", 256, 66},
	IQ2_XS:  {"IQ2_XS", 256, 74},
	IQ2_S:   {"IQ2_S", 256, 82},
	IQ3_XXS: {"IQ3_XXS", 256, 98},
	IQ3_S:   {"IQ3_S", 256, 110},
	NVFP4:   {"NVFP4", 64, 36},
	Q1_0:    {"Q1_0", 128, 18},
}

// String returns the type's name as files and log lines spell it.
func (d DType) String() string {
	if d >= numDTypes {
		return fmt.Sprintf("dtype(%d)", uint8(d))
	}
	return layouts[d].name
}

// Valid reports whether d is a known element type.
func (d DType) Valid() bool { return d > Invalid && d < numDTypes }

// BlockLen returns the number of elements in a block, which is 1 for plain types.
func (d DType) BlockLen() int { return layouts[d].block }

// BlockBytes returns the size in bytes of one block.
func (d DType) BlockBytes() int { return layouts[d].bytes }

// RowBytes returns the size in bytes of n consecutive elements; n must be a
// multiple of BlockLen.
func (d DType) RowBytes(n int) int { return n / layouts[d].block * layouts[d].bytes }

// Parse returns the type with the given name.
func Parse(name string) (DType, error) {
	for d := F32; d < numDTypes; d++ {
		if layouts[d].name == name {
			return d, nil
		}
	}
	return Invalid, fmt.Errorf("parse dtype %q: unknown name", name)
}
