package trainer

import (
	"cmp"
	"fmt"
	"math"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// Gradients says how replicas exchange gradients.
type Gradients struct {
	// Wire is "f32" (default; exact), "bf16" (2 times fewer bytes), "int8" (3.9 times fewer) or "topk" (the
	// largest values only). int8 and topk add what they have left out to the next gradient.
	Wire string `json:"wire,omitempty"`
	// Nodes is the number of nodes of the gradient tree that are encoded, a power of two; by default 2, or 1 for
	// a single slot. It is also the largest number of replicas. A replica that computes two nodes sends twice
	// as many bytes as one that computes one. Not for f32.
	Nodes int `json:"nodes,omitempty"`
	// Density is the share of the values of each tensor that topk sends; 0.01 when absent.
	Density float64 `json:"density,omitempty"`
	// MaxNorm is the largest norm of a replica's gradient for a stage that is accepted; 0 for any finite one.
	MaxNorm float64 `json:"max_norm,omitempty"`
	// Direct is "auto" (default) or "off". With "auto", replicas on one machine exchange gradients by gRPC, and only
	// the sums of machines go over NATS. The weights are the same.
	Direct string `json:"direct,omitempty"`
}

// defaultDensity is the share of values that topk sends unless the manifest says otherwise.
const defaultDensity = 0.01

func (g *Gradients) codec() compress.Codec { return compress.Codec{Wire: g.Wire, Density: g.Density} }

func (m *Manifest) setGradientDefaults() {
	g := &m.Gradients
	g.Wire = cmp.Or(g.Wire, compress.F32)
	if !g.codec().Exact() && m.DiLoCo == nil {
		g.Nodes = cmp.Or(g.Nodes, min(2, m.Slots))
	}
	if g.Wire == compress.TopK {
		g.Density = cmp.Or(g.Density, defaultDensity)
	}
	if d := m.DiLoCo; d != nil {
		d.Interval, d.Fragments = cmp.Or(d.Interval, 50), cmp.Or(d.Fragments, 1)
		d.LearningRate = cmp.Or(d.LearningRate, 0.7)
		if d.Momentum == nil {
			momentum := 0.9
			d.Momentum = &momentum
		}
	}
}

func (m *Manifest) checkGradients() error {
	g := &m.Gradients
	if err := g.codec().Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "gradients")
	}
	switch {
	case g.Direct != "" && g.Direct != directAuto && g.Direct != directOff:
		return fault.Field("gradients.direct", "%q is neither %s nor %s", g.Direct, directAuto, directOff)
	case g.codec().Exact() && g.Nodes != 0:
		return fault.Field("gradients.nodes", "f32 has none")
	case m.DiLoCo != nil && g.Nodes != 0:
		return fault.Field("gradients.nodes", "the workers of diloco take their place")
	case g.Wire != compress.TopK && g.Density != 0:
		return fault.Field("gradients.density", "only topk has one")
	case !(g.MaxNorm >= 0) || math.IsInf(g.MaxNorm, 0):
		return fault.Field("gradients.max_norm", "%v is not a number from 0", g.MaxNorm)
	}
	if m.DiLoCo != nil {
		return m.DiLoCo.check(m.Slots)
	}
	if g.codec().Exact() {
		return nil
	}
	return schedule.CheckLevel("gradients.nodes", m.Slots, g.Nodes)
}

// open returns the section as stages are told.
func (g *Gradients) open() *shardv1.Gradients {
	return &shardv1.Gradients{Wire: g.Wire, Nodes: uint32(g.Nodes), Density: g.Density, MaxNorm: g.MaxNorm}
}

// share returns the range of slots that a replica computes.
func (m *Manifest) share(replica, replicas int) (lo, hi int) {
	if m.DiLoCo != nil {
		return schedule.LevelSlots(m.Slots, m.DiLoCo.Workers, replica, replicas)
	}
	if m.Gradients.codec().Exact() {
		return schedule.Slots(m.Slots, replica, replicas)
	}
	return schedule.LevelSlots(m.Slots, m.Gradients.Nodes, replica, replicas)
}

// checkReplicas returns an error if the slots cannot be shared by so many replicas.
func (m *Manifest) checkReplicas(replicas int) error {
	if replicas > m.Slots {
		return fault.Field("replicas", "%d replicas are more than %d slots", replicas, m.Slots)
	}
	if m.DiLoCo != nil && replicas > m.DiLoCo.Workers {
		return fault.Field("replicas", "%d replicas are more than the %d workers of diloco.workers", replicas,
			m.DiLoCo.Workers)
	}
	if n := m.Gradients.Nodes; n > 0 && replicas > n {
		return fault.Field("replicas", "%d replicas are more than the %d nodes of gradients.nodes", replicas, n)
	}
	return nil
}

// cutSlots splits the name of a state tensor into the parameter's name and the slots that it is about, if
// it is not about all of them.
func cutSlots(name string) (param string, lo, hi int, ok bool) {
	param, slots, ok := strings.Cut(name, "@")
	if ok {
		_, err := fmt.Sscanf(slots, "%d-%d", &lo, &hi)
		ok = err == nil
	}
	return param, lo, hi, ok
}

// traffic sums the stages' reports about gradients on the bus.
type traffic struct {
	sent, read, full, direct uint64
	errors, nodes            float64
}

func (t *traffic) add(f interface {
	GetBytesSent() uint64
	GetBytesRead() uint64
	GetBytesFull() uint64
	GetErrorSquares() float64
	GetNodeSquares() float64
}) {
	t.sent, t.read, t.full = t.sent+f.GetBytesSent(), t.read+f.GetBytesRead(), t.full+f.GetBytesFull()
	t.errors, t.nodes = t.errors+f.GetErrorSquares(), t.nodes+f.GetNodeSquares()
}

// ratio returns how many times fewer bytes were sent than by exchanging float32 gradients in every step; 0 if
// nothing was sent.
func (t *traffic) ratio() float64 {
	if t.sent == 0 {
		return 0
	}
	return float64(t.full) / float64(t.sent)
}

// error returns the norm of what encoding has left out, divided by that of the gradients.
func (t *traffic) error() float64 {
	if t.nodes == 0 {
		return 0
	}
	return math.Sqrt(t.errors / t.nodes)
}
