package shard

import (
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// peaks measures how fast a kernel set multiplies matrices, for each precision. A machine that is busy is measured as
// slower than it is, so it is measured again from time to time, and the best result counts.
type peaks struct {
	mu   sync.Mutex
	seen map[bool]peak // by whether operands are rounded to bfloat16
}

// peak is the best result so far.
type peak struct {
	flops float64
	at    time.Time // of the last measurement
}

// The sizes of the products that are measured, [rows, side] by [side, side]. A set that is slow in the small one
// is not made to compute the large one.
const (
	peakSmall = 64
	peakLarge = 512
	peakBytes = 3 * 4 * peakLarge * peakLarge // of the operands and the result
	peakTime  = 30 * time.Millisecond
	peakAgain = time.Minute
)

// of returns floating-point operations a second: those of the fastest product within peakTime, or of an
// earlier one.
func (p *peaks) of(set kernel.Set[float32]) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	rounds := set.UsesBFloat16()
	last := p.seen[rounds]
	if last.flops > 0 && time.Since(last.at) < peakAgain {
		return last.flops
	}
	best := product(set, peakSmall, peakTime/10)
	if large := 2.0 * peakLarge * peakLarge * peakLarge; large/best < peakTime.Seconds() {
		best = max(best, product(set, peakLarge, peakTime))
	}
	if p.seen == nil {
		p.seen = map[bool]peak{}
	}
	p.seen[rounds] = peak{max(best, last.flops), time.Now()}
	return p.seen[rounds].flops
}

// product measures the product of two square matrices.
func product(set kernel.Set[float32], side int, limit time.Duration) float64 {
	memory := set.Scope()
	defer runtime.KeepAlive(memory)
	x, y := memory.Alloc(side*side), memory.Alloc(side*side)
	w := kernel.Matrix[float32]{Rows: side, Cols: side, Dense: memory.Alloc(side * side)}
	var done [1]float32
	best := math.Inf(1)
	for end := time.Now().Add(limit); ; {
		begin := time.Now()
		set.MatMul(y, x, &w, nil, side)
		set.Download(done[:], y[:1]) // a device computes until then
		best = min(best, max(time.Since(begin).Seconds(), 1e-9))
		if time.Now().After(end) {
			return 2 * math.Pow(float64(side), 3) / best
		}
	}
}
