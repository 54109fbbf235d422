package router

import (
	"errors"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/plan"
)

// A version is to blame for a pipeline that is lost while all of its hosts live on. Where a host has died or does not
// answer, what runs there is lost whatever the version: the kill of a process says nothing of it. A version that ends
// processes by what it computes shows in the requests that have run there, at whichever router (canary.go), or in the
// probe of a new pipeline. So each router keeps its losses for a while, and the placer, which asks all hosts all the
// time, counts those that no host explains.

const (
	lossAfter = 3 * time.Second // until a loss is counted: by then a host that is gone has missed a probe
	lossKept  = time.Minute     // in which a request may still excuse it
	maxLosses = 256             // of a version that are kept
)

// failures are the tries to open pipelines of a model that have failed, and the pipelines that were lost.
type failures struct {
	row    int // tries since a pipeline was last opened
	all    int // that count against the version
	reason string
	at     time.Time // of the last one

	losses  []loss
	excused map[string]time.Time // pipelines whose end was excused before it was noted
}

// loss is a pipeline that has failed.
type loss struct {
	pipeline string   // id; empty if it was not open
	hosts    []string // ids of its shards
	sampler  string   // its address
	at       time.Time
	counted  bool // in failures.all
	settled  bool // its hosts were looked at
}

// failuresOf returns the entry of a digest. The caller holds mu.
func (s *Service) failuresOf(digest string) *failures {
	f := s.deploys.failures[digest]
	if f == nil {
		f = &failures{excused: map[string]time.Time{}}
		s.deploys.failures[digest] = f
	}
	return f
}

// pipelineFailed notes that a pipeline of a model could not be opened or was not computing.
func (s *Service) pipelineFailed(digest string, err error) {
	if errors.Is(err, errLeaving) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.failuresOf(digest)
	f.row, f.all, f.reason, f.at = f.row+1, f.all+1, err.Error(), time.Now()
}

// pipelineLost notes that a pipeline could not be connected, or was lost after it was open, which has an id then.
func (s *Service) pipelineLost(chain plan.Chain, id, sampler string, err error) {
	if errors.Is(err, errLeaving) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, now := s.failuresOf(chain.Digest()), time.Now()
	if id == "" {
		f.row++
	}
	f.reason, f.at = err.Error(), now
	f.expire(now)
	if _, excused := f.excused[id]; excused {
		delete(f.excused, id)
		return
	}
	l := loss{pipeline: id, sampler: sampler, at: now}
	for _, hop := range chain {
		l.hosts = append(l.hosts, hop.Shard)
	}
	if len(f.losses) < maxLosses {
		f.losses = append(f.losses, l)
	}
}

// expire forgets what is too old to be excused.
func (f *failures) expire(now time.Time) {
	old := func(at time.Time) bool { return now.Sub(at) >= lossKept }
	f.losses = slices.DeleteFunc(f.losses, func(l loss) bool { return old(l.at) })
	for id, at := range f.excused {
		if old(at) {
			delete(f.excused, id)
		}
	}
}

// settle counts the losses that are old enough, unless explained says that a host or a sampler was lost.
func (f *failures) settle(now time.Time, explained func(*loss) bool) {
	for i := range f.losses {
		if l := &f.losses[i]; !l.settled && now.Sub(l.at) >= lossAfter {
			l.settled = true
			if l.counted = !explained(l); l.counted {
				f.all++
			}
		}
	}
	f.expire(now)
}

// excuse takes back the loss of some pipelines: a request was to blame for it.
func (f *failures) excuse(pipelines []string, now time.Time) {
	for _, id := range pipelines {
		i := slices.IndexFunc(f.losses, func(l loss) bool { return l.pipeline == id })
		switch {
		case i < 0:
			f.excused[id] = now
			continue
		case f.losses[i].counted:
			f.all--
		}
		f.losses = slices.Delete(f.losses, i, i+1)
	}
	f.expire(now)
}

// explained returns a function that reports whether a loss has its reason in a host or a sampler that was lost.
// troubled says when hosts of the placer last did not answer. The caller holds mu.
func (s *Service) explained(troubled map[string]time.Time) func(*loss) bool {
	shards, samplers := map[string]bool{}, map[string]bool{}
	for _, i := range s.instances["shard"] {
		shards[i.ID] = true
	}
	for _, i := range s.instances["sampler"] {
		samplers[i.Addr] = true
	}
	return func(l *loss) bool {
		for _, id := range l.hosts {
			if at := troubled[id]; !shards[id] || !at.IsZero() && at.After(l.at.Add(-lossAfter)) {
				return true
			}
		}
		return !samplers[l.sampler]
	}
}
