package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// place is a range of layers that a shard holds.
type place struct {
	addr, digest string
	lo, hi       int
}

// adapterFailed is why a place does not hold an adapter.
type adapterFailed struct {
	err   error
	tries int
	at    time.Time
	again time.Time
}

const (
	adapterTime  = 2 * time.Minute // for loading an adapter at one place
	unloadTime   = 5 * time.Second
	adapterAgain = time.Second // before the second try; doubled after each
	adapterLimit = time.Minute // between two tries at most
)

// syncAdapters makes the shards of every model hold the adapters that are wanted, and forget those of this router
// that are not. Each place has one goroutine at a time, so that a slow shard delays no other.
func (s *Service) syncAdapters(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.bindSources(ctx, wg, notify)
	s.carryAdapters(wg, notify)
	s.mu.Lock()
	defer s.mu.Unlock()
	l, now := s.adapters, time.Now()
	alive := map[string]bool{}
	for _, i := range s.instances["shard"] {
		alive[i.Addr] = true
	}
	places, drafts, described := map[place]bool{}, map[place]bool{}, map[string]bool{}
	for _, d := range s.held {
		described[d.addr] = true
		for _, h := range d.resp.GetHeld() {
			if s.isDraft(h.GetModel(), h.GetDigest()) {
				drafts[placeOf(d.addr, h)] = true
			} else {
				places[placeOf(d.addr, h)] = true
			}
		}
	}
	gone := func(pl place) bool { // the shard, or the range at a shard that takes assignments
		return !alive[pl.addr] || described[pl.addr] && !places[pl] && !drafts[pl]
	}
	maps.DeleteFunc(l.at, func(pl place, _ map[adapter.Sum]bool) bool { return gone(pl) })
	maps.DeleteFunc(l.failed, func(pl place, _ map[adapter.Sum]*adapterFailed) bool { return gone(pl) })
	for pl := range places {
		if l.working[pl] {
			continue
		}
		load, unload := l.due(pl, now)
		unload = append(unload, l.strangers(pl, now, s.strangerTime())...)
		if len(load)+len(unload) == 0 {
			continue
		}
		l.working[pl] = true
		wg.Go(func() {
			s.serveAdapters(ctx, pl, load, unload)
			s.mu.Lock()
			delete(l.working, pl)
			s.notifyChange()
			s.mu.Unlock()
			notify() // more may be due
		})
	}
	maps.DeleteFunc(l.strange, func(k strangerKey, _ time.Time) bool { return !l.at[k.place][k.digest] })
	for key, a := range l.all {
		if !a.wanted() && !l.held(key) {
			l.store.touch(a.dir, now)
			l.drop(key)
		}
	}
}

// drop forgets an adapter and why places do not hold it: if it is wanted again, they are asked at once.
func (l *adapters) drop(key adapterKey) {
	delete(l.all, key)
	for pl, failed := range l.failed {
		if pl.digest == key.model {
			delete(failed, key.digest)
		}
	}
}

func placeOf(addr string, h *shardv1.Held) place {
	return place{addr, h.GetDigest(), int(h.GetLo()), int(h.GetHi())}
}

// due lists the adapters that a place has to load and to forget now.
func (l *adapters) due(pl place, now time.Time) (load, unload []*servedAdapter) {
	for key, a := range l.all {
		if key.model != pl.digest {
			continue
		}
		f := l.failed[pl][a.digest]
		switch held := l.at[pl][a.digest]; {
		case a.wanted() && !held && (f == nil || now.After(f.again)):
			load = append(load, a)
		case !a.wanted() && held:
			unload = append(unload, a)
		}
	}
	byDigest := func(a, b *servedAdapter) int { return slices.Compare(a.digest[:], b.digest[:]) }
	slices.SortFunc(load, byDigest)
	slices.SortFunc(unload, byDigest)
	return load, unload
}

// held reports whether a place holds the adapter.
func (l *adapters) held(key adapterKey) bool {
	for pl, all := range l.at {
		if pl.digest == key.model && all[key.digest] {
			return true
		}
	}
	return false
}

// described takes over what a shard says of its adapters. The caller holds mu.
func (l *adapters) described(addr string, resp *shardv1.DescribeResponse) {
	for _, h := range resp.GetHeld() {
		all := map[adapter.Sum]bool{}
		for _, a := range h.GetAdapters() {
			if len(a.GetDigest()) == len(adapter.Sum{}) {
				all[adapter.Sum(a.GetDigest())] = true
			}
		}
		l.at[placeOf(addr, h)] = all
	}
}

