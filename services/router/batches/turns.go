package batches

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// turns shares the slots in which requests run. A free slot goes to the tenant that has the fewest, of those that want
// one, and with several such tenants to the one that got its last slot the longest ago. Among the batches of a tenant
// it is the same. So a tenant with many batches of long requests takes from the others only what they do not want,
// and no request that runs is ended for it. It is safe for concurrent use.
type turns struct {
	slots int

	mu      sync.Mutex
	free    int
	given   uint64 // slots, of all time
	shares  []*share
	tenants map[string]*holder // that have shares
}

// holder is a tenant or a batch.
type holder struct {
	shares  int    // of a tenant
	running int    // slots that it has
	last    uint64 // when it got its last slot, as a number of slots; 0 for never
}

// share is the part of a batch. take and rest are for one goroutine at a time.
type share struct {
	t             *turns
	name          string // of the tenant
	tenant, batch *holder
	wants         bool
	ready         chan struct{} // slots that it was given and has not taken
}

func newTurns(slots int) *turns {
	return &turns{slots: slots, free: slots, tenants: map[string]*holder{}}
}

// join returns the share of a batch, which wants nothing yet. The caller calls leave.
func (t *turns) join(tenant string) *share {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tenants[tenant] == nil {
		t.tenants[tenant] = &holder{}
	}
	s := &share{t: t, name: tenant, tenant: t.tenants[tenant], batch: &holder{}, ready: make(chan struct{}, t.slots)}
	s.tenant.shares++
	t.shares = append(t.shares, s)
	return s
}

// leave ends a share. Slots that were taken stay so until they are given back.
func (s *share) leave() {
	s.rest()
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	i := slices.Index(s.t.shares, s)
	s.t.shares = slices.Delete(s.t.shares, i, i+1)
	if s.tenant.shares--; s.tenant.shares == 0 {
		delete(s.t.tenants, s.name)
	}
}

// take waits for a slot, until ctx ends. From then on the batch wants more until it rests: if it had to ask for each,
// slots that become free at the same time would all go to others. The caller calls give once.
func (s *share) take(ctx context.Context) (give func(), err error) {
	s.t.mu.Lock()
	s.wants = true
	s.t.grant()
	s.t.mu.Unlock()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return func() {
		s.t.mu.Lock()
		defer s.t.mu.Unlock()
		s.end()
		s.t.grant()
	}, nil
}

// rest says that the batch wants no slot for now, and gives back those that it has not taken.
func (s *share) rest() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	for s.wants = false; len(s.ready) > 0; {
		<-s.ready
		s.end()
	}
	s.t.grant()
}

// end takes a slot back. The caller holds mu.
func (s *share) end() {
	s.t.free++
	s.tenant.running--
	s.batch.running--
}

// grant gives free slots to those whose turn it is. The caller holds mu.
func (t *turns) grant() {
	for t.free > 0 {
		var next *share
		for _, s := range t.shares {
			if s.wants && (next == nil || s.before(next) < 0) {
				next = s
			}
		}
		if next == nil {
			return
		}
		t.free--
		t.given++
		for _, h := range []*holder{next.tenant, next.batch} {
			h.running++
			h.last = t.given
		}
		next.ready <- struct{}{} // it has room for all slots
	}
}

// before orders shares by whose turn is first. The caller holds mu.
func (s *share) before(o *share) int {
	return cmp.Or(cmp.Compare(s.tenant.running, o.tenant.running), cmp.Compare(s.tenant.last, o.tenant.last),
		cmp.Compare(s.batch.running, o.batch.running), cmp.Compare(s.batch.last, o.batch.last))
}
