package shard

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// loaded is an adapter on a held range: the part that belongs to the range's layers.
type loaded struct {
	digest   adapter.Sum
	name     string // for people
	base     string // that it was trained on; empty if that is not known
	weights  *model.Adapter[float32]
	bytes    int64 // that were reserved for it
	sessions int   // that use it
	leaving  bool  // new sessions may not use it, and it goes when there are no others
}

const (
	// adapterTime is how long loading an adapter may take: the router sends its tensors meanwhile.
	adapterTime = 5 * time.Minute
	// adapterIdle is the default of Config.AdapterIdle. No other adapter is loaded on the span meanwhile.
	adapterIdle = 15 * time.Second
	// maxAdapterName is the longest name of an adapter, in bytes.
	maxAdapterName = 64
)

// LoadAdapter implements the conversation of that name. While the tensors are put into the memory of the kernel set
// they are in memory twice. A stage keeps nothing of an adapter that it does not accept.
func (s *Service) LoadAdapter(
	stream grpc.BidiStreamingServer[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse],
) error {
	ctx, cancel := context.WithTimeoutCause(stream.Context(), adapterTime,
		fault.New(fault.DeadlineExceeded, "load adapter: its tensors did not arrive within %v", adapterTime))
	defer cancel()
	l := &adapterLoad{service: s, stream: stream, ctx: ctx, frames: make(chan *shardv1.LoadAdapterRequest),
		ended: make(chan error, 1)}
	go l.receive() // ends with the handler, since Recv does
	if err := l.run(); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "load adapter %.80q", l.open.GetName())
	}
	return nil
}

// adapterLoad is one call of LoadAdapter.
type adapterLoad struct {
	service *Service
	stream  grpc.BidiStreamingServer[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse]
	ctx     context.Context
	frames  chan *shardv1.LoadAdapterRequest
	ended   chan error
	open    *shardv1.LoadAdapterOpen
	held    *held
	outline *adapter.Outline
	digest  adapter.Sum
}

func (l *adapterLoad) receive() {
	for {
		req, err := l.stream.Recv()
		if err != nil {
			l.ended <- err
			return
		}
		select {
		case l.frames <- req:
		case <-l.ctx.Done():
			return
		}
	}
}

// next returns the next frame.
func (l *adapterLoad) next() (*shardv1.LoadAdapterRequest, error) {
	limit := l.service.cfg.AdapterIdle
	idle := time.NewTimer(limit)
	defer idle.Stop()
	select {
	case req := <-l.frames:
		return req, nil
	case err := <-l.ended:
		if errors.Is(err, io.EOF) {
			err = fault.Field("frame", "the stream ended before the adapter was complete")
		}
		return nil, rpc.FromStatus(err)
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	case <-idle.C:
		return nil, fault.New(fault.DeadlineExceeded, "no frame came for %v", limit)
	}
}

