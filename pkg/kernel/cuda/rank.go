package cuda

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Sizes of the kernels of ranks: logits of a block.
const (
	lseChunk       = 4096
	candidateChunk = 1024
)

// rankRows bounds the rows that are ranked together, and so the workspace that they take.
const rankRows = 64

// rankSizes returns the bytes of the results of a ranking, of the parts of its log-sum-exps, and of a round of
// candidates.
func rankSizes(t, v, k int) (result, parts, round int) {
	result = (8*t + 8*t*k + 15) &^ 15
	parts = (8*t*int(blocks(v, lseChunk)) + 15) &^ 15
	round = (8*t*int(blocks(v, candidateChunk))*k + 15) &^ 15
	return result, parts, round
}

// Rank finds the candidates and the log-sum-exp of each row. What is copied to the host is as long as they are.
func (s *Set) Rank(logits kernel.Buffer[float32], t, v, k int) kernel.Ranking[float32] {
	const op = "rank"
	must(op, "logits", len(logits), t*v)
	if k < 1 || k > min(v, kernel.MaxRank) {
		panic(fmt.Sprintf("%s: %d candidates of %d logits, want 1 to %d", op, k, v, min(v, kernel.MaxRank)))
	}
	part, join, best := s.need(op, "lse_part"), s.need(op, "lse_join"), s.need(op, "candidates")
	x := address(s.device, op, logits)
	out := kernel.Ranking[float32]{LSE: make([]float64, t), IDs: make([]int32, t*k), Logits: make([]float32, t*k)}
	if t == 0 {
		return out
	}
	if t > rankRows {
		for at := 0; at < t; at += rankRows {
			n := min(rankRows, t-at)
			part := s.Rank(logits[at*v:(at+n)*v], n, v, k)
			copy(out.LSE[at:], part.LSE)
			copy(out.IDs[at*k:], part.IDs)
			copy(out.Logits[at*k:], part.Logits)
		}
		return out
	}
	// The workspace has the results, which are copied together, then the parts of the log-sum-exps, then the values and
	// indices of two rounds of candidates, which take turns.
	chunks, stats, list := int(blocks(v, lseChunk)), 8*t, 4*t*k
	result, parts, round := rankSizes(t, v, k)
	s.workspace(int64(result + parts + 2*round))
	host := make([]byte, stats+2*list)
	s.do(func(w *worker) error {
		at := func(n int) driver.Address { return w.work + driver.Address(n) }
		grid := driver.Dim{X: uint32(chunks), Y: uint32(t), Z: 1}
		if err := w.launch(part, grid, 0, at(result), x, uint32(v)); err != nil {
			return err
		}
		err := w.launch(join, driver.Dim{X: blocks(t, join.Threads), Y: 1, Z: 1}, 0, w.work, at(result), uint32(chunks),
			uint32(t))
		if err != nil {
			return err
		}
		from, ids := x, driver.Address(0)
		for i, n := 0, v; ; i++ {
			in := blocks(n, candidateChunk)
			values := at(result + parts + i%2*round)
			indices := values + driver.Address(4*t*int(in)*k)
			if in == 1 {
				values, indices = at(stats), at(stats+list)
			}
			grid := driver.Dim{X: in, Y: uint32(t), Z: 1}
			if err := w.launch(best, grid, 0, values, indices, from, ids, uint32(n), uint32(k)); err != nil {
				return err
			}
			if in == 1 {
				return w.download(host, w.work)
			}
			from, ids, n = values, indices, int(in)*k
		}
	})
	number := func(i int) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(host[4*i:])) }
	for i := range out.LSE {
		out.LSE[i] = float64(number(2*i)) + math.Log(float64(number(2*i+1)))
	}
	for i := range out.IDs {
		out.Logits[i] = number(2*t + i)
		out.IDs[i] = int32(binary.LittleEndian.Uint32(host[stats+list+4*i:]))
	}
	return out
}
