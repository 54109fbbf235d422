package trainer

import (
	"slices"
	"sync"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// joining opens further chains in the background, while the run goes on.
type joining struct {
	opened  chan opened // of capacity 1
	busy    bool
	most    int // stages of a shard
	retryAt time.Time
	pause   time.Duration

	mu    sync.Mutex
	addrs []string // the live shards that train
}

// opened is a chain that has been opened, or why it has not.
type opened struct {
	chain *chain
	err   error
}

// close ends a chain that nobody has taken.
func (o opened) close() {
	if o.chain != nil {
		o.chain.close()
	}
}

const (
	joinPause = time.Second // after a chain could not be opened; doubled for every further one
	joinMost  = time.Minute
)

// follow keeps the list of live shards until the fleet ends.
func (f *fleet) follow(registry Registry) error {
	watch, err := registry.Watch(f.ctx, "shard")
	if err != nil {
		return err
	}
	f.readers.Go(func() error {
		for state := range watch {
			addrs := trains(state)
			f.joining.mu.Lock()
			f.joining.addrs = addrs
			f.joining.mu.Unlock()
		}
		return nil
	})
	return nil
}

// loads counts the stages of each shard.
func (f *fleet) loads() map[string]int {
	out := map[string]int{}
	for _, c := range f.chains {
		for _, s := range c.stages {
			out[s.addr]++
		}
	}
	return out
}

// free returns addresses for another chain, or nil if there are too few. No shard gets more stages than one had when
// the fleet was opened.
func (f *fleet) free(banned map[string]bool) []string {
	f.joining.mu.Lock()
	live := slices.Clone(f.joining.addrs)
	f.joining.mu.Unlock()
	live = slices.DeleteFunc(live, func(addr string) bool { return banned[addr] })
	if len(live) == 0 {
		return nil
	}
	load := f.loads()
	var out []string
	for range f.layout.stages {
		next := slices.MinFunc(live, func(a, b string) int { return load[a] - load[b] })
		if load[next] >= f.joining.most {
			return nil
		}
		load[next]++
		out = append(out, next)
	}
	return out
}

// join takes a chain into the run that has been opened, and opens another one if replicas are missing. A chain
// that joins reads the state of the last step from a checkpoint, which is written for it.
func (t *training) join(f *fleet, step uint64) error {
	j := &f.joining
	if !f.elastic() {
		return nil
	}
	select {
	case o := <-j.opened:
		j.busy = false
		if o.err == nil {
			return t.admit(f, o.chain, step)
		}
		j.delay()
		t.run.service.log.Warn("no replica has joined", "run", t.run.name, "error", o.err)
	default:
	}
	if j.busy || len(f.chains) >= f.layout.replicas || time.Now().Before(j.retryAt) {
		return nil
	}
	addrs := f.free(t.banned)
	if addrs == nil {
		return nil
	}
	replica := 0
	for slices.ContainsFunc(f.chains, func(c *chain) bool { return c.replica == replica }) {
		replica++
	}
	j.busy = true
	f.readers.Go(func() error {
		shared, unshare, err := f.share()
		var c *chain
		if err == nil {
			c, err = f.openChain(replica, addrs, shared)
			if removed := unshare(); err == nil && removed != nil {
				c.close()
				err = removed
			}
		}
		j.opened <- opened{c, err} // the only one on its way
		return nil
	})
	return nil
}

// delay puts off the next attempt to open a chain.
func (j *joining) delay() {
	j.pause = min(joinMost, max(joinPause, 2*j.pause))
	j.retryAt = time.Now().Add(j.pause)
}

// admit makes a chain a member, from the next step on.
func (t *training) admit(f *fleet, c *chain, step uint64) error {
	refuse := func(err error) error {
		c.close()
		f.joining.delay()
		t.run.service.log.Warn("a replica could not join", "run", t.run.name, "step", step, "error", err)
		return nil
	}
	if step > 0 {
		if err := t.finish(f, step); err != nil {
			if f.sweep(); len(f.chains) == 0 || t.tolerate(err) != nil {
				c.close()
				return err
			}
			return refuse(err)
		}
		if err := f.load(t.last, c); err != nil {
			return refuse(err)
		}
	}
	if c.lost() != nil {
		return refuse(c.lost())
	}
	f.joining.pause = 0
	f.chains = append(f.chains, c)
	f.sortChains()
	t.run.service.log.Info("a replica has joined", "run", t.run.name, "step", step, "replica", c.replica)
	t.run.update(func(r *trainerv1.Run) { r.Joined++ })
	t.happenedTo(c, eventJoined, step, nil)
	return nil
}
