package cpu

import (
	"runtime"
	"time"
	"unsafe"
)

// Peaks are the rates of loops that only multiply and add registers, on all threads of a set at once, in
// 10⁹ operations a second; a multiply-add counts as two. A rate is zero if the instructions have no such
// loop.
type Peaks struct {
	Float32  float64 // fused multiply-adds
	Int8     float64 // products of bytes, as quantised weights use them
	BFloat16 float64 // products of bfloat16
}

// probes are the measuring loops of one instruction family, and the operations in one of their rounds.
type probes struct {
	float32, int8, bfloat16 func(n int)
	floats, bytes, pairs    float64

	read func(p *byte, quads int) // lines of 64 bytes, four at a time
}

// probeRounds is the number of rounds in a piece of a probe, some tens of microseconds.
const probeRounds = 1 << 14

// Peaks measures each rate for about the given time.
func (s *Set) Peaks(each time.Duration) Peaks {
	p := s.probes
	return Peaks{s.rate(p.float32, p.floats, each), s.rate(p.int8, p.bytes, each), s.rate(p.bfloat16, p.pairs, each)}
}

// readPiece is the number of bytes that a thread reads at a time.
const readPiece = 1 << 20

// ReadRate returns the rate at which all threads together stream size bytes of memory, at least 2 MiB, in 10⁹ bytes a
// second. Each thread reads its own part from end to end and in huge pages, as products read weights. The result is
// the best of passes that take about the given time.
func (s *Set) ReadRate(size int, each time.Duration) float64 {
	pieces := size / readPiece
	data, free := mapHuge((size + hugePage - 1) &^ (hugePage - 1))
	defer free()
	s.pool.each(pieces, func(i int) { // pages that were never written share one physical page
		for at := i * readPiece; at < (i+1)*readPiece; at += 1 << 12 {
			data[at] = 1
		}
	})
	var best float64
	for began := time.Now(); time.Since(began) < each; {
		from := time.Now()
		s.pool.each(pieces, func(i int) { s.probes.read(&data[i*readPiece], readPiece/256) })
		best = max(best, float64(pieces*readPiece)/float64(time.Since(from).Nanoseconds()))
	}
	return best
}

// readPortable reads memory in words of 64 bits.
func readPortable(p *byte, quads int) {
	var all uint64
	for _, v := range unsafe.Slice((*uint64)(unsafe.Pointer(p)), 32*quads) {
		all |= v
	}
	runtime.KeepAlive(all)
}

// rate returns the best rate of several rounds on all threads.
func (s *Set) rate(loop func(n int), operations float64, each time.Duration) float64 {
	if loop == nil {
		return 0
	}
	var best float64
	threads := len(s.pool.parts)
	for began := time.Now(); time.Since(began) < each; {
		from := time.Now()
		const pieces = 16
		s.pool.each(pieces*threads, func(int) { loop(probeRounds) })
		best = max(best, operations*probeRounds*pieces*float64(threads)/float64(time.Since(from).Nanoseconds()))
	}
	return best
}
