package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// pool runs parallel loops on a fixed set of workers and the calling goroutine. It runs one
// loop at a time: a second caller finds the pool busy and runs its loop alone.
//
// A worker that has seen no loop for a while parks, and the next loop wakes it. No loop waits
// for a worker to wake up: threads that are awake do the work, and a worker that wakes up late takes the rest.
// Index i of n belongs to the same worker in every loop of n iterations, so that its data stay in
// that worker's cache. A worker that has finished its own part takes iterations of the others.
type pool struct {
	busy sync.Mutex // held by the caller of the running loop
	wg   sync.WaitGroup

	// The fields below are written by the holder of busy while gate is even and inside is 0.
	body  func(i int)
	parts []part

	gate    atomic.Uint64 // odd while workers may enter the running loop
	inside  atomic.Int32  // workers between entering and leaving
	closed  atomic.Bool
	workers []*worker
}

// part is a worker's part of a loop. It has cache lines of its own.
type part struct {
	next atomic.Int64
	end  int64
	_    [112]byte
}

// worker is a parked or spinning goroutine.
type worker struct {
	parked atomic.Bool
	wake   chan struct{} // one token at most
	_      [64]byte
}

// A worker spins for spinTime before it parks. That is longer than the gaps between the loops of one pass over a
// model, and too short to slow down other goroutines. It reads the clock after every spinsPerCheck spins. It does not
// count spins instead, because a PAUSE takes 40 cycles on one processor and 140 on another.
const (
	spinTime      = 80 * time.Microsecond
	spinsPerCheck = 16
)

func newPool(threads int) *pool {
	p := &pool{parts: make([]part, threads)}
	for i := range threads - 1 {
		w := &worker{wake: make(chan struct{}, 1)}
		p.workers = append(p.workers, w)
		p.wg.Go(func() { p.work(w, i+1) })
	}
	return p
}

// close ends the workers; no loop may run.
func (p *pool) close() {
	p.closed.Store(true)
	p.gate.Add(2)
	p.wakeParked()
	p.wg.Wait()
}

// wakeParked wakes the parked workers.
func (p *pool) wakeParked() {
	for _, w := range p.workers {
		if w.parked.Load() && w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
}

// work takes part in loops until close.
func (p *pool) work(w *worker, member int) {
	seen := uint64(0)
	for !p.closed.Load() {
		gate := p.await(w, seen)
		seen = gate
		if gate%2 == 0 {
			continue
		}
		p.inside.Add(1)
		if p.gate.Load() == gate {
			p.runParts(member)
		}
		p.inside.Add(-1)
	}
}

// await returns the gate once it differs from seen.
func (p *pool) await(w *worker, seen uint64) uint64 {
	for began := time.Now(); time.Since(began) < spinTime; {
		for range spinsPerCheck {
			if g := p.gate.Load(); g != seen {
				return g
			}
			pause()
		}
	}
	w.parked.Store(true)
	if g := p.gate.Load(); g != seen {
		if !w.parked.CompareAndSwap(true, false) {
			<-w.wake // the goroutine that cleared parked sends the token
		}
		return g
	}
	<-w.wake
	return p.gate.Load()
}

// runParts runs a worker's own part and then what is left of the other parts.
func (p *pool) runParts(member int) {
	body := p.body
	for k := range p.parts {
		t := &p.parts[(member+k)%len(p.parts)]
		for {
			i := t.next.Add(1) - 1
			if i >= t.end {
				break
			}
			body(int(i))
		}
	}
}

// each calls body for 0..n-1 and returns when all calls have returned.
func (p *pool) each(n int, body func(i int)) {
	if len(p.parts) == 1 || n <= 1 || !p.busy.TryLock() {
		for i := range n {
			body(i)
		}
		return
	}
	defer p.busy.Unlock()
	p.body = body
	for i := range p.parts {
		t := &p.parts[i]
		t.next.Store(int64(i * n / len(p.parts)))
		t.end = int64((i + 1) * n / len(p.parts))
	}
	p.gate.Add(1)
	defer p.endLoop()
	p.wakeParked()
	p.runParts(0)
}

// yieldAfter is the number of spins on late workers after which the caller yields its processor.
const yieldAfter = 200

// endLoop ends a loop: it lets no more workers enter, and waits for those that are inside.
func (p *pool) endLoop() {
	p.gate.Add(1)
	for n := 0; p.inside.Load() != 0; n++ {
		if n > yieldAfter {
			runtime.Gosched()
		} else {
			pause()
		}
	}
	p.body = nil
}
