package shard

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// Limits of assignments.
const (
	maxAssigned  = 1 << 24                // positions of a KV cache
	maxGrace     = time.Minute            // of an Unload
	progressTick = 200 * time.Millisecond // between two frames of progress
	releaseTick  = 20 * time.Millisecond  // between two looks at the pipelines of a span that is being unloaded
	readChunk    = 1 << 20                // bytes that are read before the progress is counted
)

// load is a span that is being loaded.
type load struct {
	digest string
	span   model.Range
	total  int64 // bytes of weights to be read
	kv     int64 // bytes of its KV cache
	room   *room // on the device; nil in the host's memory
	done   chan struct{}

	replaced []*held       // are unloaded before the span is held
	grace    time.Duration // of pipelines that are open on them
	waiting  int           // calls of Assign
	cancel   func()        // ends the reading

	fetched, fetch atomic.Int64 // bytes of the files that are there, and that are needed; 0 if nothing is fetched
	read           atomic.Int64 // bytes read
	err            error        // set before done is closed
}

func (l *load) describe() *shardv1.Loading {
	return &shardv1.Loading{Digest: l.digest, Lo: uint32(l.span.Lo), Hi: uint32(l.span.Hi),
		DoneBytes: uint64(min(l.read.Load(), l.total)), TotalBytes: uint64(l.total),
		FetchedBytes: uint64(l.fetched.Load()), FetchBytes: uint64(l.fetch.Load())}
}

