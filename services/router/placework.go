package router

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// part is a span that the plan wants on a host, or that a host holds.
type part struct {
	digest string
	lo, hi int
}

// overlaps reports whether two spans have layers in common.
func (p part) overlaps(o part) bool { return p.digest == o.digest && p.lo < o.hi && o.lo < p.hi }

// wants returns the spans that a plan wants on each host, in the order of its pipelines, and the positions of their
// KV caches.
func wants(p *plan.Plan) (order map[string][]part, positions map[string]map[part]int) {
	order, positions = map[string][]part{}, map[string]map[part]int{}
	for _, pipeline := range p.Pipelines {
		for _, stage := range pipeline.Stages {
			w := part{pipeline.Digest, stage.Lo, stage.Hi}
			if positions[stage.Host] == nil {
				positions[stage.Host] = map[part]int{}
			}
			if _, known := positions[stage.Host][w]; !known {
				order[stage.Host] = append(order[stage.Host], w)
			}
			positions[stage.Host][w] = max(positions[stage.Host][w], pipeline.KVPositions)
		}
	}
	return order, positions
}

// swap is a running load in place of spans that a host holds.
type swap struct {
	load     part
	replaced []part
	cancel   context.CancelFunc // of the call, upon which the host gives the load up
}

// outdated reports whether the plan does not want the new span any more, or wants one of the old ones again.
func (s *swap) outdated(positions map[part]int) bool {
	_, wanted := positions[s.load]
	return !wanted || slices.ContainsFunc(s.replaced, func(p part) bool { _, again := positions[p]; return again })
}

// carryOut starts the loads and releases that lead from what hosts hold to what the plan wants. It goes by what hosts
// say of themselves and not by a list of moves, so a placer that takes over goes on where the one before has stopped.
// A host does one thing at a time.
func (l *leader) carryOut(ctx context.Context) {
	order, positions := wants(&l.doc.Plan)
	served, given := l.served(), l.givenUp()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for id, h := range l.hosts {
		if h.swap != nil && h.swap.outdated(positions[id]) {
			h.swap.cancel() // the host goes on with what it holds
			h.swap = nil
		}
		if !h.alive() || h.busy || h.desc.GetInstance() != "" && h.desc.GetInstance() != id {
			continue
		}
		have := map[part]bool{}
		var extra []part
		for _, span := range h.desc.GetHeld() {
			held := part{span.GetDigest(), int(span.GetLo()), int(span.GetHi())}
			have[held] = true
			if _, wanted := positions[id][held]; !wanted && span.GetAssigned() {
				extra = append(extra, held)
			}
		}
		next := slices.IndexFunc(order[id], func(w part) bool {
			_, refused := h.refuses(w.digest, now) // the plan of before still names it
			return !have[w] && !refused
		})
		if i := h.desc.GetInventory(); slices.ContainsFunc(i.GetLoading(), func(r *shardv1.Loading) bool {
			return next < 0 || order[id][next] != part{r.GetDigest(), int(r.GetLo()), int(r.GetHi())}
		}) {
			continue // it still does what another placer, or an earlier plan, has asked for
		}
		if next < 0 {
			h.full, h.cramped = false, false // nothing needs the memory any more
		}
		freed := slices.IndexFunc(extra, func(e part) bool { return h.full || served[e.digest] || given[e.digest] })
		h.freeable = len(extra) > 0
		var replaced []part
		if next >= 0 && h.full && !h.cramped {
			// Other spans go first. Those that share layers with the wanted one are replaced by it.
			w := order[id][next]
			replaced = extra
			if other := slices.IndexFunc(extra, func(e part) bool { return !e.overlaps(w) }); other >= 0 {
				replaced, freed = nil, other
			}
		}
		switch {
		case next >= 0 && (!h.full || len(replaced) > 0):
			w := order[id][next]
			h.busy = true
			version := l.doc.Version
			call, cancel := context.WithTimeout(ctx, assignLimit)
			if len(replaced) > 0 {
				h.swap = &swap{w, replaced, cancel}
			}
			l.work.Go(func() {
				defer cancel()
				l.finish(ctx, id, h, l.assign(call, id, h, w, positions[id][w], replaced, version))
			})
		case freed >= 0:
			grace := unloadGrace
			if h.full {
				grace = unloadUrgent
			}
			h.busy = true
			l.work.Go(func() { l.unload(ctx, id, h, extra[freed], grace) })
		case len(extra) == 0:
			h.full, h.cramped = false, false // nothing can be freed: try again
		}
	}
}