// serveAdapters loads and unloads adapters at a place, and records what has become of them.
func (s *Service) serveAdapters(ctx context.Context, pl place, load, unload []*servedAdapter) {
	for _, a := range unload { // they may be in the way of the others
		err := s.unloadAt(ctx, pl, a)
		if err != nil {
			s.log.Debug("unload adapter", "adapter", a.digest.String(), "address", pl.addr, "error", err)
		}
		s.mu.Lock()
		delete(s.adapters.at[pl], a.digest) // a shard that cannot be reached is described anew
		s.mu.Unlock()
	}
	for _, a := range load {
		start := time.Now()
		err := s.loadAt(ctx, pl, a)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		failed := s.adapters.record(pl, a, err)
		s.notifyChange()
		s.mu.Unlock()
		switch {
		case err == nil:
			s.log.Info("adapter is loaded", "adapter", a.digest.String(), "address", pl.addr, "took", time.Since(start))
		case failed.tries == 1:
			s.log.Warn("load adapter", "adapter", a.digest.String(), "address", pl.addr, "error", err)
		}
	}
}

// record records the result of a load.
func (l *adapters) record(pl place, a *servedAdapter, err error) *adapterFailed {
	if err == nil {
		if l.at[pl] == nil {
			l.at[pl] = map[adapter.Sum]bool{}
		}
		l.at[pl][a.digest] = true
		delete(l.failed[pl], a.digest)
		return nil
	}
	if l.failed[pl] == nil {
		l.failed[pl] = map[adapter.Sum]*adapterFailed{}
	}
	f := l.failed[pl][a.digest]
	if f == nil {
		f = &adapterFailed{}
		l.failed[pl][a.digest] = f
	}
	wait := min(adapterAgain<<min(f.tries, 10), adapterLimit)
	f.err, f.tries, f.at = err, f.tries+1, time.Now()
	f.again = f.at.Add(wait)
	return f
}

// read reads the files of an adapter and checks that they are still those of its digest, and for its model.
func (s *Service) read(a *servedAdapter) (*adapter.Adapter, *adapter.Outline, error) {
	values, err := adapter.Open(a.dir)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	anyBase := a.anyBase
	s.mu.Unlock()
	if err := checkBase(values, a.model, anyBase); err != nil {
		return nil, nil, err
	}
	outline := values.Outline()
	if got := outline.Digest(); got != a.digest {
		return nil, nil, fault.New(fault.FailedPrecondition, "open adapter %s: its files have changed: the digest is %s, not %s",
			a.dir, got, a.digest)
	}
	s.mu.Lock()
	a.measure(values, outline)
	s.mu.Unlock()
	return values, outline, nil
}

// checkBase reports an adapter that was trained on another base than a model, unless any is accepted.
func checkBase(values *adapter.Adapter, model string, anyBase bool) error {
	if anyBase {
		return nil
	}
	return values.CheckBase(model)
}

// measure notes what the files of the adapter say of it. The caller holds mu.
func (a *servedAdapter) measure(values *adapter.Adapter, o *adapter.Outline) {
	a.base, a.rank, a.modules, a.bytes = values.BaseDigest, 0, len(o.Modules), 0
	for i := range o.Modules {
		a.rank, a.bytes = max(a.rank, o.Modules[i].Rank), a.bytes+o.Modules[i].Bytes()
	}
	for i := range o.Saved {
		a.bytes += o.Saved[i].Bytes()
	}
}

// adapterReading is an adapter in memory while places load it.
type adapterReading struct {
	places  int           // that load it; guarded by Service.mu
	done    chan struct{} // closed when the rest is known
	values  *adapter.Adapter
	outline *adapter.Outline
	err     error
}

// borrow returns an adapter until giveBack. Places that load it at the same time share it, so that it is in memory once
// however many there are.
func (s *Service) borrow(ctx context.Context, a *servedAdapter) (*adapterReading, error) {
	s.mu.Lock()
	r := s.adapters.readings[a]
	first := r == nil
	if first {
		r = &adapterReading{done: make(chan struct{})}
		s.adapters.readings[a] = r
	}
	r.places++
	s.mu.Unlock()
	if first {
		r.values, r.outline, r.err = s.read(a)
		close(r.done)
	}
	var err error
	select {
	case <-r.done:
		err = r.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.giveBack(a, r)
		return nil, err
	}
	return r, nil
}

// giveBack ends a use of an adapter in memory.
func (s *Service) giveBack(a *servedAdapter, r *adapterReading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.places--; r.places == 0 && s.adapters.readings[a] == r {
		delete(s.adapters.readings, a)
	}
}

