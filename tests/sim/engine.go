package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// engine is the virtual clock: a heap of things to do, in the order of their times. Of two with the
// same time, the one that was planned first comes first.
type engine struct {
	now   time.Duration
	seq   uint64
	heap  []planned
	rnd   *rand.Rand
	trace io.Writer
	err   error // the first violation; the run ends with it
}

type planned struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (p planned) before(o planned) bool { return p.at < o.at || p.at == o.at && p.seq < o.seq }

// after plans something. It happens d from now.
func (e *engine) after(d time.Duration, do func()) {
	e.seq++
	e.heap = append(e.heap, planned{e.now + max(0, d), e.seq, do})
	h := e.heap
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h[i].before(h[parent]) {
			break
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

// step does the next thing. It returns false if nothing is planned.
func (e *engine) step() bool {
	if len(e.heap) == 0 {
		return false
	}
	top, last := e.heap[0], len(e.heap)-1
	e.heap[0] = e.heap[last]
	e.heap[last] = planned{}
	e.heap = e.heap[:last]
	h := e.heap
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(h[i]) {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	e.now = top.at
	top.do()
	return true
}

// between returns a random duration.
func (e *engine) between(from, to time.Duration) time.Duration {
	return from + time.Duration(e.rnd.Int64N(int64(max(1, to-from))))
}

func (e *engine) chance(p float64) bool { return p > 0 && e.rnd.Float64() < p }

// violate records that something happened that must not happen.
func (e *engine) violate(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf("at %v: "+format, append([]any{e.now}, args...)...)
		e.log("VIOLATION "+format, args...)
	}
}

// log adds a line to the transcript, if there is one.
func (e *engine) log(format string, args ...any) {
	if e.trace != nil {
		fmt.Fprintf(e.trace, "%12v  "+format+"\n", append([]any{e.now}, args...)...)
	}
}
