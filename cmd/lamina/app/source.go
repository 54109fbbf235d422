package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/swarm"
)

const (
	sourceTime  = time.Minute      // for the listing of a source
	joinTime    = 5 * time.Second  // in which discovery lists this shard
	arriveTime  = 20 * time.Second // in which what was pulled is offered
	arriveEvery = 50 * time.Millisecond
)

// OutsideSource is where a model comes from that no shard has.
type OutsideSource struct {
	Name   string // for logs
	Source pull.Source
}

// sourcing is the state of a source of a follower.
type sourcing struct {
	OutsideSource
	known *swarm.Outside // nil until it is listed, and for a source that does not tell the digests of its chunks
	whole string         // the name of a model that has to be pulled as a whole; empty for others
	busy  bool           // it is being pulled, or has been
}

// locker is a registry with locks.
type locker interface {
	Lock(ctx context.Context, key, holder string) (discovery.Lease, error)
}

// names are those of models that a shard offers.
type names struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (n *names) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil {
		n.seen = map[string]bool{}
	}
	n.seen[name] = true
}

func (n *names) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[name]
}

// sources offers the models of sources outside the mesh. One that tells the digests of its chunks is offered at once,
// and gives the layers that are assigned. One that does not is pulled as a whole by one of the shards that name it, and
// the others take it from that one.
func (f *follower) sources(ctx context.Context, work *sync.WaitGroup) {
	for _, s := range f.outside {
		if s.busy || f.resting(s.Name) {
			continue
		}
		if s.known == nil && s.whole == "" {
			if err := s.list(ctx); err != nil {
				if ctx.Err() == nil {
					f.rest(s.Name, s.Name, err)
				}
				continue
			}
		}
		if s.known == nil {
			s.busy = true
			work.Go(func() { f.pull(ctx, s) })
			continue
		}
		digest := s.known.Digest()
		var err error
		switch r := f.remotes[digest]; {
		case r != nil && !r.HasOutside():
			err = r.SetOutside(f.id, s.known)
		case r == nil && !f.offered[digest]:
			err = f.reach(ctx, s)
		}
		if err != nil && ctx.Err() == nil {
			f.rest(s.Name, s.Name, err)
		}
	}
}

// list finds out what a source has.
func (s *sourcing) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sourceTime)
	defer cancel()
	var unknown *swarm.UnknownError
	known, err := swarm.NewOutside(ctx, s.Source)
	if !errors.As(err, &unknown) {
		s.known = known
		return err
	}
	l, err := s.Source.List(ctx)
	if err != nil {
		return err
	}
	s.whole = l.Name
	return nil
}

// reach opens a model of a source and offers it. One shard after the other does so, so that the headers come from
// outside once and then from the first shard.
func (f *follower) reach(ctx context.Context, s *sourcing) error {
	waiting, cancel := context.WithTimeout(ctx, sourceTime)
	defer cancel()
	if registry, ok := f.p.registry.(locker); ok {
		lease, err := registry.Lock(waiting, s.lock(), f.id)
		if err != nil {
			return err
		}
		defer release(ctx, lease)
		f.await(ctx, joinTime, f.joined)
		f.peers(ctx)
	}
	switch r := f.remotes[s.known.Digest()]; {
	case r != nil:
		return r.SetOutside(f.id, s.known)
	case f.offered[s.known.Digest()]:
		return nil
	}
	r, err := swarm.OpenOutside(ctx, f.store, f.p.log, f.id, s.known, nil)
	if err != nil {
		return err
	}
	return f.offerRemote(r, s.known.Name(), s.known.Digest())
}

// lock names the lock of what one shard does with a source at a time.
func (s *sourcing) lock() string { return fmt.Sprintf("source-%016x", xxh3.HashString(s.Name)) }

func release(ctx context.Context, lease discovery.Lease) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), listTime)
	defer cancel()
	_ = lease.Release(limited) // a lock that cannot be released ends with its session
}

// pull pulls the model of a source into the store, unless another shard does.
func (f *follower) pull(ctx context.Context, s *sourcing) {
	registry, ok := f.p.registry.(locker)
	for ok && ctx.Err() == nil {
		err := f.pullLocked(ctx, s, registry)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			f.p.log.Warn("pull a model", "source", s.Name, "error", err)
		}
		timer := time.NewTimer(followAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func (f *follower) pullLocked(ctx context.Context, s *sourcing, registry locker) error {
	lease, err := registry.Lock(ctx, s.lock(), f.id)
	if err != nil {
		return err
	}
	defer release(ctx, lease)
	f.await(ctx, joinTime, f.joined)
	there := f.names.has(s.whole)
	f.listed(ctx, func(_ swarm.Peer, e *weightsv1.Model) { there = there || e.GetName() == s.whole })
	if there {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() { // ends with the pull
		select {
		case <-lease.Lost():
			cancel(fault.New(fault.Aborted, "another shard may pull the model now"))
		case <-ended:
		}
	}()
	r, err := pull.Pull(ctx, f.store, s.Source, pull.Options{})
	if err != nil {
		return err
	}
	f.p.log.Info("pulled a model", "model", r.Manifest.Name, "source", s.Name, "bytes", r.Fetched)
	f.await(ctx, arriveTime, func() bool { return f.names.has(s.whole) }) // before another shard looks for it
	return nil
}

// joined reports whether discovery lists this shard. Then it also lists those that came before.
func (f *follower) joined() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.members, func(m discovery.Instance) bool { return m.ID == f.id })
}

// await polls until done returns true, for a limited time.
func (f *follower) await(ctx context.Context, most time.Duration, done func() bool) {
	tick, limit := time.NewTicker(arriveEvery), time.NewTimer(most)
	defer tick.Stop()
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