func (l *adapterLoad) run() error {
	first, err := l.next()
	if err != nil {
		return err
	}
	if l.open = first.GetOpen(); l.open == nil {
		return fault.Field("open", "the first frame must describe the adapter")
	}
	if err := l.check(); err != nil {
		return err
	}
	h := l.held
	select { // one at a time, so that the second of two equal loads finds the first
	case h.loading <- struct{}{}:
		defer func() { <-h.loading }()
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
	if bytes, ok := h.keep(l.digest, l.open.GetName()); ok {
		if err := l.wanted(nil, nil); err != nil {
			return err
		}
		return l.loaded(bytes)
	}
	var modules, saved []int
	var bytes int64
	for i := range l.outline.Modules {
		if m := &l.outline.Modules[i]; h.stage.Needs(m.Name) {
			modules, bytes = append(modules, i), bytes+m.Bytes()
			if m.Magnitude != nil && l.service.device != nil { // each has a factor beside it there
				bytes += 4 * int64(m.Out)
			}
		}
	}
	for i := range l.outline.Saved {
		if v := &l.outline.Saved[i]; h.stage.NeedsSaved(v.Name) {
			saved, bytes = append(saved, i), bytes+v.Bytes()
		}
	}
	if err := l.service.reserve(bytes); err != nil {
		return err
	}
	weights, err := l.take(modules, saved)
	if err != nil {
		l.service.unreserve(bytes)
		return err
	}
	a := &loaded{digest: l.digest, name: l.open.GetName(), base: l.open.GetBase(), weights: weights, bytes: bytes}
	if !h.install(a) {
		l.service.unreserve(bytes)
		return fault.New(fault.NotFound, "layers %v of %s were unloaded meanwhile", h.stage.Range, h.name)
	}
	l.service.log.Info("load adapter", "adapter", l.open.GetName(), "model", h.name, "layers", h.stage.Range.String(),
		"digest", l.digest.String(), "base", cmp.Or(l.open.GetBase(), "not recorded"), "modules", len(modules),
		"replaced", len(saved), "bytes", bytes)
	return l.loaded(bytes)
}

// check finds the range and compares the outline with the digest and the model.
func (l *adapterLoad) check() error {
	o := l.open
	var err error
	if l.held, err = l.service.find(o.GetDigest(), &shardv1.Hop{Lo: o.GetLo(), Hi: o.GetHi()}); err != nil {
		return err
	}
	if n := len(o.GetModules()) + len(o.GetSaved()); n > adapter.MaxModules {
		return fault.Field("open.modules", "%d are more than %d", n, adapter.MaxModules)
	}
	// Every description of the shard has these two.
	if n := len(o.GetName()); n > maxAdapterName {
		return fault.Field("open.name", "want at most %d bytes, got %d", maxAdapterName, n)
	}
	if _, ok := adapter.ParseSum(o.GetBase()); !ok && o.GetBase() != "" {
		return fault.Field("open.base", "want sha256: and 64 hexadecimal digits, got %.80q", o.GetBase())
	}
	l.outline = wire.Outline(o.GetModules(), o.GetSaved())
	if err := l.outline.Check(); err != nil {
		return err
	}
	if l.digest = l.outline.Digest(); string(l.digest[:]) != string(o.GetAdapter()) {
		return fault.New(fault.DataLoss, "its modules have the digest %s, not sha256:%x", l.digest, o.GetAdapter())
	}
	return l.held.stage.Spec.CheckAdapter(l.outline.Shapes())
}

func (l *adapterLoad) wanted(modules, saved []int) error {
	w := &shardv1.AdapterWanted{}
	for _, i := range modules {
		w.Modules = append(w.Modules, uint32(i))
	}
	for _, i := range saved {
		w.Saved = append(w.Saved, uint32(i))
	}
	return l.stream.Send(&shardv1.LoadAdapterResponse{Frame: &shardv1.LoadAdapterResponse_Wanted{Wanted: w}})
}

func (l *adapterLoad) loaded(bytes int64) error {
	return l.stream.Send(&shardv1.LoadAdapterResponse{Frame: &shardv1.LoadAdapterResponse_Loaded{
		Loaded: &shardv1.AdapterLoaded{Bytes: uint64(bytes)},
	}})
}

// take asks for the tensors of modules and for those that replace parameters, checks them and puts them into the
// memory of the kernel set.
func (l *adapterLoad) take(modules, saved []int) (*model.Adapter[float32], error) {
	if err := l.wanted(modules, saved); err != nil {
		return nil, err
	}
	out := &adapter.Adapter{}
	for _, i := range modules {
		m := &l.outline.Modules[i]
		a, err := l.tensor(adapter.Name(m.Name, adapter.A), m.Rank, m.In)
		if err != nil {
			return nil, err
		}
		b, err := l.tensor(adapter.Name(m.Name, adapter.B), m.Out, m.Rank)
		if err != nil {
			return nil, err
		}
		var magnitude []float32
		if m.Magnitude != nil {
			out.DoRA = true
			if magnitude, err = l.tensor(adapter.Name(m.Name, adapter.Magnitude), m.Out); err != nil {
				return nil, err
			}
		}
		filled, err := m.Fill(a, b, magnitude)
		if err != nil {
			return nil, err
		}
		out.Modules = append(out.Modules, filled)
	}
	for _, i := range saved {
		v := &l.outline.Saved[i]
		values, err := l.tensor(v.Name, v.Shape...)
		if err != nil {
			return nil, err
		}
		filled, err := v.Fill(values)
		if err != nil {
			return nil, err
		}
		out.Saved = append(out.Saved, filled)
	}
	return l.held.stage.ServeAdapter(out)
}

// tensor receives a tensor of a shape.
func (l *adapterLoad) tensor(name string, shape ...int) ([]float32, error) {
	size := 4
	for _, d := range shape {
		size *= d
	}
	asm := wire.NewAssembler(size)
	for started := false; ; started = true {
		req, err := l.next()
		if err != nil {
			return nil, err
		}
		var done bool
		switch {
		case !started && req.GetTensor() != nil:
			got := req.GetTensor().GetShape()
			if !slices.EqualFunc(got, shape, func(x uint32, y int) bool { return int64(x) == int64(y) }) {
				return nil, fault.Field("tensor.shape", "%v of %s, want %v", got, name, shape)
			}
			done, err = asm.Start(req.GetTensor())
		case started && req.GetChunk() != nil:
			done, err = asm.Add(req.GetChunk())
		default:
			err = fault.Field("frame", "%T is not allowed in %s", req.GetFrame(), name)
		}
		if err != nil {
			return nil, err
		}
		if done {
			return asm.Float32(nil)
		}
	}
}

// reserve takes memory for an adapter, of the limit of adapters and of the device.
func (s *Service) reserve(bytes int64) error {
	if used := s.reserved.Add(bytes); used > s.cfg.AdapterBytes {
		s.reserved.Add(-bytes)
		return fault.New(fault.Exhausted, "it takes %d bytes, and adapters have %d of %d already", bytes, used-bytes,
			s.cfg.AdapterBytes)
	}
	if s.device == nil {
		return nil
	}
	err := s.device.Reserve(bytes)
	if err != nil {
		s.reserved.Add(-bytes)
		return fault.Wrap(fault.Exhausted, err, "reserve %d bytes for it", bytes)
	}
	return nil
}

// unreserve gives back what reserve has taken.
func (s *Service) unreserve(bytes int64) {
	s.reserved.Add(-bytes)
	if s.device != nil {
		s.device.Unreserve(bytes)
	}
}

// keep finds an adapter that is held already, and takes an unload back.
func (h *held) keep(digest adapter.Sum, name string) (bytes int64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.adapters[digest]
	if a == nil {
		return 0, false
	}
	a.leaving, a.name = false, name
	return a.bytes, true
}

// install adds an adapter. It returns false if the span has been unloaded.
func (h *held) install(a *loaded) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unloaded {
		return false
	}
	h.adapters[a.digest] = a
	return true
}

