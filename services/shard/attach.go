package shard

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// attach makes the stream the one that serves its pipeline. It takes over the pages that the pipeline's
// former stream has left here, or opens a lease for a pipeline of which nothing is left.
//
// A former stream that still lives is fenced: attach ends it and waits until its goroutines have
// stopped, so that no frame of it can be computed beside those of the new one.
func (p *pipeline) attach(ctx context.Context) error {
	for {
		old, err := p.tryAttach()
		if old == nil || err != nil {
			return err
		}
		old.fail(fault.New(fault.Aborted, "run pipeline %x: epoch %d has replaced epoch %d", p.id, p.epoch, old.epoch))
		select {
		case <-old.left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tryAttach attaches the stream, or returns the one that has to be fenced first.
func (p *pipeline) tryAttach() (fence *pipeline, err error) {
	h := p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.pipelines[p.id]
	switch {
	case h.unloaded:
		return nil, fault.New(fault.NotFound, "open pipeline %x: layers %v of %s have been unloaded", p.id, h.stage.Range,
			h.name)
	case old == nil:
		// A new pipeline needs pages, and most likely it replaces the ones that are detached.
		for _, other := range h.pipelines {
			if other.detached {
				h.dropLocked(other)
			}
		}
		if p.lease, p.granted, err = h.cache.Open(p.id); err != nil {
			return nil, err
		}
	case p.epoch <= old.epoch:
		return nil, fault.New(fault.AlreadyExists, "open pipeline %x with epoch %d: it is open with epoch %d", p.id,
			p.epoch, old.epoch)
	case !old.detached:
		return old, nil
	default:
		old.grace.Stop()
		p.lease, p.granted, p.resumed = old.lease, old.lease.Resume(), true
	}
	h.pipelines[p.id] = p
	return nil, nil
}

// leave ends the stream's part in its pipeline, which the given error has ended. It drops all sessions.
// If the connection broke, the pipeline is detached: its mapped pages wait for a stream with a higher
// epoch. Otherwise, or if others wait for its pages, they are freed. Holding the compute lock means
// that no batch uses them.
func (p *pipeline) leave(err error) {
	h := p.held
	h.compute.Lock()
	defer h.compute.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, s := range h.sessions {
		if s.pipeline == p.id {
			h.dropSession(name, s)
		}
	}
	gone := p.service.device != nil && p.service.device.LostErr() != nil // and the pages with it
	if p.epoch > 0 && disconnected(err) && !p.lease.Owes() && !gone {
		p.detached = true
		p.grace = time.AfterFunc(p.service.cfg.Grace, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.pipelines[p.id] == p {
				h.dropLocked(p)
			}
		})
	} else {
		h.dropLocked(p)
	}
	close(p.left)
}

// dropLocked frees the pages of a pipeline without a stream. The caller holds mu.
func (h *held) dropLocked(p *pipeline) {
	delete(h.pipelines, p.id)
	p.lease.Close()
}

// disconnected reports whether a stream ended without a fault of the pipeline itself: a connection
// broke, a neighbour went away, or a stream with a higher epoch replaced it.
func disconnected(err error) bool {
	if err == nil {
		return false
	}
	switch fault.CodeOf(rpc.FromStatus(err)) {
	case fault.Unavailable, fault.Canceled, fault.DeadlineExceeded, fault.Aborted:
		return true
	}
	return false
}
