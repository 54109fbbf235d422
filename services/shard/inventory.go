package shard

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// offer is a model whose files the shard has.
type offer struct {
	name, digest string
	files        *model.Files
	test         *model.Files // to measure speed and sizes: files, but holes are read as zeros
	sizes        model.Sizes
	kvBytes      int64 // of one position in one layer
	measured     layerTime
	// fetch brings tensors whose bytes are missing; nil if none are.
	fetch func(ctx context.Context, names []string, progress func(done, total int64)) error
}

// layerTime is how long a layer takes that has the average size of the model's.
type layerTime struct {
	ms, row float64 // of a row alone, and of each further one
	live    bool
	// share of each period of processor time that the host may use, if the times are those of one that computes all the
	// time; else 0.
	share, period float64
}

// mean returns the average number of bytes that a row reads of a layer.
func (o *offer) mean() float64 {
	sum := 0.0
	for _, n := range o.sizes.Read {
		sum += float64(n)
	}
	return max(1, sum/float64(len(o.sizes.Read)))
}

// work returns the work of a span, in layers of average size: that of its layers, and of the head if it is last.
func (o *offer) work(r model.Range) float64 {
	sum := 0.0
	for _, n := range o.sizes.Read[r.Lo:r.Hi] {
		sum += float64(n)
	}
	if r.Hi == len(o.sizes.Read) {
		sum += float64(o.sizes.Head)
	}
	return sum / o.mean()
}

// Offer lets a placer assign layers of an open model to this shard. The files must stay open.
func (s *Service) Offer(name, digest string, files *model.Files) {
	s.offer(name, digest, files, files, nil)
}

func (s *Service) offer(
	name, digest string, files, test *model.Files, fetch func(context.Context, []string, func(done, total int64)) error,
) {
	o := &offer{name: name, digest: digest, files: files, test: test, sizes: files.Sizes(), fetch: fetch,
		kvBytes: files.Spec.KVBytes(s.cfg.Kernels.KV())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.offers[digest] == nil { // the same model under two names is one
		s.offers[digest] = o
	}
	s.notifyLocked()
}

// pace measures what batches of a span take.
type pace struct {
	mu      sync.Mutex
	one     average // of batches of one row, in microseconds
	further average // of each further row of a large batch
}

const (
	paceShare = 0.1  // of the newest value in an average
	largeRows = 16   // from which a batch says what a further row takes
	liveAfter = 32   // values after which live times replace those of the test at the start
	leastMS   = 1e-6 // of a time in milliseconds
)

// average is a moving average.
type average struct {
	value float64
	n     int
}

func (a *average) add(v float64) {
	a.n++
	// The first values count as much as each other, so that a cold first one does not last.
	a.value += (v - a.value) * max(paceShare, 1/float64(a.n))
}

// observe counts a batch of rows that took a time in microseconds.
func (p *pace) observe(rows int, us float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case rows == 1:
		p.one.add(us)
	case rows >= largeRows && p.one.n > 0:
		p.further.add(max(0, us-p.one.value) / float64(rows-1))
	}
}

func (p *pace) read() (one, further average) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.one, p.further
}

// kvBytes returns the bytes of the span's KV cache when it is full.
func (h *held) kvBytes(o *offer) int64 {
	c := h.cache.Config()
	perLayer := int64(0)
	if o != nil {
		perLayer = o.kvBytes
	} else {
		perLayer = h.stage.Spec.KVBytes(h.stage.Kernels().KV())
	}
	return int64(c.Pages) * int64(c.PageLen) * int64(c.Layers) * perLayer
}

// used returns the bytes that all spans and loads take, and those of them that are KV caches. Weights that several
// spans of a model share count once. The caller holds mu.
func (s *Service) used() (all, kv int64) {
	before := map[string][]model.Range{} // the spans of each model that have been counted
	kept := s.kept()
	for _, h := range slices.Concat(s.held, s.retiring, kept) {
		o := s.offers[h.digest]
		n, weights := h.kvBytes(o), h.weightBytes
		if slices.Contains(kept, h) {
			n = 0 // its cache is free
		}
		if shared := before[h.digest]; o != nil && len(shared) > 0 {
			weights = o.files.SpanBytes(h.stage.Range, shared...)
		}
		before[h.digest] = append(before[h.digest], h.stage.Range)
		all, kv = all+n+weights, kv+n
	}
	for _, l := range s.loads {
		all, kv = all+l.total+l.kv, kv+l.kv
	}
	if s.device != nil {
		all = s.usedOnDevice()
	}
	return all, kv
}

