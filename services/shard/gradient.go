package shard

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// chunkSize is the number of gradient bytes in one event.
const chunkSize = 256 << 10

// These are the two parts of a tied embedding whose two uses are on different stages.
const (
	tiedEmbedding = "tied-embedding"
	tiedHead      = "tied-head"
)

// removeTimeout bounds the removal of a run's events.
const removeTimeout = 5 * time.Second

// meetTimeout is how long a stage waits for another replica's gradient.
const meetTimeout = 5 * time.Minute

// gradient is the gradient of a span: one flat slice in name order, and views of it. It leaves out frozen
// parameters.
type gradient struct {
	flat   []float32
	params *model.Params[float32]
}

// takeGradient returns a gradient with unspecified values, from the pool if it has one.
func (s *trainSpan) takeGradient() *gradient {
	if n := len(s.grads); n > 0 {
		g := s.grads[n-1]
		s.grads = s.grads[:n-1]
		return g
	}
	total := 0
	offsets := map[string]int{}
	for _, p := range sorted(s.stage.Params().Tensors) {
		offsets[p.Name] = total
		if !s.frozen[p.Owner()] {
			total += len(p.Data)
		}
	}
	g := &gradient{flat: make([]float32, total), params: &model.Params[float32]{}}
	for _, p := range s.stage.Params().Tensors {
		if s.frozen[p.Owner()] {
			p.Data = nil
			g.params.Tensors = append(g.params.Tensors, p)
			continue
		}
		at := offsets[p.Name]
		p.Data = g.flat[at : at+len(p.Data) : at+len(p.Data)]
		g.params.Tensors = append(g.params.Tensors, p)
	}
	return g
}

// tensor returns the gradient of one parameter.
func (g *gradient) tensor(name string) []float32 {
	p, ok := g.params.Get(name)
	if !ok {
		panic(fmt.Sprintf("gradient of %q: no such parameter", name))
	}
	return p.Data
}

// reducer folds the gradients of a span in a step: this replica's slots, the other replicas' nodes from the
// bus, and the two parts of a tied embedding. A node of the tree has the same bits on every
// replica, so events are identified by their keys and repetition is harmless.
type reducer struct {
	run    *trainRun
	span   *trainSpan
	step   uint64
	folded *gradient // the step's gradient, until it is applied or dropped

	own     map[schedule.Node]bool          // the nodes that this replica publishes
	parents map[schedule.Node]schedule.Node // parents of the nodes below own
	theirs  map[schedule.Node]bool          // the nodes that the other replicas publish
	readers map[string]*reader              // by part
}

// reader reads one part's events of the current step. Chunks of several nodes arrive interleaved,
// so chunks that are not needed yet are kept.
type reader struct {
	events  gradbus.Subscription
	partial map[schedule.Node]*assembly
	whole   map[schedule.Node][]float32
}

func newReducer(s *trainSpan) *reducer {
	r := s.run
	m := &reducer{
		run: r, span: s, own: map[schedule.Node]bool{}, parents: map[schedule.Node]schedule.Node{},
		theirs: map[schedule.Node]bool{}, readers: map[string]*reader{},
	}
	slots, replicas := int(r.open.GetSlots()), int(r.open.GetReplicas())
	for replica := range replicas {
		lo, hi := schedule.Slots(slots, replica, replicas)
		for _, n := range schedule.Cover(slots, lo, hi) {
			if replica != int(r.open.GetReplica()) {
				m.theirs[n] = true
				continue
			}
			m.own[n] = true
			m.descend(n)
		}
	}
	return m
}

// descend records the parents of all nodes below n.
func (m *reducer) descend(n schedule.Node) {
	if n.Leaf() {
		return
	}
	left, right := n.Children()
	m.parents[left], m.parents[right] = n, n
	m.descend(left)
	m.descend(right)
}

func (m *reducer) close() {
	for part, in := range m.readers {
		if err := in.events.Close(); err != nil {
			m.run.service.log.Warn("close gradient events", "part", part, "error", err)
		}
	}
	if !m.cleans() || m.step == 0 {
		return
	}
	o := m.run.open
	// The run has ended on all stages, or it will restart with another name on the bus.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.run.ctx), removeTimeout)
	defer cancel()
	if err := m.run.service.cfg.Bus.Remove(ctx, o.GetRun()); err != nil {
		m.run.service.log.Warn("remove gradient events", "run", o.GetRun(), "error", err)
	}
}

// discard drops the step's gradient.
func (m *reducer) discard() {
	if m.folded != nil {
		m.span.grads = append(m.span.grads, m.folded)
		m.folded = nil
	}
}

// commit drops the step's gradient and, on one stage of the run, its events on the bus.
// The step is applied here, so every replica has published and read them.
func (m *reducer) commit() {
	m.discard()
	if !m.cleans() || m.step < 2 {
		return
	}
	run := m.run.open.GetRun()
	if err := m.run.service.cfg.Bus.Purge(m.run.ctx, run, m.step-1); err != nil {
		m.run.service.log.Warn("purge gradient events", "run", run, "step", m.step, "error", err)
	}
}

