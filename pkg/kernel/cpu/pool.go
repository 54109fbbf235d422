package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// pool spreads loops over a fixed crew: the caller and some workers. One loop runs
// at a time; a second caller finds the pool taken and runs its loop alone.
//
// A worker that has seen no loop for a while parks, and is woken by the next one. It
// is never waited for: whoever is awake does the work, and a late worker takes what
// is left. Index i of n belongs to the same member of the crew in every loop of n, so
// that what it read stays in its cache; members that are done help the others.
type pool struct {
	busy sync.Mutex // held by the caller of the running loop
	wg   sync.WaitGroup

	// What follows is written by the holder of busy while gate is even and nobody is
	// inside.
	body  func(i int)
	parts []part

	gate    atomic.Uint64 // odd while a loop may be entered
	inside  atomic.Int32  // workers between entering and leaving
	closed  atomic.Bool
	workers []*worker
}

// part is a member's share of a loop, alone on its cache lines.
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

// A worker looks for the next loop for so long before it parks: longer than the gaps within
// a pass over a model, and far shorter than anybody else in the process would notice. It
// reads the clock once in so many looks, since a pause takes 40 cycles on one processor
// and 140 on another.
const (
	patience = 80 * time.Microsecond
	looks    = 16
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
	p.rouse()
	p.wg.Wait()
}

// rouse wakes whoever is parked.
func (p *pool) rouse() {
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
			p.share(member)
		}
		p.inside.Add(-1)
	}
}

// await returns the gate once it is not seen.
func (p *pool) await(w *worker, seen uint64) uint64 {
	for began := time.Now(); time.Since(began) < patience; {
		for range looks {
			if g := p.gate.Load(); g != seen {
				return g
			}
			pause()
		}
	}
	w.parked.Store(true)
	if g := p.gate.Load(); g != seen {
		if !w.parked.CompareAndSwap(true, false) {
			<-w.wake // whoever cleared it sends the token
		}
		return g
	}
	<-w.wake
	return p.gate.Load()
}

// share does a member's own part and then what is left of the others'.
func (p *pool) share(member int) {
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

// each calls body for 0..n-1.
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
	defer p.shut()
	p.rouse()
	p.share(0)
}

// yieldAfter is how many looks the caller takes for late workers before it lets others run.
const yieldAfter = 200

// shut ends a loop: nobody may enter any more, and whoever is inside is waited for.
func (p *pool) shut() {
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
