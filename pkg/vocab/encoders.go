package vocab

import (
	"context"
	"runtime"
	"sync"
)

// encoders is a free list of encoders. It keeps their word caches. It holds at most one encoder per
// processor.
type encoders struct {
	mu   sync.Mutex
	free []*encoder
}

func (p *encoders) get(v *Vocab) *encoder {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		e := p.free[n-1]
		p.free = p.free[:n-1]
		return e
	}
	e := &encoder{v: v}
	if v.scanners != nil {
		e.cache.slots = make([]cached, cacheSlots)
	}
	return e
}

// largeScratch is the capacity up to which an encoder keeps its scratch buffers.
const largeScratch = 1 << 16

func (p *encoders) put(e *encoder) {
	e.o, e.plain, e.k.ids, e.k.spans = nil, plainSpans{}, nil, nil
	if cap(e.k.links) > largeScratch || cap(e.k.syms) > largeScratch || cap(e.k.best) > largeScratch {
		e.k = sink{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < runtime.GOMAXPROCS(0) {
		p.free = append(p.free, e)
	}
}

// parallelChunk is the number of bytes of a text that a worker takes at a time.
const parallelChunk = 1 << 16

// parallel is scan with several workers. The text is split where a piece begins
// whatever precedes it, and the ids are joined in order.
func (e *encoder) parallel(text string) error {
	var cuts []int
	for at := 0; at < len(text); {
		cuts = append(cuts, at)
		at = safeCut(text, at+parallelChunk)
	}
	parts := make([][]int32, len(cuts))
	errs := make([]error, len(cuts))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(e.o.Workers, len(cuts)) {
		wg.Go(func() {
			w := e.v.encoders.get(e.v)
			defer e.v.encoders.put(w)
			for i := range next {
				stop := len(text)
				if i+1 < len(cuts) {
					stop = cuts[i+1]
				}
				w.k.ids = make([]int32, 0, (stop-cuts[i])/4+8)
				errs[i] = w.scan(e.v.scanners, text, cuts[i], len(text), stop)
				parts[i] = w.k.ids
			}
		})
	}
	for i := range cuts {
		next <- i
	}
	close(next)
	wg.Wait()
	for i, part := range parts {
		if errs[i] != nil {
			return errs[i]
		}
		e.k.ids = append(e.k.ids, part...)
	}
	return nil
}

// safeCut returns the first position from at on where an ASCII letter follows a line
// feed, or the end of the text. Every style begins a piece there.
func safeCut(text string, at int) int {
	for at < len(text) {
		if text[at-1] == '\n' && asciiKinds[text[at]] == kindLetter {
			return at
		}
		at++
	}
	return len(text)
}

// Padding makes all encodings of a batch the same length.
type Padding struct {
	// ID is the padding token.
	ID int32
	// Left puts the padding before the text instead of after it.
	Left bool
	// Multiple is what the length is rounded up to a multiple of; 0 means one.
	Multiple int
	// Length is the minimum length.
	Length int
}

// EncodeBatch encodes texts on o.Workers goroutines and pads them unless pad is nil.
// It returns the error of the first text that fails, or that of ctx.
func (v *Vocab) EncodeBatch(ctx context.Context, texts []string, o Options, pad *Padding) ([]Encoding, error) {
	return v.batch(ctx, texts, o, pad, false)
}

// EncodeBatchSpans is EncodeBatch that also returns the span of every id.
func (v *Vocab) EncodeBatchSpans(ctx context.Context, texts []string, o Options, pad *Padding) ([]Encoding, error) {
	return v.batch(ctx, texts, o, pad, true)
}

func (v *Vocab) batch(ctx context.Context, texts []string, o Options, pad *Padding, spans bool) ([]Encoding, error) {
	out := make([]Encoding, len(texts))
	errs := make([]error, len(texts))
	workers := max(1, min(o.Workers, len(texts)))
	if len(texts) > 1 {
		o.Workers = 1
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				if errs[i] = ctx.Err(); errs[i] == nil {
					out[i], errs[i] = v.encode(texts[i], &o, spans)
				}
			}
		})
	}
	for i := range texts {
		next <- i
	}
	close(next)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if pad != nil {
		pad.apply(out)
	}
	return out, nil
}

func (p *Padding) apply(all []Encoding) {
	length := p.Length
	for i := range all {
		length = max(length, len(all[i].IDs))
	}
	if m := p.Multiple; m > 1 {
		length = (length + m - 1) / m * m
	}
	for i := range all {
		e := &all[i]
		n := length - len(e.IDs)
		fill := make([]int32, n, length)
		for k := range fill {
			fill[k] = p.ID
		}
		empty := make([][2]int, n)
		if p.Left {
			e.IDs = append(fill, e.IDs...)
			if e.Spans != nil {
				e.Spans = append(empty, e.Spans...)
			}
			continue
		}
		e.IDs = append(e.IDs, fill...)
		if e.Spans != nil {
			e.Spans = append(e.Spans, empty...)
		}
	}
}