// cleans reports whether this span removes the run's events from the bus. That is the first span of
// the first stage of the first replica, if there are any events.
func (m *reducer) cleans() bool {
	o := m.run.open
	return o.GetReplica() == 0 && o.GetStage() == 0 && m.span.index == 0 && (o.GetReplicas() > 1 || m.span.tied != "")
}

// keep stores a slot's gradient and folds sibling nodes as soon as both exist. So a step holds at
// most one gradient per level of the tree, and not one per slot.
func (m *reducer) keep(nodes map[schedule.Node]*gradient, slot int, g *gradient) {
	n := schedule.Node{Lo: slot, Hi: slot + 1}
	nodes[n] = g
	for {
		parent, ok := m.parents[n]
		if !ok {
			return
		}
		left, right := parent.Children()
		if nodes[left] == nil || nodes[right] == nil {
			return
		}
		nodes[parent] = m.add(nodes[left], nodes[right])
		delete(nodes, left)
		delete(nodes, right)
		n = parent
	}
}

// publish sends this replica's nodes of a step to the other replicas. nodes holds them, as keep has
// left them.
func (m *reducer) publish(step uint64, nodes map[schedule.Node]*gradient) error {
	m.discard()
	if step != m.step { // a repeated step reads the same events
		for _, in := range m.readers {
			clear(in.partial)
			clear(in.whole)
		}
	}
	m.step = step
	total, replicas := int(m.run.open.GetSlots()), int(m.run.open.GetReplicas())
	if replicas == 1 {
		return nil
	}
	lo, hi := schedule.Slots(total, int(m.run.open.GetReplica()), replicas)
	for _, n := range schedule.Cover(total, lo, hi) {
		if err := m.send(m.part(), n, nodes[n].flat); err != nil { // nothing, if all parameters are frozen
			return err
		}
	}
	return nil
}

// part names the span on the bus.
func (m *reducer) part() string { return m.span.stage.Range.String() }

// gather waits for the other replicas' nodes and sums the slots of all replicas over the tree. It
// returns the time spent waiting.
func (m *reducer) gather(nodes map[schedule.Node]*gradient) (time.Duration, error) {
	begin := time.Now()
	total, replicas := int(m.run.open.GetSlots()), int(m.run.open.GetReplicas())
	for replica := range replicas {
		if replica == int(m.run.open.GetReplica()) {
			continue
		}
		lo, hi := schedule.Slots(total, replica, replicas)
		for _, n := range schedule.Cover(total, lo, hi) {
			g := m.span.takeGradient()
			if len(g.flat) > 0 {
				if err := m.await(m.part(), n, g.flat); err != nil {
					return 0, err
				}
			}
			nodes[n] = g
		}
	}
	wait := time.Since(begin)
	m.folded = m.whole(schedule.Node{Lo: 0, Hi: total}, nodes)
	return wait, nil
}

// whole returns a node's gradient, folded from the available nodes.
func (m *reducer) whole(n schedule.Node, nodes map[schedule.Node]*gradient) *gradient {
	if g := nodes[n]; g != nil {
		return g
	}
	left, right := n.Children()
	return m.add(m.whole(left, nodes), m.whole(right, nodes))
}

// add adds b to a and returns b to the pool.
func (m *reducer) add(a, b *gradient) *gradient {
	m.run.service.cfg.Kernels.Add(a.flat, b.flat)
	m.span.grads = append(m.span.grads, b)
	return a
}

// foldTied adds the head's part of a tied embedding's gradient to the embedding's part, in that
// order, on both stages that hold the weight.
func (m *reducer) foldTied() error {
	r := m.run
	first, last := m.span.stage.First(), m.span.stage.Last()
	if m.span.tied == "" {
		m.folded.params.FoldTied(r.service.cfg.Kernels.Add) // if both parts are on this stage
		return nil
	}
	own, mine, theirs := m.folded.tensor(m.span.tied), tiedEmbedding, tiedHead
	if last {
		mine, theirs = tiedHead, tiedEmbedding
	}
	all := schedule.Node{Lo: 0, Hi: int(r.open.GetSlots())}
	if r.open.GetReplica() == 0 {
		if err := m.send(mine, all, own); err != nil {
			return err
		}
	}
	other := make([]float32, len(own))
	if err := m.await(theirs, all, other); err != nil {
		return err
	}
	if first {
		r.service.cfg.Kernels.Add(own, other)
	} else { // embedding + head, on either stage
		r.service.cfg.Kernels.Add(other, own)
		copy(own, other)
	}
	return nil
}

// norms returns the sum of squares of each gradient tensor that this span owns. A gradient that is
// not finite is an error, since it must never reach the weights.
func (m *reducer) norms() ([]*shardv1.Norm, error) {
	var out []*shardv1.Norm
	for _, p := range m.span.state {
		if p.Tied() || !p.group.Trainable {
			continue
		}
		sum := m.run.service.cfg.Kernels.SumSquares(m.folded.tensor(p.Name))
		if math.IsNaN(sum) || math.IsInf(sum, 0) {
			return nil, fault.New(fault.DataLoss, "fold step %d: the gradient of %s is not finite", m.step, p.Name)
		}
		out = append(out, &shardv1.Norm{Name: p.Name, SumSquares: sum})
	}
	return out, nil
}
