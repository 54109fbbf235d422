package sim

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// shard is a process that holds a span of a model.
type shard struct {
	*node
	span   plan.Span
	cache  *kvcache.Cache[float64]
	stages []*stage // of the open pipelines, in the order in which they were opened
	queue  []work
	busy   bool
	rows   int
}

// work is a frame from upstream.
type work struct {
	st      *stage
	arrived time.Duration
	batch   *batch
	release *sched.Release
}

func (w *world) startShard(s *shard) {
	s.cache = kvcache.New(kvcache.Config{Layers: 1, KVHeads: 1, HeadDim: 1, Type: kernel.KVFull, PageLen: w.sc.PageLen,
		Pages: w.sc.Pages}, kernel.HostOps[float64]{})
	s.stages, s.queue, s.busy = nil, nil, false
}

// open adds a stage of a pipeline. It returns false if the shard does not take it.
func (s *shard) open(p *pipe, index int) *stage {
	lease, _, err := s.cache.Open(p.name)
	if err != nil {
		return nil
	}
	st := &stage{shard: s, p: p, index: index, lease: lease, life: s.life, sessions: map[sched.ID]*held{},
		pages: map[uint32]*page{}}
	s.stages = append(s.stages, st)
	s.notify()
	return st
}

// notify tells the routers about leases that have changed.
func (s *shard) notify() {
	for _, st := range s.stages {
		select {
		case <-st.lease.Changed():
		default:
			continue
		}
		if n, news := st.lease.Notice(); news {
			if n < st.granted() {
				if st.asked == 0 {
					st.watch()
				}
			} else {
				st.asked = 0
			}
			e := sched.Lease{Lo: s.span.Lo, Pages: n}
			st.send(control, func() { st.p.tell(e) })
		}
	}
}

// work handles queued frames in order. Computing takes time; nothing else does.
func (s *shard) work() {
	for !s.busy && len(s.queue) > 0 && s.w.err == nil {
		wk := s.queue[0]
		s.queue = s.queue[1:]
		st := wk.st
		switch {
		case st.ended:
		case wk.release != nil:
			st.release(*wk.release)
			if st.next != nil {
				st.down.send(control, func() { st.next.receive(work{release: wk.release}) })
			}
		case s.w.now-wk.arrived > wk.batch.Deadline, s.w.chance(s.w.sc.Loss):
			s.w.log("%s drops step %d of %s", s.name, wk.batch.Step, st.p.name)
			st.p.tainted = true
			st.forget(wk.batch.Entries)
		default:
			s.busy = true
			took := s.computeTime(wk.batch)
			s.after(took, func() {
				s.busy = false
				if !st.ended {
					st.compute(wk.batch)
				}
				s.work()
			})
		}
	}
}

func (s *shard) computeTime(b *batch) time.Duration {
	c := s.w.sc
	t := c.BatchTime + time.Duration(len(b.rows))*c.RowTime
	for _, e := range b.Entries { // attention
		t += time.Duration(e.Rows*(e.Position+e.Rows)) * c.RowTime / 4096
	}
	s.rows += len(b.rows)
	return time.Duration(float64(t) * s.slow * (0.9 + 0.2*s.w.rnd.Float64()))
}

// harm ends the process, or makes it hang, because of a row of a request.
func (s *shard) harm(q *request) {
	w := s.w
	if q.hostile == killsStages {
		w.log("%s dies of %s", s.name, q.name())
		if q.kills++; q.kills > maxKills {
			w.violate("%s has ended %d processes", q.name(), q.kills)
		}
		w.kill(s.node)
		return
	}
	w.log("%s hangs because of %s", s.name, q.name())
	// A strike that has another cause may begin the count again: its rows are computed later without harm.
	most := maxHangs
	if w.sc.Load.deadly() > 1 || !w.sc.calm() {
		most *= 2
	}
	if q.hangs++; q.hangs > most {
		w.violate("%s has made %d processes hang", q.name(), q.hangs)
	}
	s.freeze()
	s.hung = true
	life := s.life
	w.after(w.between(3*time.Second, 6*time.Second), func() { // somebody ends it, and starts it again
		if s.life == life && w.kill(s.node) {
			w.after(w.between(0, time.Second), func() { w.revive(s.node) })
		}
	})
}
