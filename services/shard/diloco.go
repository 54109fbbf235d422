package shard

import (
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// diloco lets the workers of this replica step on their own and averages their weights.
//
// A worker is a node of the tree over slots, fixed by the run and not by its layout, so the weights do not
// depend on how many workers a replica has. The stage has one set of parameters. It holds the state of the
// worker that steps, and use exchanges it. paramState.common has the common weights, which are the weights of
// the run.
type diloco struct {
	run       *trainRun
	set       *shardv1.DiLoCo
	outer     optim.Outer
	workers   []*worker // of this replica
	current   *worker   // whose state the parameters have; nil for the common weights
	fragments []*fragment
}

// worker is one worker's part of a stage.
type worker struct {
	index    int
	node     schedule.Node
	state    map[*paramState]*ownState
	reducers []*reducer // by span; a worker sums only its own slots
	stepped  uint64
}

// ownState is what a worker has of a parameter.
type ownState struct{ data, m, v []float32 }

// fragment is a group of a span's parameters that are averaged in the same step. Its units are the workers'
// differences.
type fragment struct {
	*reducer
	params []*paramState
	index  int
	sent   uint64                      // the step whose differences are on their way; 0 for none
	deltas map[schedule.Node][]float32 // those of this replica's workers, as their readers decode them
}

func newDiloco(r *trainRun, spec model.Spec) (*diloco, error) {
	set := r.open.GetDiloco()
	d := &diloco{run: r, set: set, outer: optim.Outer{Rate: set.GetLearningRate(), Momentum: set.GetMomentum()}}
	all := tree{root: schedule.Node{Hi: int(r.open.GetSlots())}, all: map[schedule.Node]int{}, codec: codec(r.open),
		replicas: len(r.members.shares), self: r.members.own}
	for replica, share := range r.members.shares {
		for i, n := range schedule.Level(all.root.Hi, int(set.GetWorkers())) {
			if n.Lo < share.lo || n.Hi > share.hi {
				continue
			}
			all.all[n] = replica
			if replica == all.self {
				d.workers = append(d.workers, d.newWorker(i, n))
			}
		}
	}
	of, err := fragmentsOf(spec, int(set.GetFragments()))
	if err != nil {
		return nil, err
	}
	for _, s := range r.spans {
		for index := range int(set.GetFragments()) {
			t := all
			t.label = fmt.Sprintf(".f%d", index)
			d.fragments = append(d.fragments, newFragment(s, t, index, of))
		}
	}
	return d, nil
}

func (d *diloco) newWorker(index int, n schedule.Node) *worker {
	w := &worker{index: index, node: n, state: map[*paramState]*ownState{}}
	for _, s := range d.run.spans {
		w.reducers = append(w.reducers, newReducer(s, tree{
			root: n, all: map[schedule.Node]int{n: d.run.members.own}, replicas: 1,
			self: d.run.members.own, tied: s.tied,
			label: fmt.Sprintf(".w%d", index),
		}, s.trained()))
		for _, p := range s.state {
			if !p.group.Trainable {
				continue
			}
			if p.common == nil {
				p.common, p.outer = slices.Clone(p.Data), make([]float32, len(p.Data))
			}
			w.state[p] = &ownState{data: slices.Clone(p.Data), m: slices.Clone(p.m), v: slices.Clone(p.v)}
		}
	}
	return w
}

// fragmentsOf gives each parameter of a model one of n fragments of about equal size. It does not depend on
// how the model is split into stages.
func fragmentsOf(spec model.Spec, n int) (map[string]int, error) {
	params, err := spec.Parameters()
	if err != nil {
		return nil, err
	}
	total := 0
	size := func(p model.Param[float32]) int {
		out := 1
		for _, d := range p.Shape {
			out *= d
		}
		return out
	}
	params = slices.DeleteFunc(sorted(params), func(p model.Param[float32]) bool { return p.Tied() })
	for _, p := range params {
		total += size(p)
	}
	out, at := map[string]int{}, 0
	for _, p := range params {
		out[p.Name] = min(n-1, at*n/max(1, total))
		at += size(p)
	}
	return out, nil
}

func newFragment(s *trainSpan, t tree, index int, of map[string]int) *fragment {
	f := &fragment{index: index, deltas: map[schedule.Node][]float32{}}
	var params []model.Param[float32]
	for _, p := range s.state { // in name order
		if p.group.Trainable && of[p.Owner()] == index {
			f.params, params = append(f.params, p), append(params, p.Param)
		}
	}
	f.reducer = newReducer(s, t, params)
	f.folded = s.run.newGradient(f.size())
	for _, n := range f.units {
		f.deltas[n] = make([]float32, f.size())
	}
	return f
}

// use puts the state of a worker into the stage's parameters, or the common weights if w is nil.
func (d *diloco) use(w *worker) {
	if w == d.current {
		return
	}
	for _, p := range d.run.state {
		if p.common == nil {
			continue
		}
		if d.current != nil {
			d.run.changes(d.current.state[p].data)
			copy(d.current.state[p].data, p.Data)
		}
		if w == nil {
			copy(p.Data, p.common)
			continue
		}
		own := w.state[p]
		copy(p.Data, own.data)
		p.m, p.v = own.m, own.v
	}
	if w != nil {
		for i, s := range d.run.spans {
			s.reducer = w.reducers[i]
		}
	}
	d.current = w
}

// loaded takes over a state that has been loaded, of the given step.
func (d *diloco) loaded(step uint64) error {
	d.current = nil
	for _, p := range d.run.state {
		if p.common != nil {
			copy(p.Data, p.common)
		}
	}
	// Publish the differences again that were on their way. They are decoded ones, so they go as float32.
	for _, f := range d.fragments {
		for sent := max(step, uint64(d.set.GetDelay())) - uint64(d.set.GetDelay()) + 1; sent <= step; sent++ {
			if sent == 0 || !d.due(f, sent) {
				continue
			}
			f.sent, f.step = sent, sent
			f.mail.begin(d.run.ctx, attempt{step: sent})
			for _, b := range f.buckets {
				b.codec, b.nodes.wire, b.nodes.size, b.scatter = compress.Codec{}, "", 4*(b.hi-b.lo), false
				for _, n := range f.units {
					if f.replicas == 1 {
						continue
					}
					if err := f.mail.send(b.nodes.part, n, "", b.encode(f.reducer, f.deltas[n], nil)); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// find returns a worker of this replica.
func (d *diloco) find(index uint32) (*worker, error) {
	for _, w := range d.workers {
		if w.index == int(index) {
			return w, nil
		}
	}
	return nil, fault.Field("worker", "%d is not one of replica %d", index, d.run.open.GetReplica())
}

// due reports whether the differences of a fragment are sent after a step.
func (d *diloco) due(f *fragment, step uint64) bool {
	interval := uint64(d.set.GetInterval())
	return (step+uint64(f.index)*interval/uint64(d.set.GetFragments()))%interval == 0
}

// stepped averages what is due, after all workers of the replica have made a step.
func (d *diloco) stepped(w *worker, step uint64, all bool) error {
	w.stepped = step
	for _, w := range d.workers {
		if w.stepped != step {
			return nil
		}
	}
	r := d.run
	var send, receive []*fragment
	for _, f := range d.fragments {
		if r.open.GetReplicas() > 1 { // what an exchange in every step would take
			r.full += uint64(4 * f.size() * len(d.workers))
		}
		if all || d.due(f, step) {
			send = append(send, f)
		}
	}
	if len(send) > 0 {
		d.use(nil) // all workers' weights are in their own state
	}
	for _, f := range send {
		if err := d.send(f, step); err != nil {
			return err
		}
	}
	for _, f := range d.fragments {
		if f.sent > 0 && (all || f.sent+uint64(d.set.GetDelay()) == step) {
			receive = append(receive, f)
		}
	}
	if len(receive) > 0 {
		d.use(nil)
	}
	for _, f := range receive {
		if err := d.receive(f, all); err != nil {
			return err
		}
	}
	if len(receive) > 0 {
		d.current = nil // of which the common weights have changed
		for _, p := range r.state {
			if p.common != nil {
				copy(p.Data, p.common)
			}
		}
	}
	// The other replicas may still read what was sent delay steps ago, but not what was sent before.
	if lag := uint64(d.set.GetDelay()) + 1; step > lag {
		r.purgeEvents(step - lag)
	}
	return nil
}

// send publishes the differences of this replica's workers.
func (d *diloco) send(f *fragment, step uint64) error {
	d.changes(f)
	f.sent, f.step = step, step
	f.mail.begin(d.run.ctx, attempt{step: step})
	f.errorSquares, f.nodeSquares = 0, 0
	for _, b := range f.buckets { // loaded has changed them
		f.restore(b)
	}
	for _, w := range d.workers {
		at := 0
		delta := f.deltas[w.node]
		for _, p := range f.params {
			own := w.state[p].data
			for i, v := range p.common {
				delta[at+i] = v - own[i]
			}
			at += len(own)
		}
		if err := f.finish(w.node, &gradient{flat: delta, host: delta, set: d.run.memory}); err != nil {
			return err
		}
	}
	for n, residual := range f.residual {
		copy(residual, f.pending[n])
	}
	return nil
}

// restore gives a bucket the wire type of the run.
func (f *fragment) restore(b *bucket) {
	b.codec, b.nodes.wire, b.nodes.size = f.codec, f.codec.Wire, 0
	for _, p := range b.params {
		b.nodes.size += f.codec.Size(len(p.Data))
	}
	b.scatter = f.scatters(b)
}

// receive sums the differences of all workers, makes the outer step and moves the workers to the result.
func (d *diloco) receive(f *fragment, all bool) error {
	d.changes(f)
	if err := f.fold(f.deltas); err != nil {
		return err
	}
	for _, delta := range f.deltas {
		clear(delta) // it may have become part of a sum
	}
	f.sent = 0
	mix := d.set.GetMix()
	if all {
		mix = 0
	}
	at := 0
	for _, p := range f.params {
		d.outer.Step(p.common, p.outer, f.folded.values()[at:at+len(p.common)], int(d.set.GetWorkers()))
		at += len(p.common)
		for _, w := range d.workers {
			optim.Mix(w.state[p].data, p.common, mix)
		}
	}
	return nil
}

// tensors lists the state of a parameter: the common weights with their momentum, and the workers' state.
func (d *diloco) tensors(p *paramState) []stateTensor {
	out := []stateTensor{
		{kind: shardv1.StateKind_STATE_KIND_WEIGHT, data: p.common, name: p.Owner(), equal: !p.Tied()},
		{kind: shardv1.StateKind_STATE_KIND_OUTER_MOMENT, data: p.outer, name: p.Owner(), equal: !p.Tied()},
	}
	add := func(kind shardv1.StateKind, n schedule.Node, data []float32) {
		out = append(out, stateTensor{kind: kind, data: data, name: slotsName(p.Owner(), n), own: !p.Tied()})
	}
	for _, w := range d.workers {
		own := w.state[p]
		add(shardv1.StateKind_STATE_KIND_WORKER_WEIGHT, w.node, own.data)
		add(shardv1.StateKind_STATE_KIND_MOMENT1, w.node, own.m)
		add(shardv1.StateKind_STATE_KIND_MOMENT2, w.node, own.v)
	}
	for _, f := range d.fragments {
		at := 0
		for _, other := range f.params {
			if n := len(other.Data); other != p {
				at += n
				continue
			}
			for _, n := range f.units {
				if d.set.GetDelay() > 0 {
					add(shardv1.StateKind_STATE_KIND_OUTER_DELTA, n, f.deltas[n][at:at+len(p.Data)])
				}
				if f.residual[n] != nil {
					add(shardv1.StateKind_STATE_KIND_OUTER_RESIDUAL, n, f.residual[n][at:at+len(p.Data)])
				}
			}
			break
		}
	}
	for i := range out {
		out[i].shape, out[i].at = p.Shape, hostMemory
	}
	return slices.DeleteFunc(out, func(t stateTensor) bool { return t.data == nil })
}

// changes is called before the state of a fragment's parameters changes.
func (d *diloco) changes(f *fragment) {
	for _, p := range f.params {
		for _, t := range d.tensors(p) {
			d.run.changes(t.data)
		}
	}
}

func (d *diloco) close() {
	for _, w := range d.workers {
		for _, m := range w.reducers {
			m.close()
		}
	}
	for _, f := range d.fragments {
		f.close()
	}
}

// checkDiloco checks the settings of DiLoCo.
func checkDiloco(o *shardv1.TrainOpen) error {
	d := o.GetDiloco()
	if d == nil {
		return nil
	}
	if err := schedule.CheckLevel("open.diloco.workers", int(o.GetSlots()), int(d.GetWorkers())); err != nil {
		return err
	}
	switch {
	case o.GetReplicas() > d.GetWorkers():
		return fault.Field("open.replicas", "%d replicas for %d workers", o.GetReplicas(), d.GetWorkers())
	case d.GetInterval() == 0 || d.GetInterval() > 1<<20:
		return fault.Field("open.diloco.interval", "%d is not within 1..%d", d.GetInterval(), 1<<20)
	case d.GetFragments() == 0 || d.GetFragments() > d.GetInterval() || d.GetInterval()%d.GetFragments() != 0:
		return fault.Field("open.diloco.fragments", "%d do not divide an interval of %d", d.GetFragments(),
			d.GetInterval())
	case d.GetDelay() >= d.GetInterval():
		return fault.Field("open.diloco.delay", "%d is not below the interval, %d", d.GetDelay(), d.GetInterval())
	case !(d.GetMix() >= 0 && d.GetMix() < 1):
		return fault.Field("open.diloco.mix", "%v is not within [0, 1)", d.GetMix())
	case !(d.GetLearningRate() > 0 && d.GetLearningRate() <= 10):
		return fault.Field("open.diloco.learning_rate", "%v is not within (0, 10]", d.GetLearningRate())
	case !(d.GetMomentum() >= 0 && d.GetMomentum() < 1):
		return fault.Field("open.diloco.momentum", "%v is not within [0, 1)", d.GetMomentum())
	}
	return nil
}