// inventory describes the host. The caller holds mu.
func (s *Service) inventory() *shardv1.Inventory {
	all, kv := s.used()
	out := &shardv1.Inventory{
		Assignable: s.cfg.Assignable, MemoryBytes: uint64(s.cfg.Memory),
		MemoryFreeBytes: uint64(max(0, s.cfg.Memory-all)),
		KvBytes:         uint64(kv), Processors: uint32(runtime.NumCPU()), Devices: []string{s.cfg.Kernels.Name()},
		Zone: s.cfg.Zone, Fence: s.fence, LoadedBytes: s.loadedBytes,
	}
	for _, digest := range slices.Sorted(maps.Keys(s.offers)) {
		o := s.offers[digest]
		e := &shardv1.Offer{
			Model: o.name, Digest: digest, EmbeddingBytes: uint64(o.sizes.Embedding), HeadBytes: uint64(o.sizes.Head),
			Tied: o.files.Spec.Head.Tied, KvBytes: uint64(o.kvBytes), HiddenBytes: uint64(o.files.Spec.Width) * 4,
			Context: uint32(o.files.Spec.Context), Encoder: o.files.Spec.Encoder(),
		}
		for l := range o.sizes.Layers {
			e.LayerBytes = append(e.LayerBytes, uint64(o.sizes.Layers[l]))
			e.ReadBytes = append(e.ReadBytes, uint64(o.sizes.Read[l]))
		}
		out.Offers = append(out.Offers, e)
		if t := s.layerTime(o); t.ms > 0 {
			out.Times = append(out.Times, &shardv1.LayerTime{Digest: digest, LayerBytes: uint64(o.mean()),
				DecodeMs: t.ms, RowMs: t.row, Live: t.live, QuotaShare: t.share, QuotaMs: t.period})
		}
	}
	for _, l := range s.loads {
		out.Loading = append(out.Loading, l.describe())
	}
	return out
}

// layerTime returns what a layer of a model takes: as batches of requests have shown, or else the test at the start.
// The caller holds mu.
func (s *Service) layerTime(o *offer) layerTime {
	t := o.measured
	for _, h := range s.held {
		one, further := h.pace.read()
		if h.digest != o.digest || one.n < liveAfter {
			continue
		}
		work := o.work(h.stage.Range)
		t.ms, t.live, t.share, t.period = max(leastMS, one.value/1000/work), true, 0, 0
		if further.n > 0 { // a batch may take no longer than a row, and 0 would stand for a default
			t.row = max(leastMS, further.value/1000/work)
		}
	}
	return t
}

// Changed returns a channel that is closed at the next change of what the shard holds or offers.
func (s *Service) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// notifyLocked wakes those that wait for a change. The caller holds mu.
func (s *Service) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// maxMeta bounds a value of Meta; Consul takes 512 bytes.
const maxMeta = 400

// Meta returns the short form of the inventory for discovery. Routers describe a shard again when it changes.
func (s *Service) Meta() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, _ := s.used()
	var spans, times []string
	for _, h := range s.held {
		spans = append(spans, fmt.Sprintf("%.8s:%d-%d", strings.TrimPrefix(h.digest, "sha256:"), h.stage.Range.Lo,
			h.stage.Range.Hi))
	}
	for _, digest := range slices.Sorted(maps.Keys(s.offers)) {
		o := s.offers[digest]
		times = append(times, fmt.Sprintf("%.8s:%.0f", strings.TrimPrefix(digest, "sha256:"), 1000*o.measured.ms))
	}
	slices.Sort(spans)
	return map[string]string{
		"auto": "true", "class": s.cfg.Kernels.Class(), "zone": s.cfg.Zone,
		"memory": strconv.FormatInt(s.cfg.Memory, 10), "free": strconv.FormatInt(max(0, s.cfg.Memory-all), 10),
		"spans": short(spans), "layer_us": short(times),
	}
}

// short joins a list and cuts it to the length that discovery takes.
func short(list []string) string {
	out := ""
	for i, v := range list {
		if len(out)+len(v) > maxMeta {
			return fmt.Sprintf("%s +%d", out, len(list)-i)
		}
		if out += v; i+1 < len(list) {
			out += ","
		}
	}
	return out
}

// pagesFor returns the number of KV pages for positions.
func (s *Service) pagesFor(positions int) int {
	if positions == 0 {
		positions = s.cfg.KVPositions
	}
	return (positions + kvcache.DefaultPageLen - 1) / kvcache.DefaultPageLen
}
