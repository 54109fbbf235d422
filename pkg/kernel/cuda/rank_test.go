package cuda

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

// The candidates of a row are those of the sampler, in one round and in two, and neither they nor the log-sum-exp
// depend on other rows or on how many are asked for.
func TestRank_IsTheSamplersChoice(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	const rows, v = 2, 4100 // five blocks of candidates, two of log-sum-exps
	r := rand.New(rand.NewPCG(5, 1))
	x := make([]float32, rows*v)
	for i := range x {
		x[i] = float32(r.IntN(400)-200) / 8 // many are equal
	}
	on := set.FromHost(x)
	few, all := set.Rank(on[v:], 1, v, 3), set.Rank(on, rows, v, 12)
	for row := range rows {
		mine := x[row*v : (row+1)*v]
		for i, want := range sample.Best(mine, 12) {
			if at := row*12 + i; all.IDs[at] != want.ID || all.Logits[at] != want.Logit {
				t.Errorf("candidate %d of row %d is %d with %v, want %v", i, row, all.IDs[at], all.Logits[at], want)
			}
		}
		if want := set.LogSumExp(mine); !(math.Abs(all.LSE[row]-want) < 1e-5) {
			t.Errorf("the log-sum-exp of row %d is %v, want %v", row, all.LSE[row], want)
		}
	}
	if few.LSE[0] != all.LSE[1] || !slices.Equal(few.IDs, all.IDs[12:15]) ||
		!slices.Equal(few.Logits, all.Logits[12:15]) {
		t.Errorf("alone the second row has %v, in a batch %v", few, all)
	}
	short := set.Rank(on[:5], 1, 5, 5) // all of a short row
	for i, want := range sample.Best(x[:5], 5) {
		if short.IDs[i] != want.ID {
			t.Errorf("candidate %d of a short row is %d, want %d", i, short.IDs[i], want.ID)
		}
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}

// Zeros of either sign are equal, so the one with the lower index comes first, in one round and in two. Both are 0.
func TestRank_ZerosAreEqual(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	const v = 2100 // three blocks of candidates
	x := make([]float32, v)
	for i := range x {
		x[i] = -1
	}
	negative := float32(math.Copysign(0, -1))
	x[3], x[5], x[7], x[1500], x[1600], x[2099] = negative, 0, negative, negative, 0, 1e-45
	for _, n := range []int{20, v} {
		got, want := set.Rank(set.FromHost(x[:n]), 1, n, 8), sample.Best(x[:n], 8)
		for i, w := range want {
			if got.IDs[i] != w.ID || got.Logits[i] != w.Logit {
				t.Errorf("candidate %d of %d is %d with %v, want %v", i, n, got.IDs[i], got.Logits[i], w)
			}
		}
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}

// Rows beyond those that are ranked together get their own candidates, and take no more workspace.
func TestRank_ManyRows(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	set, err := Open(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	const rows, v, k = rankRows + 3, 5, 2
	r := rand.New(rand.NewPCG(5, 2))
	x := make([]float32, rows*v)
	for i := range x {
		x[i] = r.Float32()
	}
	on := set.FromHost(x)
	set.Rank(on[:rankRows*v], rankRows, v, k)
	work := set.workBytes
	got := set.Rank(on, rows, v, k)
	if set.workBytes != work {
		t.Errorf("%d rows take %d bytes of workspace, %d take %d", rows, set.workBytes, rankRows, work)
	}
	for row := range rows {
		mine := x[row*v : (row+1)*v]
		for i, want := range sample.Best(mine, k) {
			if at := row*k + i; got.IDs[at] != want.ID || got.Logits[at] != want.Logit {
				t.Errorf("candidate %d of row %d is %d with %v, want %v", i, row, got.IDs[at], got.Logits[at], want)
			}
		}
		if want := set.LogSumExp(mine); !(math.Abs(got.LSE[row]-want) < 1e-5) {
			t.Errorf("the log-sum-exp of row %d is %v, want %v", row, got.LSE[row], want)
		}
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}
