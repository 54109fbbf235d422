package shard

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// batch runs the stage over the accepted entries and sends the result downstream.
func (p *pipeline) batch(w work) error {
	h := p.held
	b := &model.Batch[float32]{Hidden: p.scratch[:0], IDs: p.ids[:0]}
	var accepted []*shardv1.Entry
	row, width := 0, h.stage.Spec.Width
	seen := make(map[string]bool, len(w.batch.GetEntries()))
	for _, e := range w.batch.GetEntries() {
		n := int(e.GetRows())
		var ids []uint32
		if h.stage.First() {
			ids = w.batch.GetIds()[row : row+n]
		}
		err := p.refusal(e, ids)
		if err == nil && seen[string(e.GetSession())] {
			err = fault.New(fault.Invalid, "session %x occurs twice in step %d", e.GetSession(), w.batch.GetStep())
		}
		seen[string(e.GetSession())] = true
		var s *session
		if err == nil {
			s, err = p.admit(e)
		}
		if err != nil {
			if err := p.refuse(w.batch, e, err); err != nil {
				return err
			}
			row += n
			continue
		}
		accepted = append(accepted, e)
		b.Entries = append(
			b.Entries, model.Entry[float32]{Seq: s.seq, Pos: int(e.GetPosition()), Rows: n, Logits: int(e.GetLogits())},
		)
		if h.stage.First() {
			for _, id := range ids {
				b.IDs = append(b.IDs, int32(id))
			}
		} else {
			b.Hidden = append(b.Hidden, w.hidden[row*width:(row+n)*width]...)
		}
		row += n
	}
	p.scratch, p.ids = b.Hidden, b.IDs
	if len(accepted) == 0 { // no later stage will answer this batch
		return p.computed(w.batch.GetStep())
	}
	h.compute.Lock()
	defer h.compute.Unlock()
	start := time.Now()
	result, err := h.stage.Forward(b)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "run step %d", w.batch.GetStep())
	}
	took := time.Since(start)
	h.mu.Lock()
	h.rows += uint64(row)
	h.computeUS += uint64(took.Microseconds())
	h.mu.Unlock()
	p.service.rows.Add(float64(row))
	p.service.batches.Inc()
	p.service.compute.Add(took.Seconds())
	return p.down.batch(w.batch, accepted, result) // result points into the stage's scratch buffer
}

// admit finds or creates an entry's session and reserves KV pages for its rows.
func (p *pipeline) admit(e *shardv1.Entry) (*session, error) {
	h := p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[string(e.GetSession())]
	switch {
	case s == nil:
		s = &session{pipeline: p.id, epoch: e.GetEpoch(), seq: h.cache.NewSequence()}
	case s.pipeline != p.id && e.GetEpoch() <= s.epoch:
		return nil, fault.New(fault.Aborted, "session %x belongs to another pipeline", e.GetSession())
	case e.GetEpoch() < s.epoch:
		return nil, fault.New(fault.Aborted, "epoch %d of session %x is below %d", e.GetEpoch(), e.GetSession(),
			s.epoch)
	case s.pipeline != p.id:
		return nil, fault.New(fault.Aborted, "session %x is still held by its former pipeline", e.GetSession())
	}
	s.epoch = e.GetEpoch()
	pos := int(e.GetPosition())
	if pos > s.seq.Len() {
		return nil, fault.New(
			fault.FailedPrecondition, "position %d of session %x is beyond the %d cached", pos, e.GetSession(),
			s.seq.Len(),
		)
	}
	s.seq.Truncate(pos)
	if err := s.seq.Reserve(pos + int(e.GetRows())); err != nil {
		return nil, err
	}
	h.sessions[string(e.GetSession())] = s
	return s, nil
}

// computed tells the router that a step without tokens is done.
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

// free returns the KV pages of sessions.
func (p *pipeline) free(names [][]byte) {
	h := p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		if s := h.sessions[string(name)]; s != nil && s.pipeline == p.id {
			s.seq.Free()
			delete(h.sessions, string(name))
		}
	}
}

// freeAll returns the KV pages of all sessions of the pipeline. Holding the compute lock
// means that no batch uses them.
func (p *pipeline) freeAll() {
	h := p.held
	h.compute.Lock()
	defer h.compute.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, s := range h.sessions {
		if s.pipeline == p.id {
			s.seq.Free()
			delete(h.sessions, name)
		}
	}
}
