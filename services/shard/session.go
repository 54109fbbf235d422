package shard

import (
	"encoding/hex"
	"fmt"

	"go.opentelemetry.io/otel/attribute"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
)

// changesTable reports whether an entry brings a change of its session's block table.
func changesTable(e *shardv1.Entry) bool { return e.GetPageFrom() > 0 || len(e.GetPages()) > 0 }

// admit finds or creates an entry's session and makes sure that there are KV pages for its rows. It returns where
// the session's keys and values are, and its adapter.
func (p *pipeline) admit(e *shardv1.Entry) (model.Sequence[float32], *loaded, error) {
	h, name := p.held, string(e.GetSession())
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[name]
	switch {
	case s == nil && p.sessions >= maxSessions:
		return nil, nil, fault.New(fault.Exhausted, "the pipeline has %d sessions", p.sessions)
	case s == nil:
		a, err := h.adapterOf(e)
		if err != nil {
			return nil, nil, err
		}
		s = &session{pipeline: p.id, epoch: e.GetEpoch(), adapter: a}
	case s.pipeline != p.id && e.GetEpoch() <= s.epoch:
		return nil, nil, fault.New(fault.Aborted, "session %x belongs to another pipeline", e.GetSession())
	case e.GetEpoch() < s.epoch:
		return nil, nil, fault.New(fault.Aborted, "epoch %d of session %x is below %d", e.GetEpoch(), e.GetSession(),
			s.epoch)
	case s.pipeline != p.id:
		return nil, nil, fault.New(fault.Aborted, "session %x is still held by its former pipeline", e.GetSession())
	case !s.adapter.is(e):
		return nil, nil, fault.New(fault.Invalid, "session %x has another adapter than sha256:%x", e.GetSession(),
			e.GetAdapter())
	}
	s.epoch = e.GetEpoch()
	table, err := p.place(s, e)
	if err != nil {
		return nil, nil, err
	}
	if h.sessions[name] == nil {
		h.addSession(name, s)
		p.sessions++
		s.span = p.startSpan(e)
	}
	s.rows, s.steps = s.rows+int(e.GetRows()), s.steps+1
	return table, s.adapter, nil
}

// startSpan begins the span of a session, if its request is traced.
func (p *pipeline) startSpan(e *shardv1.Entry) *trace.Span {
	layers := p.held.stage.Range
	span := p.service.cfg.Tracer.Adopt(e.GetTraceparent(), "lamina/shard", "stage")
	if span != nil {
		span.Rename(fmt.Sprintf("stage %d-%d", layers.Lo, layers.Hi))
		span.Set(attribute.String("lamina.session", hex.EncodeToString(e.GetSession())),
			attribute.String("lamina.pipeline", hex.EncodeToString([]byte(p.id))),
			attribute.Int64("lamina.epoch", int64(e.GetEpoch())), attribute.Int("lamina.layers.lo", layers.Lo),
			attribute.Int("lamina.layers.hi", layers.Hi), attribute.String("lamina.shard", p.service.cfg.ID))
	}
	return span
}

// endSpan ends the span of a session that is dropped.
func (s *session) endSpan() {
	if s.span != nil {
		s.span.Set(attribute.Int("lamina.rows", s.rows), attribute.Int("lamina.steps", s.steps))
		s.span.End(nil)
	}
}

// place changes a session's block table as the entry says, and sets its cached length to the entry's
// position.
func (p *pipeline) place(s *session, e *shardv1.Entry) (model.Sequence[float32], error) {
	pos, rows := int(e.GetPosition()), int(e.GetRows())
	if s.lost {
		return nil, fault.New(fault.FailedPrecondition, "an entry of session %x was not computed", e.GetSession())
	}
	if changesTable(e) {
		table := s.table
		if table == nil {
			table = p.lease.NewTable()
		}
		if err := table.Change(int(e.GetPageFrom()), e.GetPages(), pos, rows); err != nil {
			return nil, err
		}
		s.table = table
		return table, nil
	}
	if s.table == nil {
		return nil, fault.New(fault.FailedPrecondition, "session %x has no block table", e.GetSession())
	}
	switch pages := s.table.Pages(); {
	case pages == 0:
		return nil, fault.New(fault.FailedPrecondition, "session %x has no block table", e.GetSession())
	case pos > s.table.Len():
		return nil, fault.New(fault.FailedPrecondition, "position %d of session %x is beyond the %d cached", pos,
			e.GetSession(), s.table.Len())
	case p.held.cache.PagesFor(pos+rows) > pages:
		return nil, fault.New(fault.Invalid, "position %d of session %x is beyond the %d pages of its block table",
			pos+rows-1, e.GetSession(), pages)
	}
	s.table.Truncate(pos)
	return s.table, nil
}

// forget drops the block tables of entries that were not computed. Further entries of their sessions may
// be on their way already, and a table change in one of them would vouch for the positions that are
// missing now. So they are refused until the session is released.
func (p *pipeline) forget(entries []*shardv1.Entry) {
	h := p.held
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range entries {
		s := h.sessions[string(e.GetSession())]
		if s != nil && s.pipeline == p.id && s.epoch <= e.GetEpoch() && s.table != nil {
			s.table.Free()
			s.lost = true
		}
	}
}

// release drops sessions, unmaps pages and acknowledges leases, in this order.
func (p *pipeline) release(r *shardv1.Release) {
	h := p.held
	h.mu.Lock()
	for _, name := range r.GetSessions() {
		s := h.sessions[string(name)]
		if s == nil || s.pipeline != p.id {
			continue
		}
		h.dropSession(string(name), s)
		p.sessions--
	}
	h.mu.Unlock()
	p.lease.Release(r.GetPages())
	for _, l := range r.GetLeases() {
		if int64(l.GetLo()) == int64(h.stage.Range.Lo) {
			p.lease.Acknowledge(int(l.GetPages()))
		}
	}
}
