package shard

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// The test at the start. A single layer would stay in the processor's caches, which the layers of a whole stage do
// not. So several layers are measured, of as many bytes.
const (
	testBytes  = 96 << 20                // of weights that are measured
	testChunk  = 64                      // rows of a chunk
	testRows   = 24                      // single rows
	testRounds = 3                       // chunks
	testLimit  = 1500 * time.Millisecond // for the rows of one model
)

// Measure computes some rows of some layers of every offered model that has not been measured yet, so that a placer
// knows how fast this host is. It takes a second or two for each model, and returns early when ctx ends. A model that
// cannot be computed does not keep it from the others; the error names all of them.
func (s *Service) Measure(ctx context.Context) error {
	s.mu.Lock()
	var offers []*offer
	for _, digest := range slices.Sorted(maps.Keys(s.offers)) {
		if o := s.offers[digest]; o.measured.ms == 0 {
			offers = append(offers, o)
		}
	}
	s.mu.Unlock()
	var failed []error
	for _, o := range offers {
		t, err := s.measure(ctx, o)
		if err != nil {
			failed = append(failed, fault.Wrap(fault.CodeOf(err), err, "measure a layer of %s", o.name))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		s.mu.Lock()
		o.measured = t
		s.notifyLocked()
		s.mu.Unlock()
		s.log.Info("measured a layer", "model", o.name, "row_ms", t.ms, "further_row_ms", t.row)
	}
	return errors.Join(failed...)
}

// testSpan returns layers of the middle of a model with about testBytes, without the head if there are others.
func (o *offer) testSpan(memory int64) model.Range {
	limit := int64(testBytes)
	if memory > 0 {
		limit = min(limit, memory/2)
	}
	layers := len(o.sizes.Layers)
	r := model.Range{Lo: layers / 2, Hi: layers/2 + 1}
	bytes := o.sizes.Layers[r.Lo]
	for {
		grown := false
		if next := r.Hi; next < layers-1 && bytes+o.sizes.Layers[next] <= limit {
			bytes, r.Hi, grown = bytes+o.sizes.Layers[next], next+1, true
		}
		if next := r.Lo - 1; next > 0 && bytes+o.sizes.Layers[next] <= limit {
			bytes, r.Lo, grown = bytes+o.sizes.Layers[next], next, true
		}
		if !grown {
			return r
		}
	}
}

func (s *Service) measure(ctx context.Context, o *offer) (_ layerTime, err error) {
	defer func() {
		if r := recover(); r != nil { // a kernel, or a device that is out of memory
			err = fault.New(fault.Internal, "compute rows: %v", r)
		}
	}()
	span := o.testSpan(s.cfg.Memory)
	stage, err := model.Load(o.test, span, s.cfg.Kernels, model.LoadOptions{Encoder: o.test.Spec.Encoder()})
	if err != nil {
		return layerTime{}, fault.Wrap(fault.FailedPrecondition, err, "load layers %v", span)
	}
	rows := testRounds*testChunk + testRows
	cache := kvcache.New(stage.CacheConfig((rows+kvcache.DefaultPageLen-1)/kvcache.DefaultPageLen), stage.Kernels())
	seq := cache.NewSequence()
	defer func() { seq.Free() }()
	share := s.quotaShare()
	pos, limit := 0, time.Now().Add(testLimit)
	chunkRows, last := testChunk, rows
	if stage.Spec.Bounded() {
		last = min(last, stage.Spec.Context)
		chunkRows = min(chunkRows, last)
	}
	run := func(n int) (time.Duration, error) {
		if pos+n > last { // begin again: positions behind the context length cannot be computed
			pos = 0
		}
		if stage.Spec.Encoder() { // a text is computed at once
			seq.Free()
			seq, pos = cache.NewSequence(), 0
		}
		b := &model.Batch[float32]{Entries: []model.Entry[float32]{{Seq: seq, Pos: pos, Rows: n}}}
		switch {
		case !stage.Last():
		case stage.Spec.Encoder():
			b.Features, b.Entries[0].Logits = true, n
		default:
			b.Entries[0].Logits = min(1, n)
		}
		if stage.First() {
			b.IDs = make([]int32, n)
			for i := range b.IDs {
				b.IDs[i] = int32((pos + i) % stage.Spec.Vocab)
			}
		} else {
			b.Hidden = make([]float32, n*stage.Spec.Width)
			for i := range b.Hidden {
				b.Hidden[i] = float32(i%7)/7 - 0.5
			}
		}
		start, used := time.Now(), cputime.Process()
		_, err := stage.Forward(b)
		pos += n
		took := time.Since(start)
		if share < 1 {
			// Some rows run at full speed, and others stand still for most of a period. What a row takes in the long
			// run is its processor time over the quota. That does not depend on what else the machine does, either.
			took = time.Duration(float64(cputime.Process()-used) / s.cfg.Quota.Processors)
		}
		return took, err
	}
	var chunks, singles []time.Duration
	for range testRounds {
		took, err := run(chunkRows)
		if err != nil {
			return layerTime{}, err
		}
		chunks = append(chunks, took)
	}
	for range testRows {
		if ctx.Err() != nil {
			return layerTime{}, fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "measure layers %v", span)
		}
		if len(singles) > 0 && time.Now().After(limit) {
			break
		}
		took, err := run(1)
		if err != nil {
			return layerTime{}, err
		}
		singles = append(singles, took)
	}
	work := o.work(span)
	one, chunk := median(singles), slices.Min(chunks)
	ms := func(d time.Duration) float64 { return max(leastMS, d.Seconds()*1000/work) }
	out := layerTime{ms: ms(one), row: ms(max(0, chunk-one) / time.Duration(max(1, chunkRows-1)))}
	if share < 1 {
		out.share, out.period = share, s.cfg.Quota.Period.Seconds()*1000
	}
	return out, nil
}

// quotaShare returns the share of the time in which a quota lets all threads of the kernel set compute; 1 for always.
func (s *Service) quotaShare() float64 {
	if s.cfg.Quota.Processors <= 0 {
		return 1
	}
	return min(1, s.cfg.Quota.Processors/float64(max(1, s.cfg.Threads)))
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