// loadAt loads an adapter at a place: it sends the tensors that the shard asks for.
func (s *Service) loadAt(ctx context.Context, pl place, a *servedAdapter) error {
	read, err := s.borrow(ctx, a)
	if err != nil {
		return err
	}
	defer s.giveBack(a, read)
	values, outline := read.values, read.outline
	ctx, cancel := context.WithTimeoutCause(ctx, adapterTime,
		fault.New(fault.DeadlineExceeded, "load adapter at %s: it took more than %v", pl.addr, adapterTime))
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(pl.addr)
	if err != nil {
		return err
	}
	stream, err := shardv1.NewShardServiceClient(conn).LoadAdapter(ctx)
	if err != nil {
		return rpc.FromStatus(err)
	}
	send := func(r *shardv1.LoadAdapterRequest) error {
		err := stream.Send(r)
		if errors.Is(err, io.EOF) { // Recv gives the reason
			return nil
		}
		return rpc.FromStatus(err)
	}
	if err := send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Open{Open: &shardv1.LoadAdapterOpen{
		Digest: pl.digest, Lo: uint32(pl.lo), Hi: uint32(pl.hi), Adapter: a.wire(), Name: s.nameOf(a),
		Modules: wire.Modules(outline), Saved: wire.Saved(outline), Base: values.BaseDigest,
	}}}); err != nil {
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return rpc.FromStatus(err)
	}
	if resp.GetWanted() == nil {
		return fault.New(fault.Internal, "load adapter at %s: it answered %T", pl.addr, resp.GetFrame())
	}
	for _, i := range resp.GetWanted().GetModules() {
		if int64(i) >= int64(len(values.Modules)) {
			return fault.New(fault.Internal, "load adapter at %s: it wants module %d of %d", pl.addr, i,
				len(values.Modules))
		}
		if err := sendModule(&values.Modules[i], send); err != nil {
			return err
		}
	}
	for _, i := range resp.GetWanted().GetSaved() {
		if int64(i) >= int64(len(values.Saved)) {
			return fault.New(fault.Internal, "load adapter at %s: it wants tensor %d of %d that are saved", pl.addr, i,
				len(values.Saved))
		}
		if err := sendTensor(values.Saved[i].Data, send, values.Saved[i].Shape...); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return rpc.FromStatus(err)
	}
	resp, err = stream.Recv()
	if err != nil {
		return rpc.FromStatus(err)
	}
	if resp.GetLoaded() == nil {
		return fault.New(fault.Internal, "load adapter at %s: it answered %T", pl.addr, resp.GetFrame())
	}
	return nil
}

// sendModule sends the tensors of a module.
func sendModule(m *adapter.Module, send func(*shardv1.LoadAdapterRequest) error) error {
	err := errors.Join(sendTensor(m.A, send, m.Rank, m.In), sendTensor(m.B, send, m.Out, m.Rank))
	if m.Magnitude != nil && err == nil {
		err = sendTensor(m.Magnitude, send, m.Out)
	}
	return err
}

func sendTensor(x []float32, send func(*shardv1.LoadAdapterRequest) error, shape ...int) error {
	head, chunks := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, shape, x)
	err := send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Tensor{Tensor: head}})
	for _, c := range chunks {
		if err == nil {
			err = send(&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Chunk{Chunk: c}})
		}
	}
	return err
}

// nameOf returns a name that points to the adapter, for logs.
func (s *Service) nameOf(a *servedAdapter) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, n := range s.adapters.names {
		if n.current == a {
			return key.name
		}
	}
	return fmt.Sprintf("%.19s", a.digest)
}

func (s *Service) unloadAt(ctx context.Context, pl place, a *servedAdapter) error {
	ctx, cancel := context.WithTimeout(ctx, unloadTime)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(pl.addr)
	if err != nil {
		return err
	}
	_, err = shardv1.NewShardServiceClient(conn).UnloadAdapter(ctx, &shardv1.UnloadAdapterRequest{
		Digest: pl.digest, Lo: uint32(pl.lo), Hi: uint32(pl.hi), Adapter: a.wire(),
	})
	return rpc.FromStatus(err)
}

// adapterMissing is called when a stage has refused a session because it does not hold the adapter: another router
// has unloaded it, or the process is a new one. The shard is described anew, and what it lacks is loaded.
func (s *Service) adapterMissing(p *pipeline, lo int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hop := range p.hops() {
		if hop.Lo == lo {
			delete(s.adapters.at, place{hop.Addr, p.digest, hop.Lo, hop.Hi})
			delete(s.held, hop.Shard)
		}
	}
	s.poke()
}
