package sim

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// Fault is something that goes wrong.
type Fault struct {
	At   time.Duration
	Kind Kind
	// Node and Other are numbers of processes: shards first, then samplers, then routers.
	Node, Other int
	For         time.Duration
	By          float64 // how many times slower, or by how many seconds a clock steps
}

// Kind is a kind of fault.
type Kind int

// Kinds of faults. A process that is killed starts again after the fault's duration, with nothing.
const (
	Kill Kind = iota
	Freeze
	Slow
	Cut
	Clock
	Break // the streams of a process break, and the process goes on
)

func (w *world) planFaults() {
	for _, f := range w.sc.Faults {
		w.after(f.At, func() { w.fault(f) })
	}
}

func (w *world) fault(f Fault) {
	if w.settling {
		return
	}
	n := w.nodes[f.Node%len(w.nodes)]
	switch f.Kind {
	case Kill:
		if w.kill(n) {
			w.after(f.For, func() { w.revive(n) })
		}
	case Freeze:
		if !n.dead && !n.frozen {
			n.freeze()
			life := n.life
			w.after(f.For, func() {
				if n.life == life {
					n.thaw()
				}
			})
		}
	case Slow:
		w.log("slow down %s by %v", n.name, f.By)
		n.slow = f.By
		w.after(f.For, func() { n.slow = 1 })
	case Cut:
		other := w.nodes[f.Other%len(w.nodes)]
		if other == n {
			return
		}
		key := [2]int{min(n.index, other.index), max(n.index, other.index)}
		w.log("cut %s off from %s", n.name, other.name)
		w.cuts[key] = true
		w.after(f.For, func() { w.heal(key) })
	case Clock:
		w.log("step the clock of %s by %v s", n.name, f.By)
		n.offset += time.Duration(f.By * float64(time.Second))
	case Break:
		w.breakLinks(n)
	}
}

func (w *world) heal(key [2]int) {
	w.log("heal %s and %s", w.nodes[key[0]].name, w.nodes[key[1]].name)
	delete(w.cuts, key)
	w.streams = slices.DeleteFunc(w.streams, func(s *stream) bool { return s.closed })
	for _, s := range w.streams {
		if len(s.held) > 0 {
			s.heal()
		}
	}
	waiting := w.onHeal
	w.onHeal = nil
	for _, do := range waiting {
		do()
	}
}

// kill ends a process. Its peers see that their streams break. Routers are not killed.
func (w *world) kill(n *node) bool {
	if n.dead || n.index >= len(w.shards)+len(w.samplers) {
		return false
	}
	w.log("kill %s", n.name)
	n.dead, n.frozen, n.hung, n.waiting = true, false, false, nil
	n.life++
	if i := n.index - len(w.shards); i >= 0 {
		s := w.samplers[i]
		for _, r := range w.routers {
			for _, p := range slices.Clone(r.all) {
				if p.sampler == s {
					p.breakSampler("the stream to " + n.name + " broke")
				}
			}
		}
		clear(s.pipes)
		return true
	}
	s := w.shards[n.index]
	for _, r := range w.routers {
		// Discovery notices it some time later; the broken streams are noticed at once.
		r.after(w.between(time.Second, 3*time.Second), func() {
			if s.dead {
				r.alive[n.index] = false
			}
		})
	}
	stages := s.stages
	s.stages, s.queue, s.busy = nil, nil, false
	for _, st := range stages {
		st.ended = true
		st.p.breakAt(st.index, "the stream to "+n.name+" broke")
	}
	return true
}

// revive starts a process again.
func (w *world) revive(n *node) {
	if !n.dead {
		return
	}
	w.log("start %s", n.name)
	n.dead = false
	if i := n.index - len(w.shards); i >= 0 {
		w.samplers[i].pipes = map[*pipe]map[sched.ID]*picker{}
		return
	}
	s := w.shards[n.index]
	w.startShard(s)
	for _, r := range w.routers {
		r.after(w.between(0, 50*w.sc.Hop), func() { r.alive[n.index], r.held[n.index] = true, false; r.rebuild() })
	}
}