// Assign loads a span of layers beside what the shard holds.
func (s *Service) Assign(r *shardv1.AssignRequest, stream grpc.ServerStreamingServer[shardv1.AssignResponse]) error {
	if r.GetKvPositions() > maxAssigned {
		return fault.Field("kv_positions", "assign layers: want at most %d, got %d", maxAssigned, r.GetKvPositions())
	}
	if _, err := graceOf("assign", r.GetGraceMs()); err != nil {
		return err
	}
	o, span, err := s.spanOf(r.GetDigest(), r.GetLo(), r.GetHi())
	if err != nil {
		return err
	}
	l, h, err := s.beginLoad(o, span, r)
	if err != nil {
		return err
	}
	if l == nil {
		return stream.Send(&shardv1.AssignResponse{Frame: &shardv1.AssignResponse_Held{Held: h.describe()}})
	}
	defer s.leaveLoad(l)
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for waiting := true; waiting; {
		frame := &shardv1.AssignResponse{Frame: &shardv1.AssignResponse_Loading{Loading: l.describe()}}
		if err := stream.Send(frame); err != nil {
			return err
		}
		select {
		case <-l.done:
			waiting = false
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	if l.err != nil {
		return l.err
	}
	if h = s.holds(o.digest, span); h == nil { // it was unloaded in the meantime
		return fault.New(fault.Aborted, "assign layers %v of %s: they were unloaded again", span, o.name)
	}
	return stream.Send(&shardv1.AssignResponse{Frame: &shardv1.AssignResponse_Held{Held: h.describe()}})
}

// spanOf returns the offer and the layers that a request names.
func (s *Service) spanOf(digest string, lo, hi uint32) (*offer, model.Range, error) {
	s.mu.Lock()
	o := s.offers[digest]
	s.mu.Unlock()
	if o == nil {
		return nil, model.Range{},
			fault.New(fault.NotFound, "find model %.80q: this shard does not have its files", digest)
	}
	if layers := len(o.sizes.Layers); lo >= hi || hi > uint32(layers) {
		return nil, model.Range{}, fault.Field("hi", "find layers %d-%d of %s: want a part of its %d layers", lo, hi,
			o.name, layers)
	}
	return o, model.Range{Lo: int(lo), Hi: int(hi)}, nil
}

// fenced refuses a request of a placer that has been replaced. The caller holds mu.
func (s *Service) fenced(fence uint64) error {
	if !s.cfg.Assignable {
		return fault.New(fault.FailedPrecondition, "check the placer: this shard takes no assignments")
	}
	if fence < s.fence {
		return fault.New(fault.Aborted,
			"check the placer: fence %d is older than %d: another router is the placer", fence, s.fence).
			Because("OLD_FENCE")
	}
	s.fence = fence
	return nil
}

// beginLoad starts to load a span, or returns the load that has started already, or the span if it is held. The caller
// calls leaveLoad when it does not wait for the load any more.
func (s *Service) beginLoad(o *offer, span model.Range, r *shardv1.AssignRequest) (*load, *held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fenced(r.GetFence()); err != nil {
		return nil, nil, err
	}
	if h := s.holdsLocked(o.digest, span); h != nil {
		return nil, h, nil
	}
	for _, l := range s.loads {
		if l.digest == o.digest && l.span == span {
			l.waiting++
			return l, nil, nil
		}
	}
	if s.closed {
		return nil, nil, fault.New(fault.Unavailable, "assign layers: the shard is stopping")
	}
	if s.lost != nil {
		return nil, nil, s.lost
	}
	var beside []*model.Stage[float32]
	var spans []model.Range
	for _, h := range slices.Concat(s.held, s.retiring) {
		if h.digest == o.digest {
			beside, spans = append(beside, h.stage), append(spans, h.stage.Range)
		}
	}
	replaced, err := s.replacedBy(o, span, r.GetReplaces())
	if err != nil {
		return nil, nil, err
	}
	pages := s.pagesFor(int(r.GetKvPositions()))
	l := &load{digest: o.digest, span: span, total: o.files.SpanBytes(span, spans...), done: make(chan struct{}),
		kv:       int64(pages) * kvcache.DefaultPageLen * int64(span.Len()) * o.kvBytes,
		replaced: replaced, grace: time.Duration(r.GetGraceMs()) * time.Millisecond, waiting: 1}
	freed := s.freedFor(replaced, o)
	if l.room, err = s.reserveRoom(o.test, span, beside, pages, freed); err != nil {
		return nil, nil, fault.Wrap(fault.CodeOf(err), err, "assign layers %v of %s", span, o.name)
	}
	all, _ := s.used()
	all -= freed
	if s.device == nil && s.cfg.Memory > 0 && all+l.total+l.kv > s.cfg.Memory {
		return nil, nil, fault.New(fault.Exhausted, "assign layers %v of %s: they need %d bytes, and %d of %d are free",
			span, o.name, l.total+l.kv, max(0, s.cfg.Memory-all), s.cfg.Memory)
	}
	s.loads = append(s.loads, l)
	if l.room != nil {
		s.keepParts(beside...) // the load reads them, also if their spans are unloaded meanwhile
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l.cancel = cancel
	s.work.Go(func() {
		defer cancel()
		s.load(ctx, l, o, beside, spans, pages, r.GetVersion())
	})
	return l, nil, nil
}

// load reads the weights of a span and adds it to what the shard holds.
func (s *Service) load(
	ctx context.Context, l *load, o *offer, beside []*model.Stage[float32], spans []model.Range, pages int,
	version uint64,
) {
	start := time.Now()
	err := s.fetchSpan(ctx, o, l, nil)
	var progress func(int64) error
	switch {
	case err != nil:
	case s.device == nil:
		err = s.readAhead(ctx, o, l.span, spans, func(n int64) { l.read.Add(n) })
	default: // the copies to the device read the files
		progress = func(n int64) error {
			l.read.Add(n)
			return context.Cause(ctx)
		}
	}
	if ctx.Err() != nil && s.ctx.Err() == nil {
		err = l.abandoned()
	}
	var h *held
	room := false
	if err == nil {
		h, room, err = s.loadSpan(l, o, beside, pages, progress)
		if err != nil && ctx.Err() != nil && s.ctx.Err() == nil {
			err = l.abandoned()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads = slices.DeleteFunc(s.loads, func(other *load) bool { return other == l })
	if err == nil && s.lost != nil {
		err = s.lost
	}
	if err == nil {
		s.holdRoom(l.room, h.stage)
		s.held = append(s.held, h)
		s.loadedBytes += uint64(l.total)
		s.moved.Add(float64(l.total))
		s.log.Info("hold assigned layers", "model", o.name, "layers", l.span.String(), "bytes", l.total, "plan",
			version, "took", time.Since(start))
	} else {
		s.freeRoom(l.room)
		s.log.Warn("load assigned layers", "model", o.name, "layers", l.span.String(), "error", err)
		if room && s.lost == nil {
			s.takeBack(l)
		}
	}
	if l.room != nil {
		s.dropParts(beside...)
	}
	l.err = err
	close(l.done)
	s.notifyLocked()
}

// readAhead reads the tensors of a span, so that they are in the page cache of the operating system. count is called
// with the number of bytes read.
func (s *Service) readAhead(
	ctx context.Context, o *offer, span model.Range, held []model.Range, count func(int64),
) error {
	for _, name := range o.files.Span(span, held...) {
		data, err := o.files.Source.Data(name)
		if err != nil {
			return fault.Wrap(fault.FailedPrecondition, err, "read %s of %s", name, o.name)
		}
		for len(data) > 0 {
			if ctx.Err() != nil {
				return fault.Wrap(fault.Unavailable, ctx.Err(), "read %s of %s", name, o.name)
			}
			n := min(len(data), readChunk)
			touch(data[:n])
			count(int64(n))
			data = data[n:]
		}
	}
	return nil
}

// touch reads a byte of each page of memory. It is not inlined, so that the reads are not dropped.
//
//go:noinline
func touch(data []byte) byte {
	const page = 4096
	sum := byte(0)
	for i := 0; i < len(data); i += page {
		sum += data[i]
	}
	return sum
}

// holds returns the span if the shard holds it.
func (s *Service) holds(digest string, span model.Range) *held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holdsLocked(digest, span)
}

func (s *Service) holdsLocked(digest string, span model.Range) *held {
	for _, h := range s.held {
		if h.digest == digest && h.stage.Range == span {
			return h
		}
	}
	return nil
}

// Unload frees a span of layers that was assigned.
func (s *Service) Unload(r *shardv1.UnloadRequest, stream grpc.ServerStreamingServer[shardv1.UnloadResponse]) error {
	grace, err := graceOf("unload", r.GetGraceMs())
	if err != nil {
		return err
	}
	o, span, err := s.spanOf(r.GetDigest(), r.GetLo(), r.GetHi())
	if err != nil {
		return err
	}
	h, err := s.retire(o, span, r.GetFence(), grace)
	if err != nil {
		return err
	}
	if h == nil {
		return stream.Send(&shardv1.UnloadResponse{Done: true})
	}
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for {
		if err := stream.Send(&shardv1.UnloadResponse{Pipelines: uint32(h.open())}); err != nil {
			return err // the span is freed without a listener
		}
		select {
		case <-h.gone:
			return stream.Send(&shardv1.UnloadResponse{Done: true, Bytes: uint64(h.weightBytes)})
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// release waits until no pipeline is open on a span, ends those that are left after the grace, and forgets the span.
func (s *Service) release(h *held, grace time.Duration) {
	tick := time.NewTicker(releaseTick)
	defer tick.Stop()
	limit := time.Now().Add(grace)
	for !h.retired() {
		if !time.Now().Before(limit) {
			h.endAll(fault.New(fault.Unavailable, "run layers %v of %s: they are being unloaded", h.stage.Range,
				h.name))
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retiring = slices.DeleteFunc(s.retiring, func(other *held) bool { return other == h })
	s.dropRoom(h)
	s.log.Info("unload layers", "model", h.name, "layers", h.stage.Range.String(), "bytes", h.weightBytes)
	close(h.gone)
	s.notifyLocked()
}

// retire takes a span off the list of those that pipelines may open on. It returns nil if the shard does not have it.
// A span that is retiring already is returned again.
func (s *Service) retire(o *offer, span model.Range, fence uint64, grace time.Duration) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fenced(fence); err != nil {
		return nil, err
	}
	for _, h := range s.retiring {
		if h.digest == o.digest && h.stage.Range == span {
			return h, nil
		}
	}
	h := s.holdsLocked(o.digest, span)
	switch {
	case h == nil:
		return nil, nil
	case s.closed:
		return nil, fault.New(fault.Unavailable, "unload layers: the shard is stopping")
	}
	if !h.assigned {
		return nil, fault.New(fault.FailedPrecondition, "unload layers %v of %s: they were given by flag", span, o.name)
	}
	s.retireLocked(h, grace)
	return h, nil
}

// retireLocked takes a span that is held off the list, and begins to free it.
func (s *Service) retireLocked(h *held, grace time.Duration) {
	s.held = slices.DeleteFunc(s.held, func(other *held) bool { return other == h })
	s.retiring = append(s.retiring, h)
	s.notifyLocked()
	s.work.Go(func() { s.release(h, grace) })
}

// open returns the number of pipelines that are open on the span.
func (h *held) open() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.pipelines)
}

// retired reports whether no pipeline is open on the span and no call computes embeddings. Then none can begin any
// more, not even a call that found the span before it was taken off the list, and the memory of its adapters is free.
func (h *held) retired() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pipelines) > 0 || h.embeds > 0 { // a call of Embed has a deadline
		return false
	}
	h.unloaded = true
	h.freeAdapters()
	return true
}

// endAll ends all pipelines on the span, and drops the detached ones.
func (h *held) endAll(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.pipelines {
		if p.detached {
			p.grace.Stop()
			h.dropLocked(p)
			continue
		}
		p.fail(err)
	}
}

// Prefetch reads the files of a span ahead, and fetches what is missing of them.
func (s *Service) Prefetch(
	r *shardv1.PrefetchRequest, stream grpc.ServerStreamingServer[shardv1.PrefetchResponse],
) error {
	o, span, err := s.spanOf(r.GetDigest(), r.GetLo(), r.GetHi())
	if err != nil {
		return err
	}
	l := &load{digest: o.digest, span: span, total: o.files.SpanBytes(span)}
	var failed error
	last := time.Now()
	tell := func() {
		if time.Since(last) >= progressTick && failed == nil {
			last = time.Now()
			failed = stream.Send(&shardv1.PrefetchResponse{Loading: l.describe()})
		}
	}
	if err = s.fetchSpan(stream.Context(), o, l, tell); err != nil {
		return err
	}
	err = s.readAhead(stream.Context(), o, span, nil, func(n int64) {
		l.read.Add(n)
		tell()
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	l.read.Store(l.total)
	return stream.Send(&shardv1.PrefetchResponse{Loading: l.describe()})
}
