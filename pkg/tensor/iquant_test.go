package tensor_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// quantVectors are hashes of the float32 values (little-endian) of 64 pseudo-random blocks of each
// type, computed with dequantize of the PyPI package gguf 0.19.0 (module gguf.quants, the decoder of
// llama.cpp's authors). randomBlocks makes the same bytes: words of SplitMix64 over
// typeNumber<<32 + i, with bit 6 of each float16's high byte cleared, so that no scale is infinite.
var quantVectors = []struct {
	dtype   tensor.DType
	number  uint64 // GGUF's number of the type
	float16 []int  // offsets of the high bytes of the block's float16 numbers
	hash    string
}{
	{tensor.Q4_0, 2, []int{1}, "b65d4d4540e8e88d4a8a6756247064a3089ad10cac73a387f837ef9568afc097"},
	{tensor.Q4_1, 3, []int{1, 3}, "7855090bcf1ffcf0177ca6dae8447540ab4c307404369324dbf3679a61991d27"},
	{tensor.Q5_0, 6, []int{1}, "be62517679ae74705282c1d359af886deba4056d5c8c89224bb911c64a21acd9"},
	{tensor.Q5_1, 7, []int{1, 3}, "e4bb79ca3cb8076bc09d03e9453784574fbeb2f7497920131e8be742c1e9371e"},
	{tensor.Q8_0, 8, []int{1}, "66e5ff5455bfd15f799fe351d0b0c73cee73ac618610335046609030e8af40d3"},
	{tensor.Q2_K, 10, []int{81, 83}, "e5e05ddb3ff87144bc6f0b28b6d182b08c36db671ac1f24ae5a0e14542215138"},
	{tensor.Q3_K, 11, []int{109}, "ec525f26c1e80205a0977812abff790b822b6d95db5b4011f0aef95a8886b88f"},
	{tensor.Q4_K, 12, []int{1, 3}, "968bd68ff7427a20b44460a27ef01d49a253d51038a1a0429b4c1c046081a01a"},
	{tensor.Q5_K, 13, []int{1, 3}, "95c438f113d926165004c21f795b97126cbd7b4a83c78aa31e5412e82e89fe7e"},
	{tensor.Q6_K, 14, []int{209}, "dbe480aa8b0780c864d8bd477318d6c9ac58c559ae7c9500ba4024500db47dd5"},
	{tensor.IQ4_NL, 20, []int{1}, "2f559ae1efd70809baefb9e8bea43d8dfabc5c723c360e362c36d1a69e2c5843"},
	{tensor.IQ4_XS, 23, []int{1}, "0ac685a14f5c86b50a6d00334395cd7fde1abadd279cf1efd0b210bac7bc2aea"},
	{tensor.TQ1_0, 34, []int{53}, "6a3fcaa022708fd3855336f9e0c9b31031d1c4eac5c876f150207564bb86e225"},
	{tensor.TQ2_0, 35, []int{65}, "092c537ded736ea162dcb2b3065471e0056e0ad817b52d02cba57638add926aa"},
	{tensor.MXFP4, 39, nil, "48bf3167ae2efc7881a877a3c95af191486e9e2633f027248b1e3c6b37840177"},
	{tensor.IQ1_S, 19, []int{1}, "99f410a4347c67daa4ca6e79e040bd61c04761de993ffb26b19935ed01f93bee"},
	{tensor.IQ1_M, 29, []int{55}, "05ba7f078207da97147907fce3d9fda212638ba9227a2b4b8953db8a0f2a1049"},
	{tensor.IQ2_XXS, 16, []int{1}, "b641a1c9ea3de71b5b1b1c41fefdeeeae5a65dc221fcc9e866e0f23c9871f963"},
	{tensor.IQ2_XS, 17, []int{1}, "35b4d6022723ca6c083248ec5ccfbabe15bde2b7a41964f20e04f8b64e095545"},
	{tensor.IQ2_S, 22, []int{1}, "9175162e2acd3248a53ef72bdc85549f015d495b2e16151d6c572374335d5242"},
	{tensor.IQ3_XXS, 18, []int{1}, "aa168d99ed7cf7ed7e40ff8739cbfa012a592812d6a58e60849b192c16a94e7b"},
	{tensor.IQ3_S, 21, []int{1}, "1658f73ed432b0fc05510419b0b9300afab70907b50e28aed438c18d3c2337ca"},
	{tensor.NVFP4, 40, nil, "17099ab596fef05cfc10df6832bf5827eea3b61500f0f229773397523ee9ca70"},
}