// adapterOf returns the adapter that the first entry of a session names, or nil. The caller holds mu.
func (h *held) adapterOf(e *shardv1.Entry) (*loaded, error) {
	name := e.GetAdapter()
	if len(name) == 0 {
		return nil, nil
	}
	if len(name) != len(adapter.Sum{}) {
		return nil, fault.New(fault.Invalid, "an adapter's digest of %d bytes, want %d", len(name), len(adapter.Sum{}))
	}
	a := h.adapters[adapter.Sum(name)]
	if a == nil || a.leaving {
		return nil, fault.New(fault.NotFound, "adapter sha256:%x is not loaded on layers %v of %s", name, h.stage.Range,
			h.name)
	}
	return a, nil
}

// is reports whether the adapter is the one that an entry names. a is nil for none.
func (a *loaded) is(e *shardv1.Entry) bool {
	if a == nil {
		return len(e.GetAdapter()) == 0
	}
	return string(a.digest[:]) == string(e.GetAdapter())
}

// forward returns the adapter as entries of a batch name it, or nil.
func (a *loaded) forward() *model.Adapter[float32] {
	if a == nil {
		return nil
	}
	return a.weights
}

// addSession and dropSession keep the sessions of a range and count those of each adapter. The caller holds mu.
func (h *held) addSession(name string, s *session) {
	h.sessions[name] = s
	if s.adapter != nil {
		s.adapter.sessions++
	}
}

