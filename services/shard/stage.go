package shard

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// batch runs the stage over the accepted entries and sends the result downstream.
func (p *pipeline) batch(w work) error {
	h := p.held
	b := &model.Batch[float32]{Hidden: p.scratch[:0], IDs: p.ids[:0]}
	var accepted []*shardv1.Entry
	var runs []rowRun // of the rows of its slot
	rows, passed, width, until := 0, 0, h.stage.Spec.Width, w.batch.GetReplayUntil()
	seen := make(map[string]bool, len(w.batch.GetEntries()))
	var lost []*shardv1.Entry // refused
	defer func() { p.forget(lost) }()
	for _, at := range byAdapter(w.batch.GetEntries()) {
		e, row, n := at.Entry, at.row, int(at.GetRows())
		rows += n
		var ids []uint32
		if h.stage.First() {
			ids = w.batch.GetIds()[row : row+n]
		}
		err := p.refusal(e, ids)
		if err == nil && until > 0 && e.GetLogits() > 0 {
			err = fault.New(fault.Invalid, "logits of %d rows at position %d of a replay", e.GetLogits(), e.GetPosition())
		}
		if err == nil && seen[string(e.GetSession())] {
			err = fault.New(fault.Invalid, "session %x occurs twice in step %d", e.GetSession(), w.batch.GetStep())
		}
		seen[string(e.GetSession())] = true
		var seq model.Sequence[float32]
		var ad *loaded
		if err == nil {
			seq, ad, err = p.admit(e)
		}
		if err != nil {
			lost = append(lost, e)
			if err := p.refuse(w.batch, e, err); err != nil {
				return err
			}
			continue
		}
		accepted, passed = append(accepted, e), passed+n
		b.Entries = append(b.Entries, model.Entry[float32]{
			Seq: seq, Pos: int(e.GetPosition()), Rows: n, Logits: int(e.GetLogits()), Adapter: ad.forward(),
		})
		switch {
		case h.stage.First():
			for _, id := range ids {
				b.IDs = append(b.IDs, int32(id))
			}
		case w.batch.Slot != nil:
			runs = addRun(runs, row, n)
		default:
			b.Hidden = append(b.Hidden, w.hidden[row*width:(row+n)*width]...)
		}
	}
	p.scratch, p.ids = b.Hidden, b.IDs
	if len(accepted) == 0 { // no later stage will answer this batch
		if err := p.taken(w.batch); err != nil {
			return err
		}
		return p.computed(w.batch.GetStep())
	}
	b.Rank = h.rankFor(accepted)
	if w.batch.Slot != nil {
		b.In = func(x kernel.Buffer[float32]) { p.mapping.read(w.batch.GetSlot(), runs, x) }
	}
	slot := 0
	if int(until) != h.stage.Range.Hi {
		slot = p.ring.claim(passed)
	}
	if slot > 0 {
		b.Out = func(x kernel.Buffer[float32]) { p.ring.write(slot, x) }
	}
	h.compute.Lock()
	defer h.compute.Unlock()
	start := time.Now()
	result, err := h.stage.Forward(b)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "run step %d", w.batch.GetStep())
	}
	took := time.Since(start)
	if err := p.taken(w.batch); err != nil {
		return err
	}
	h.mu.Lock()
	h.rows += uint64(rows)
	h.computeUS += uint64(took.Microseconds())
	h.mu.Unlock()
	h.pace.observe(rows, float64(took.Nanoseconds())/1000)
	p.service.rows.Add(float64(rows))
	p.service.batches.Inc()
	p.service.compute.Add(took.Seconds())
	if int(until) == h.stage.Range.Hi { // the stages after this one have kept what they had computed
		return p.computed(w.batch.GetStep())
	}
	// The result points into the stage's scratch buffer.
	return p.down.batch(w.batch, accepted, stageResult{result, b.Ranked, slot})
}

// computed tells the router that a step is computed.
func (p *pipeline) computed(step uint64) error {
	return p.send(
		&shardv1.InferResponse{Frame: &shardv1.InferResponse_Computed{Computed: &shardv1.Computed{Step: step}}},
	)
}

// refuse tells upstream that an entry was refused.
func (p *pipeline) refuse(b *shardv1.Batch, e *shardv1.Entry, err error) error {
	return p.send(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Refused{Refused: &shardv1.Refused{
		Session: e.GetSession(), Step: b.GetStep(), Code: uint32(rpc.Code(fault.CodeOf(err))), Message: err.Error(),
		Lo: uint32(p.held.stage.Range.Lo),
	}}})
}
