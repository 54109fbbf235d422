package cuda

import (
	"math"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Low-rank products of all adapters of a call are two launches over a table, which has an entry for each 16 rows of a
// product. x·Aᵀ lies in the workspace between them.

const (
	lowInts = 16   // of an entry
	lowRows = 16   // of x in an entry, at most
	lowMost = 4096 // entries of a launch
)

// lowWide is the number of columns of a block of low_up and of low_down.
var lowWide = [2]int{16, 64}

// lowTable has the products of a call.
type lowTable struct {
	list   []int32 // [N,16]
	blocks [2]int  // that low_up and low_down need in x
	work   int64   // bytes of workspace
}

func (t *lowTable) entries() int { return len(t.list) / lowInts }

// LowRanks adds low-rank products to their y. It does not use U and V. Products that round to bfloat16 are computed
// one after another: those are of training, with one adapter.
func (s *Set) LowRanks(products []kernel.LowRank[float32]) {
	const op = "low rank"
	if s.bf16 {
		if len(products) > 0 {
			s.rec.refuse("low-rank products that round to bfloat16")
		}
		kernel.AddEachLowRank[float32](s, products)
		return
	}
	up, down := s.need(op, "low_up"), s.need(op, "low_down")
	t := s.lowTable(op, products)
	s.workspace(t.work)
	if s.rec != nil {
		site := &lowSite{lowTable: t}
		s.rec.lows = append(s.rec.lows, site)
		s.send(func(w *worker) error { return w.lowRanks(up, down, site.at, site.room, site.blocks) })
		return
	}
	for at := 0; at < t.entries(); at += lowMost {
		part := t.list[at*lowInts : min(at+lowMost, t.entries())*lowInts]
		s.send(func(w *worker) error {
			place, err := w.stage(bytesOf(part))
			if err != nil {
				return err
			}
			return w.lowRanks(up, down, place, len(part)/lowInts, t.blocks)
		})
	}
}

// lowRanks launches both halves of n entries of a table.
func (w *worker) lowRanks(up, down *Kernel, table driver.Address, n int, blocks [2]int) error {
	for i, k := range []*Kernel{up, down} {
		if n == 0 || blocks[i] == 0 {
			continue
		}
		grid := driver.Dim{X: uint32(blocks[i]), Y: uint32(n), Z: 1}
		if err := w.launch(k, grid, 0, table, w.work); err != nil {
			return err
		}
	}
	return nil
}

// lowTable makes the table of products.
func (s *Set) lowTable(op string, products []kernel.LowRank[float32]) (t lowTable) {
	u := 0 // elements of x·Aᵀ so far
	for i := range products {
		p := &products[i]
		in, rank, out := p.A.Cols, p.A.Rows, p.B.Rows
		must(op, "columns of B", p.B.Cols, rank)
		must(op, "x", len(p.X), p.Rows*in)
		must(op, "y", len(p.Y), p.Rows*out)
		must(op, "A", len(p.A.Dense), rank*in)
		must(op, "B", len(p.B.Dense), out*rank)
		a, b := address(s.device, op, p.A.Dense), address(s.device, op, p.B.Dense)
		x, y := address(s.device, op, p.X), address(s.device, op, p.Y)
		t.blocks[0] = max(t.blocks[0], int(blocks(rank, lowWide[0])))
		t.blocks[1] = max(t.blocks[1], int(blocks(out, lowWide[1])))
		for row := 0; row < p.Rows; row += lowRows {
			n := min(lowRows, p.Rows-row)
			for _, at := range []driver.Address{x + driver.Address(4*row*in), y + driver.Address(4*row*out), a, b} {
				t.list = append(t.list, int32(uint32(at)), int32(uint32(at>>32)))
			}
			t.list = append(t.list, int32(uint32(u)), int32(n), int32(in), int32(rank), int32(out),
				int32(math.Float32bits(float32(p.Scale))), 0, 0)
			u += n * rank
		}
	}
	t.work = (4*int64(u) + 15) &^ 15
	return t
}

// LowScratch reports whether LowRanks uses U and V.
func (s *Set) LowScratch() bool { return s.bf16 }

// PackLowRank leaves factors as they are.
func (*Set) PackLowRank([][]kernel.Factors[float32]) {}

// lowSite is a call of LowRanks in a graph. Its table lies where the graph reads it, with room for more entries than it
// has: the others are zero, and blocks of them end at once. So the rows of a later step may have other adapters.
type lowSite struct {
	lowTable
	room int            // entries
	at   driver.Address // of the table; the caller of the graph's operations sets it
}

// growLows gives the sites of a new graph room for more entries, and no less room than those of the graph of its kind
// that was before, if there was one.
func growLows(sites, before []*lowSite) {
	for i, s := range sites {
		s.room = roundUp(s.entries())
		if len(before) == len(sites) {
			s.room = max(s.room, before[i].room)
			for half := range s.blocks {
				s.blocks[half] = max(s.blocks[half], before[i].blocks[half])
			}
		}
	}
}

// lowsFit reports whether the tables of a step fit the sites of a graph.
func lowsFit(sites, tables []*lowSite) bool {
	if len(sites) != len(tables) {
		return false
	}
	for i, s := range sites {
		t := tables[i]
		if t.entries() > s.room || t.blocks[0] > s.blocks[0] || t.blocks[1] > s.blocks[1] {
			return false
		}
	}
	return true
}

// lowList returns the tables of a step one behind the other, where the sites of a graph read them.
func lowList(sites, tables []*lowSite) (list []int32) {
	for i, s := range sites {
		list = append(list, tables[i].list...)
		list = append(list, make([]int32, s.room*lowInts-len(tables[i].list))...)
	}
	return list
}