// served reports of each model whether this router has all pipelines open that the plan wants, so that spans which it
// does not name can go.
func (l *leader) served() map[string]bool {
	open := map[string]bool{}
	l.s.mu.Lock()
	for _, p := range l.s.pipelines {
		if !p.dead() {
			open[p.hops().String()+p.digest] = true
		}
	}
	l.s.mu.Unlock()
	l.probed(open)
	out := map[string]bool{}
	for _, pipeline := range l.doc.Plan.Pipelines {
		if _, seen := out[pipeline.Digest]; !seen {
			out[pipeline.Digest] = true
		}
		if !open[chainOf(&pipeline).String()+pipeline.Digest] {
			out[pipeline.Digest] = false
		}
	}
	return out
}

// chainOf returns a pipeline of the plan as a chain, without addresses.
func chainOf(p *plan.Pipeline) plan.Chain {
	var out plan.Chain
	for _, s := range p.Stages {
		out = append(out, plan.Span{Shard: s.Host, Digest: p.Digest, Lo: s.Lo, Hi: s.Hi})
	}
	return out
}

// givenUp returns the models that hosts hold and no deployment wants, which can go even if nothing else serves.
func (l *leader) givenUp() map[string]bool {
	l.s.mu.Lock()
	state := l.s.deploys.state
	l.s.mu.Unlock()
	out := map[string]bool{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.hosts {
		for _, span := range h.desc.GetHeld() {
			_, wanted := state.Places(span.GetModel(), span.GetDigest(), !l.cfg.OnlyDeployed)
			out[span.GetDigest()] = !wanted
		}
	}
	return out
}

// finish ends what a host does, and asks it at once what it holds now.
func (l *leader) finish(ctx context.Context, id string, h *placed, err error) {
	l.mu.Lock()
	h.full = h.full && err != nil || fault.CodeOf(err) == fault.Exhausted
	h.cramped = h.cramped && h.full
	l.mu.Unlock()
	resp, described := l.s.describeShard(ctx, h.addr)
	if described == nil {
		l.s.redescribe(id, h.addr, resp)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if described == nil {
		h.desc = resp
	}
	h.busy, h.swap = false, nil
}

// assign loads a span on a host, in place of those that it replaces.
func (l *leader) assign(
	ctx context.Context, id string, h *placed, w part, positions int, replaced []part, version uint64,
) error {
	start := time.Now()
	conn, err := l.s.cfg.Dialer.Dial(h.addr)
	if err == nil {
		var stream grpc.ServerStreamingClient[shardv1.AssignResponse]
		r := &shardv1.AssignRequest{
			Digest: w.digest, Lo: uint32(w.lo), Hi: uint32(w.hi), KvPositions: uint32(positions), Fence: l.fence,
			Version: version, GraceMs: uint32(unloadUrgent.Milliseconds()),
		}
		for _, p := range replaced {
			r.Replaces = append(r.Replaces, &shardv1.Span{Lo: uint32(p.lo), Hi: uint32(p.hi)})
		}
		stream, err = shardv1.NewShardServiceClient(conn).Assign(ctx, r)
		err = drainStream(stream, err, func(*shardv1.AssignResponse) {})
	}
	full := fault.CodeOf(err) == fault.Exhausted
	if err != nil && ctx.Err() == nil {
		l.mu.Lock()
		left := h.refusedBy(w, err, time.Now())
		h.cramped = h.cramped || full && len(replaced) > 0
		freeable := h.freeable
		l.mu.Unlock()
		l.s.log.Warn("assign layers", "host", id, "lo", w.lo, "hi", w.hi, "digest", w.digest, "left_out", left,
			"error", err)
		if !full || !freeable { // memory is freed at once
			l.pause(ctx, lockAgain)
		}
	} else if err == nil {
		l.s.log.Info("layers are loaded", "host", id, "lo", w.lo, "hi", w.hi, "digest", w.digest, "took",
			time.Since(start))
	}
	return err
}

// unload frees a span on a host.
func (l *leader) unload(ctx context.Context, id string, h *placed, w part, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, assignLimit)
	defer cancel()
	conn, err := l.s.cfg.Dialer.Dial(h.addr)
	if err == nil {
		var stream grpc.ServerStreamingClient[shardv1.UnloadResponse]
		stream, err = shardv1.NewShardServiceClient(conn).Unload(ctx, &shardv1.UnloadRequest{
			Digest: w.digest, Lo: uint32(w.lo), Hi: uint32(w.hi), GraceMs: uint32(grace.Milliseconds()), Fence: l.fence,
		})
		first := true
		err = drainStream(stream, err, func(*shardv1.UnloadResponse) {
			if first { // the shard no longer lists the span: pipelines leave it
				first = false
				if resp, err := l.s.describeShard(ctx, h.addr); err == nil {
					l.s.redescribe(id, h.addr, resp)
				}
			}
		})
	}
	if err != nil && ctx.Err() == nil {
		l.s.log.Warn("unload layers", "host", id, "lo", w.lo, "hi", w.hi, "digest", w.digest, "error", err)
		l.pause(ctx, lockAgain)
	} else if err == nil {
		l.s.log.Info("layers are unloaded", "host", id, "lo", w.lo, "hi", w.hi, "digest", w.digest)
	}
	l.finish(ctx, id, h, err)
}

// drainStream reads a stream to its end.
func drainStream[T any](stream grpc.ServerStreamingClient[T], err error, each func(*T)) error {
	for err == nil {
		var frame *T
		if frame, err = stream.Recv(); err == nil {
			each(frame)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return rpc.FromStatus(err)
}

// redescribe takes over what a shard that takes assignments says of itself. Pipelines over a span that it no longer
// lists are left, if others can take over.
func (s *Service) redescribe(id, addr string, resp *shardv1.DescribeResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := func(i discovery.Instance) bool { return i.ID == id && i.Addr == addr }
	if !slices.ContainsFunc(s.instances["shard"], listed) {
		return
	}
	before, known := s.held[id]
	s.held[id] = described{addr: addr, resp: resp}
	if known && sameSpans(before.resp, resp) {
		return
	}
	s.leaveUnheld(id, resp)
	s.adapters.described(addr, resp)
	s.notifyChange()
	if s.wake != nil {
		s.wake()
	}
}

// sameSpans reports whether two descriptions list the same spans.
func sameSpans(a, b *shardv1.DescribeResponse) bool {
	return slices.EqualFunc(a.GetHeld(), b.GetHeld(), func(x, y *shardv1.Held) bool {
		return x.GetDigest() == y.GetDigest() && x.GetLo() == y.GetLo() && x.GetHi() == y.GetHi()
	})
}

// leaveUnheld ends the pipelines over spans of a shard that it no longer lists, if another pipeline can take over their
// sequences, or if they have none and no deployment wants their model. Otherwise the shard ends them after a while. The
// caller holds mu.
func (s *Service) leaveUnheld(id string, resp *shardv1.DescribeResponse) {
	if !resp.GetInventory().GetAssignable() {
		return
	}
	for _, p := range s.pipelines {
		for _, hop := range p.hops() {
			held := slices.ContainsFunc(resp.GetHeld(), func(h *shardv1.Held) bool {
				return h.GetDigest() == hop.Digest && int(h.GetLo()) == hop.Lo && int(h.GetHi()) == hop.Hi
			})
			if hop.Shard == id && !held && (p.spare.Load() || s.unused(p)) {
				p.cancel(fault.Wrap(fault.Unavailable, errLeaving, "leave layers %d-%d at %s", hop.Lo, hop.Hi,
					hop.Addr))
			}
		}
	}
}
