package trainer

import (
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// work returns what a step over a batch computes.
func (t *training) work(b *batch) model.Work {
	w := model.Work{Frozen: t.run.plan.lowRank != nil}
	for _, s := range b.slots {
		sequences, length := int(s.GetSequences()), int(s.GetLength())
		w.Rows += sequences * length
		if len(s.GetDocuments()) == 0 {
			w.Documents = append(w.Documents, model.Sequences(sequences, length).Documents...)
		}
		for _, n := range s.GetDocuments() {
			w.Documents = append(w.Documents, int(n))
		}
	}
	return w
}

// machine is what the shards of a machine have said of it.
type machine struct {
	flops, thread float64 // of all shards; of the fastest thread
	processors    uint32
}

// addSpeed notes how fast the matrix products of a shard are.
func (f *fleet) addSpeed(addr string, o *shardv1.TrainOpened) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.speeds == nil {
		f.speeds = map[string]*shardv1.TrainOpened{}
	}
	f.speeds[addr] = o // the same for all stages of a shard
}

// peak returns the floating-point operations a second that the machines of all stages reach. Shards with more
// threads than their machine has processors share these.
func (f *fleet) peak() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	machines := map[string]*machine{}
	for addr, o := range f.speeds {
		name := machineName(addr, o.GetHost())
		if machines[name] == nil {
			machines[name] = &machine{}
		}
		m := machines[name]
		m.flops += o.GetMatmulFlops()
		m.thread = max(m.thread, o.GetMatmulFlops()/float64(max(1, min(o.GetThreads(), o.GetProcessors()))))
		m.processors = max(m.processors, o.GetProcessors())
	}
	sum := 0.0
	for _, m := range machines {
		sum += min(m.flops, m.thread*float64(max(1, m.processors)))
	}
	return sum
}