func (h *held) dropSession(name string, s *session) {
	if s.table != nil {
		s.table.Free()
	}
	delete(h.sessions, name)
	h.freeRow(s)
	s.endSpan()
	if s.adapter != nil {
		s.adapter.sessions--
		h.dropUnused(s.adapter)
	}
}

// dropUnused frees an adapter that is being unloaded and has no sessions left. The caller holds mu.
func (h *held) dropUnused(a *loaded) {
	if a.leaving && a.sessions == 0 && h.adapters[a.digest] == a {
		delete(h.adapters, a.digest)
		h.unreserve(a.bytes)
	}
}

// freeAdapters gives back the memory of all adapters of a span that is unloaded. The caller holds mu.
func (h *held) freeAdapters() {
	for digest, a := range h.adapters {
		delete(h.adapters, digest)
		h.unreserve(a.bytes)
	}
}

// UnloadAdapter implements the call of that name.
func (s *Service) UnloadAdapter(
	_ context.Context, r *shardv1.UnloadAdapterRequest,
) (*shardv1.UnloadAdapterResponse, error) {
	h, err := s.find(r.GetDigest(), &shardv1.Hop{Lo: r.GetLo(), Hi: r.GetHi()})
	if err != nil {
		return nil, err
	}
	if len(r.GetAdapter()) != len(adapter.Sum{}) {
		return nil, fault.Field("adapter", "a digest of %d bytes, want %d", len(r.GetAdapter()), len(adapter.Sum{}))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.adapters[adapter.Sum(r.GetAdapter())]
	if a == nil {
		return &shardv1.UnloadAdapterResponse{}, nil
	}
	a.leaving = true
	h.dropUnused(a)
	s.log.Info("unload adapter", "adapter", a.name, "model", h.name, "layers", h.stage.Range.String(), "digest",
		a.digest.String(), "sessions", a.sessions)
	return &shardv1.UnloadAdapterResponse{Sessions: uint32(a.sessions)}, nil
}

// describeAdapters lists the adapters that sessions may name. The caller holds mu.
func (h *held) describeAdapters(out *shardv1.Held) {
	for _, a := range h.adapters {
		out.AdapterBytes += uint64(a.bytes)
		if !a.leaving {
			out.Adapters = append(out.Adapters, &shardv1.HeldAdapter{
				Digest: a.digest[:], Name: a.name, Bytes: uint64(a.bytes), Sessions: uint32(a.sessions), Base: a.base,
			})
		}
	}
	slices.SortFunc(out.GetAdapters(), func(x, y *shardv1.HeldAdapter) int {
		return cmp.Compare(string(x.GetDigest()), string(y.GetDigest()))
	})
}

// placed is an entry of a batch and its first row.
type placed struct {
	*shardv1.Entry
	row int
}

// byAdapter lists the entries of a batch so that those with the same adapter follow one another: a stage computes
// the part of an adapter once for each run of rows. The order of entries changes no result.
func byAdapter(entries []*shardv1.Entry) []placed {
	out := make([]placed, 0, len(entries))
	row, some := 0, false
	for _, e := range entries {
		out = append(out, placed{e, row})
		row += int(e.GetRows())
		some = some || len(e.GetAdapter()) > 0
	}
	if some {
		slices.SortStableFunc(out, func(x, y placed) int {
			return cmp.Compare(string(x.GetAdapter()), string(y.GetAdapter()))
		})
	}
	return out
}
