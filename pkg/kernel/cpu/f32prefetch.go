package cpu

import "unsafe"

// prefetchPlan is memory that will be read. It is prefetched a few lines at a time, between the tiles
// of a product: a burst of prefetches would stall the tile that follows it.
type prefetchPlan struct {
	regions []region
	quota   int // lines in a part
}

// reset empties the plan.
func (p *prefetchPlan) reset() { p.regions, p.quota = p.regions[:0], 0 }

// region is a number of cache lines in each of several rows, which are ld bytes apart.
type region struct {
	at                    uintptr // never dereferenced: it may be past the end
	ld, rows, lines, done int     // done: rows whose first line is prefetched
}

// add plans to prefetch elements i0..i1-1 at depths k0..k0+n-1.
func (p *prefetchPlan) add(x operand, i0, i1, k0, n int) {
	const line = 16
	var r region
	if x.rs == 1 {
		r = region{address(&x.data[k0*x.cs+i0]), 4 * x.cs, n, (i1 - i0 + line - 1) / line, 0}
	} else {
		r = region{address(&x.data[i0*x.rs+k0]), 4 * x.rs, i1 - i0, (n + line - 1) / line, 0}
	}
	p.regions = append(p.regions, r)
}

// run plans to prefetch consecutive memory.
func (p *prefetchPlan) run(x []float32) {
	if len(x) > 0 {
		p.add(rowsOf(x, len(x)), 0, 1, 0, len(x))
	}
}

func address(p *float32) uintptr { return uintptr(unsafe.Pointer(p)) }

// spread cuts the plan into about as many parts as there will be calls of issue.
func (p *prefetchPlan) spread(calls int) {
	total := 0
	for _, r := range p.regions {
		total += r.rows * r.lines
	}
	p.quota = (total + calls - 1) / calls
}

// issue prefetches the lines of some parts.
func (p *prefetchPlan) issue(o *gemmOps, parts int) {
	left := parts * p.quota
	for len(p.regions) > 0 && left > 0 {
		r := &p.regions[len(p.regions)-1]
		rows, lines := min(r.rows-r.done, left), 1
		if r.done == 0 && left >= 2*r.rows {
			lines = min(r.lines, left/r.rows)
		}
		o.prefetch(r.at+uintptr(r.done*r.ld), r.ld, rows, lines)
		left -= rows * lines
		if r.done += rows; r.done == r.rows {
			r.at, r.lines, r.done = r.at+uintptr(64*lines), r.lines-lines, 0
		}
		if r.lines == 0 {
			p.regions = p.regions[:len(p.regions)-1]
		}
	}
}