// randomBlocks returns n pseudo-random blocks of a type.
func randomBlocks(d tensor.DType, number uint64, float16 []int, n int) []byte {
	size := d.BlockBytes()
	raw := make([]byte, 0, n*size+8)
	for i := uint64(0); len(raw) < n*size; i++ {
		z := number<<32 | i
		z += 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		raw = binary.LittleEndian.AppendUint64(raw, z^z>>31)
	}
	raw = raw[:n*size]
	for b := 0; b < len(raw); b += size {
		for _, at := range float16 {
			raw[b+at] &= 0xbf
		}
	}
	return raw
}

func TestDequantize_RandomBlocksEqualTheOracle(t *testing.T) {
	for _, v := range quantVectors {
		const blocks = 64
		raw := randomBlocks(v.dtype, v.number, v.float16, blocks)
		values := make([]float32, blocks*v.dtype.BlockLen())
		tensor.Dequantize(values, raw, v.dtype)
		le := make([]byte, 4*len(values))
		tensor.PutF32LE(le, values)
		if got := fmt.Sprintf("%x", sha256.Sum256(le)); got != v.hash {
			t.Errorf("%v: values hash to %s, want %s", v.dtype, got, v.hash)
		}
		wide := make([]float64, len(values))
		tensor.Dequantize(wide, raw, v.dtype)
		for i, x := range wide {
			if x != float64(values[i]) {
				t.Fatalf("%v: element %d is %v in float64 and %v in float32", v.dtype, i, x, values[i])
			}
		}
	}
}

func TestDequantize_EveryBlockTypeHasAVector(t *testing.T) {
	covered := map[tensor.DType]bool{tensor.Q1_0: true} // the oracle cannot decode it; the test below does
	for _, v := range quantVectors {
		covered[v.dtype] = true
	}
	for d := tensor.F32; d.Valid(); d++ {
		if d.BlockLen() > 1 && !covered[d] {
			t.Errorf("%v has no test vector", d)
		}
	}
}

func TestDequantize_Q1_0HasOneSignPerElement(t *testing.T) {
	raw := make([]byte, 18)
	binary.LittleEndian.PutUint16(raw, tensor.Float16bits(0.75))
	raw[2], raw[17] = 0b101, 0x80
	got := make([]float32, 128)
	tensor.Dequantize(got, raw, tensor.Q1_0)
	for i, v := range got {
		want := float32(-0.75)
		if i == 0 || i == 2 || i == 127 {
			want = 0.75
		}
		if v != want {
			t.Errorf("element %d is %v, want %v", i, v, want)
		}
	}
}

// TestCodebook_ReadGivesTheFactorsOfEveryValue checks that the product of the factors that Read returns is the
// dequantised value.
func TestCodebook_ReadGivesTheFactorsOfEveryValue(t *testing.T) {
	for _, v := range quantVectors {
		c := tensor.CodebookOf(v.dtype)
		if c == nil {
			continue
		}
		raw := randomBlocks(v.dtype, v.number, v.float16, 3)
		want := make([]float32, 3*v.dtype.BlockLen())
		tensor.Dequantize(want, raw, v.dtype)
		for b := range 3 {
			var codes [32]uint64
			var scales [16]uint8
			d := tensor.Float16(c.Read(raw[b*v.dtype.BlockBytes():], &codes, &scales))
			for i := range 256 {
				code := byte(codes[i/8] >> (i % 8 * 8))
				got := float64(d) * float64(c.Factor) * float64(scales[i/c.Group]) * float64(c.Levels[code&15])
				if code > 15 || math.Float32bits(float32(got)) != math.Float32bits(want[256*b+i]) {
					t.Fatalf("%v: element %d of block %d is %v (code %d), want %v", v.dtype, i, b, got, code,
						want[256*b+i])
				}
			}
		}
	}
}
