package cuda

import (
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// heldRotation has the sines and cosines of the positions of a batch on the device. The layers of a step share them.
// The next step's overwrite them in the same place, so that a graph finds them.
type heldRotation struct {
	of    *kernel.Rotary
	pos   []int32
	place region // the sines, and behind them the cosines
}

// keptRotations bounds the tables that are kept.
const keptRotations = 8

// withRotation puts the table of positions on the device unless it is there, and f into the queue, with the places of
// sines and cosines.
func (d *device) withRotation(r *kernel.Rotary, pos []int32, f func(w *worker, sin, cos driver.Address) error) {
	defer d.lockTables()()
	sin, cos := d.holdRotation(r, pos)
	d.send(func(w *worker) error { return f(w, sin, cos) })
}

// holdRotation puts the table of positions on the device. The caller holds tables.mu.
func (d *device) holdRotation(r *kernel.Rotary, pos []int32) (sin, cos driver.Address) {
	all := &d.tables.rotations
	i := slices.IndexFunc(*all, func(t *heldRotation) bool { return t.of == r })
	var t *heldRotation
	switch {
	case i >= 0:
		t = (*all)[i]
		*all = append(slices.Delete(*all, i, i+1), t) // the last used is the last
	case len(*all) == keptRotations:
		t = (*all)[0]
		t.of, t.pos = r, nil
		*all = append(slices.Delete(*all, 0, 1), t)
	default:
		t = &heldRotation{of: r}
		*all = append(*all, t)
	}
	half := r.Dims / 2
	bytes := 4 * len(pos) * half
	if t.place.grow(d.core, 2*bytes) || !slices.Equal(t.pos, pos) {
		d.rec.changes(t)
		t.pos = slices.Clone(pos)
		table := make([]float32, 2*len(pos)*half)
		for row, p := range pos {
			for i := range half {
				s, c := math.Sincos(float64(p) * r.At(int(p), i))
				table[row*half+i], table[(len(pos)+row)*half+i] = float32(s*r.Scale), float32(c*r.Scale)
			}
		}
		d.sendTable(t.place.at, bytesOf(table))
	}
	d.rec.uses(t)
	d.rec.rotates(r)
	return t.place.at, t.place.at + driver.Address(bytes)
}
