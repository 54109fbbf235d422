package shard

import (
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// A GPU looks for the candidates of a row itself, so that the host gets those and not the row. How a row is treated
// depends on its entry alone: log-sum-exps of the device and of the host are not the same to the bit.

// stageResult is what a stage has computed of a batch: hidden states or logits, or ranked logits or hidden states that
// are on the device.
type stageResult struct {
	values []float32
	ranked *model.Ranked[float32]
	slot   int // of the ring, from 1 on, with hidden states
}

// row returns the logits of a row.
func (r *stageResult) row(i, vocab int) []float32 {
	if r.ranked != nil {
		return r.ranked.Row(i)
	}
	return r.values[i*vocab : (i+1)*vocab]
}

// rankable reports whether the rows of an entry with logits need candidates alone.
func rankable(e *shardv1.Entry, vocab int) bool {
	k := int(e.GetCandidates())
	return k > 0 && k < vocab && k <= kernel.MaxRank && len(e.GetTargets()) == 0
}

// rankFor returns how many candidates of each row the stage has to find for a batch; 0 if it returns whole rows.
func (h *held) rankFor(entries []*shardv1.Entry) (k int) {
	if !h.stage.Ranks() {
		return 0
	}
	for _, e := range entries {
		if e.GetLogits() > 0 && rankable(e, h.stage.Spec.Vocab) {
			k = max(k, int(e.GetCandidates()))
		}
	}
	return k
}

// candidates returns the message of a ranked row. The row is kept, since the sampler may ask for the rest.
func (t *toSampler) candidates(e *shardv1.Entry, pos uint32, of *model.Ranked[float32], i int) *samplerv1.Row {
	h, k := t.pipeline.held, int(e.GetCandidates())
	out := &samplerv1.Row{Session: e.GetSession(), Epoch: e.GetEpoch(), Position: pos, LogSumExp: of.LSE[i]}
	for _, id := range of.IDs[i*of.K : i*of.K+k] {
		out.Ids = append(out.Ids, uint32(id))
	}
	out.Logits, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{k}, of.Logits[i*of.K:i*of.K+k])
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[string(e.GetSession())]; s != nil {
		h.keepRanked(s, of, i, pos)
	}
	return out
}

// keptSlots bounds the rows that are kept on the device. Those of more sessions are kept on the host.
const keptSlots = 64

// keptRows is memory of the device for the last rows of sessions.
type keptRows struct {
	memory kernel.Memory[float32]
	rows   kernel.Buffer[float32] // [keptSlots,V]; nil before the first
	free   []int                  // slots
}

// keepRow keeps the last row of a session on the host. The caller holds mu.
func (h *held) keepRow(s *session, row []float32, pos uint32, lse float64) {
	h.freeRow(s)
	s.row, s.rowPos, s.lse = append(s.row[:0], row...), pos, lse
}

// keepRanked keeps the last row of a session, on the device if a slot is free. The caller holds mu.
func (h *held) keepRanked(s *session, of *model.Ranked[float32], i int, pos uint32) {
	v, kept := h.stage.Spec.Vocab, &h.kept
	if kept.rows == nil {
		kept.memory = h.stage.Kernels().Scope()
		kept.rows = kept.memory.Alloc(keptSlots * v)
		for slot := keptSlots; slot > 0; slot-- {
			kept.free = append(kept.free, slot)
		}
	}
	n := len(kept.free)
	if s.slot == 0 && n == 0 {
		h.keepRow(s, of.Row(i), pos, of.LSE[i])
		return
	}
	if s.slot == 0 {
		s.slot, kept.free = kept.free[n-1], kept.free[:n-1]
	}
	s.row, s.rowPos, s.lse = s.row[:0], pos, of.LSE[i]
	of.Keep(kept.slot(s.slot, v), i)
}

// slot returns a slot's memory.
func (k *keptRows) slot(slot, v int) kernel.Buffer[float32] { return k.rows[(slot-1)*v : slot*v] }

// keptRow returns a copy of the row that a session of a pipeline has kept of the position in out, or nothing, and sets
// the epoch and the log-sum-exp of out. A copy from the device waits for the batch that it computes, so mu is not held
// meanwhile: the slot is taken from the session, and given back if that has kept no other row since.
func (h *held) keptRow(pipeline string, out *samplerv1.Row) (row []float32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[string(out.GetSession())]
	if s == nil || s.pipeline != pipeline || s.rowPos != out.GetPosition() {
		return nil
	}
	out.Epoch, out.LogSumExp = s.epoch, s.lse
	if s.slot == 0 {
		return append([]float32(nil), s.row...)
	}
	slot := s.slot
	s.slot = 0
	func() {
		h.mu.Unlock()
		defer h.mu.Lock() // also if the device is lost, for which Host panics
		row = h.kept.memory.Host(h.kept.slot(slot, h.stage.Spec.Vocab))
	}()
	same := h.sessions[string(out.GetSession())] == s
	if same && s.slot == 0 && len(s.row) == 0 && s.rowPos == out.GetPosition() {
		s.slot = slot
	} else {
		h.kept.free = append(h.kept.free, slot)
	}
	return row
}

// freeRow frees the slot of a session. The caller holds mu.
func (h *held) freeRow(s *session) {
	if s.slot > 0 {
		h.kept.free, s.slot = append(h.kept.free, s.slot), 0
	}
}
