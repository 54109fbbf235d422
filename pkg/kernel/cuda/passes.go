package cuda

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// What passes of a stage take of the device's memory beside their buffers: the workspace of kernels and the tables.
// Every bound follows the function that allocates, whose name it says.

// tableEntries bounds the pages of a table, times layers. Spans with more of them go in several tables. Tests set it.
var tableEntries = 1 << 20

// PassBytes bounds what the set allocates for passes. While memory grows, what was there before stays until the new one
// is there, so everything counts twice.
func (s *Set) PassBytes(p kernel.Passes[float32]) int64 {
	work := max(matMulBytes(p), lowBytes(p), rankBytes(p))
	if p.KV == kernel.KVF16 {
		work = max(work, stripBytes(p))
	} else {
		work = max(work, attendBytes(p))
	}
	return 2 * (work + tableBytes(p))
}

// matMulBytes is for MatMuls.
func matMulBytes(p kernel.Passes[float32]) (work int64) {
	for _, o := range p.Products {
		pad := o.Rows + tiles[len(tiles)-1].rows + 8
		work = max(work, int64(o.W.Cols/32)*int64(pad)*(actBytes+8))
	}
	return work
}

// lowBytes is for LowRanks.
func lowBytes(p kernel.Passes[float32]) int64 { return 4*int64(p.Rows)*int64(p.LowRanks) + 16 }

// rankBytes is for Rank.
func rankBytes(p kernel.Passes[float32]) int64 {
	t, k := min(p.Logits, rankRows), min(kernel.MaxRank, p.Vocab)
	if t == 0 {
		return 0
	}
	result, parts, round := rankSizes(t, p.Vocab, k)
	return int64(result + parts + 2*round)
}

// passChunks returns the most chunks of a sequence.
func passChunks(p kernel.Passes[float32]) int {
	return roundUp((p.Pages*p.PageLen + chunkPositions - 1) / chunkPositions)
}

// attendBytes is for attendRows.
func attendBytes(p kernel.Passes[float32]) int64 {
	one := int64(passChunks(p)) * int64(4*p.Heads.H*(2+p.Heads.D)) // of a row
	return max(one, min(int64(p.Rows)*one, partBytes)) + 16
}

// stripBytes is for attendStrips.
func stripBytes(p kernel.Passes[float32]) int64 {
	perKV := p.Heads.H / p.Heads.K
	query, part := stripSizes(p.Heads)
	split := int64(query + passChunks(p)*part) // of a strip
	strips := int64(p.Rows) * int64((perKV+stripPairs-1)/stripPairs)
	// The strips of a span of many rows are filled up to whole groups.
	whole := int64(p.Rows)*int64(perKV)/stripPairs*2 + groupSize
	return max(split, min(strips*split, partBytes), groupSize*int64(query), min(whole*int64(query), partBytes)) + 16
}

// tableBytes is for all tables.
func tableBytes(p kernel.Passes[float32]) int64 {
	perKV := max(1, p.Heads.H/max(1, p.Heads.K))
	strips := p.Rows*((perKV+stripPairs-1)/stripPairs) + p.Rows*perKV/stripPairs*2 + groupSize
	pages := max(p.Pages, min(p.Rows*p.Pages, tableEntries/max(1, p.Layers)))
	products := min(p.Rows, stepRows) * (7*p.Layers + 1) // entries of a step whose rows all have adapters
	n := regionBytes(8*p.Rows) + regionBytes(4*stripInts*strips) + regionBytes(roundedUp(pages)*p.Layers*entryBytes) +
		regionBytes(roundedUp(products)*4*lowInts)
	if p.Rotated > 0 {
		n += keptRotations * regionBytes(4*p.Rows*p.Rotated)
	}
	return n + int64(p.Sinks)*regionBytes(4*p.Heads.H)
}

// roundedUp bounds what roundUp returns for n and for parts of n, each rounded up.
func roundedUp(n int) int { return n + n/4 }

// regionBytes bounds a region that grows up to n bytes.
func regionBytes(n int) int64 { return int64(max(n+n/2, regionLeast)) }

// PackingBytes returns what Pack of a matrix allocates beside PackedBytes, for the time that it takes: a matrix that is
// decoded on the device lies there as in the file first.
func (s *Set) PackingBytes(w *kernel.Matrix[float32]) int64 {
	if w.Raw == nil || w.Packed != nil || s.multiplied(w, w.Plain) || s.kernels["embed_"+typeName(w.DType)] == nil {
		return 0
	}
	return (int64(len(w.Raw)) + 15) &^ 15
}
