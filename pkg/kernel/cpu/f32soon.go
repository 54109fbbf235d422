package cpu

import "unsafe"

// soon is memory that will be read, to be asked for bit by bit.
type soon struct {
	regions []region
	quota   int
}

func (s *soon) reset() { s.regions, s.quota = s.regions[:0], 0 }

// region is lines of 64 bytes of rows ld bytes apart.
type region struct {
	p                     uintptr // never followed: it may be past the end
	ld, rows, lines, done int     // done: rows of the first line
}

// add asks for elements i0..i1-1 at depths k0..k0+n-1.
func (s *soon) add(x operand, i0, i1, k0, n int) {
	const line = 16
	var r region
	if x.rs == 1 {
		r = region{address(&x.data[k0*x.cs+i0]), 4 * x.cs, n, (i1 - i0 + line - 1) / line, 0}
	} else {
		r = region{address(&x.data[i0*x.rs+k0]), 4 * x.rs, i1 - i0, (n + line - 1) / line, 0}
	}
	s.regions = append(s.regions, r)
}

func address(p *float32) uintptr { return uintptr(unsafe.Pointer(p)) }

// share cuts what is asked for into about calls parts.
func (s *soon) share(calls int) {
	total := 0
	for _, r := range s.regions {
		total += r.rows * r.lines
	}
	s.quota = (total + calls - 1) / calls
}

// ask prefetches some parts.
func (s *soon) ask(o *gemmOps, parts int) {
	left := parts * s.quota
	for len(s.regions) > 0 && left > 0 {
		r := &s.regions[len(s.regions)-1]
		rows, lines := min(r.rows-r.done, left), 1
		if r.done == 0 && left >= 2*r.rows {
			lines = min(r.lines, left/r.rows)
		}
		o.prefetch(r.p+uintptr(r.done*r.ld), r.ld, rows, lines)
		left -= rows * lines
		if r.done += rows; r.done == r.rows {
			r.p, r.lines, r.done = r.p+uintptr(64*lines), r.lines-lines, 0
		}
		if r.lines == 0 {
			s.regions = s.regions[:len(s.regions)-1]
		}
	}
}
