package kernel

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"testing"
)

// The exponential that devices compute, too, is math.Exp but for the last bit.
func TestExponential_IsThatOfMath(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x := []float64{0, math.Copysign(0, -1), -1e-300, -708, -708.5, -745, -745.2, -760, -1000, -1001, -1e38,
		math.Inf(-1)}
	for range 20000 {
		x = append(x, -750*r.Float64(), -r.Float64())
	}
	for _, x := range x {
		got, want := exponential(x), math.Exp(x)
		ulp := math.Nextafter(want, 2) - want
		if !(math.Abs(got-want) <= ulp) {
			t.Fatalf("exp(%v) is %v, want %v", x, got, want)
		}
	}
	if v := exponential(math.NaN()); !math.IsNaN(v) {
		t.Errorf("exp(NaN) is %v", v)
	}
}

// The bits are the same on all hosts: those of math.Exp on amd64 with fused multiplications, of which this is the
// digest.
func TestExponential_HasTheSameBitsEverywhere(t *testing.T) {
	const want = 0x91fb7930ce19fbf4
	r, digest := rand.New(rand.NewPCG(2, 2)), fnv.New64a()
	for range 20000 {
		for _, x := range []float64{-r.Float64(), -20 * r.Float64(), -708 * r.Float64(), -708 - 40*r.Float64()} {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], math.Float64bits(exponential(x)))
			_, _ = digest.Write(b[:]) // it never fails
		}
	}
	if got := digest.Sum64(); got != want {
		t.Errorf("the digest of exponentials is %#x, want %#x", got, uint64(want))
	}
}
