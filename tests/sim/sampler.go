package sim

import "github.com/lamina-mesh/lamina/pkg/sched"

// sampler is a process that picks tokens. It has sessions for each pipeline.
type sampler struct {
	*node
	pipes map[*pipe]map[sched.ID]*picker
	// adding holds sessions whose grammars are being compiled. Until then the former ones of their names live.
	adding map[sched.ID]*picker
}

// picker is the state of a session: a function of its log.
type picker struct {
	q       *request // nil for a session that drafts
	epoch   uint64
	log     state
	length  int
	last    int // the last position of which a row was used; -1 before the first
	history []int32
	emitted int
}

// token is what the sampler reports with a token.
type token struct {
	id      int32
	finish  string
	logprob float64
}

func (s *sampler) add(p *pipe, id sched.ID, epoch uint64, log []int32, emitted int) {
	w := s.w
	sessions := s.pipes[p]
	if sessions == nil {
		return
	}
	for _, same := range []*picker{sessions[id], s.adding[id]} {
		if same != nil && same.epoch == epoch {
			return // the frame came twice
		}
	}
	n := &picker{q: w.owner[id], epoch: epoch, last: -1, length: len(log), emitted: emitted}
	n.log = w.roots[id].extendAll(log)
	if len(log) > 0 {
		n.history = log[len(log)-1:]
	}
	if n.q != nil && n.q.hostile == refusedBySampler {
		e := sched.Refused{ID: id, Epoch: epoch, Data: result{err: "invalid: temperature"}}
		p.fromSampler.send(control, func() { p.tell(e) })
		return
	}
	if s.adding == nil {
		s.adding = map[sched.ID]*picker{}
	}
	s.adding[id] = n
	finish := func() {
		if s.pipes[p] != nil && s.adding[id] == n {
			delete(s.adding, id)
			s.pipes[p][id] = n
			p.fromSampler.send(data, func() { p.tell(sched.Accepted{ID: id, Epoch: epoch}) })
		}
	}
	if w.chance(w.sc.Compile) { // a grammar is compiled
		s.after(w.between(0, 50*w.sc.BatchTime), finish)
		return
	}
	finish()
}

func (s *sampler) remove(p *pipe, id sched.ID) {
	delete(s.pipes[p], id)
	delete(s.adding, id)
}

// rows handles the rows of a batch that need logits.
func (s *sampler) rows(p *pipe, b *batch) {
	sessions := s.pipes[p]
	if sessions == nil {
		return
	}
	at := 0
	for _, e := range b.Entries {
		rows := b.rows[at : at+e.Rows]
		at += e.Rows
		n := sessions[e.ID]
		if n == nil || e.Epoch < n.epoch || e.Logits == 0 { // the last stage sends the sampler no other rows
			continue
		}
		if e.Epoch > n.epoch {
			s.w.violate("the sampler is sent a row of %s under epoch %d, and knows epoch %d", e.ID, e.Epoch, n.epoch)
			return
		}
		first := e.Rows - e.Logits
		for i := first; i < e.Rows; i++ {
			pos := e.Position + i
			if j := i - first; j < len(e.Targets) {
				s.score(p, e, pos, rows[i], e.Targets[j])
				continue
			}
			draft := i >= e.Rows-len(e.Drafts)
			if !s.pick(p, n, e.ID, pos, rows[i], draft) {
				break
			}
		}
	}
}

// pick picks a token from a row, and reports whether it used the row.
func (s *sampler) pick(p *pipe, n *picker, id sched.ID, pos int, r row, draft bool) bool {
	w := s.w
	if pos <= n.last {
		return true
	}
	if draft && (pos != n.last+1 || n.history[len(n.history)-1] != r.token) {
		return true // it follows a draft token that was rejected
	}
	out := sched.Picked{ID: id, Epoch: n.epoch, Position: pos + 1}
	t := token{}
	if n.q == nil {
		t.id = r.hidden.pickDraft(r.token)
	} else {
		if pos+1 != n.length {
			w.violate("the sampler is sent position %d of %s, whose log has %d", pos, id, n.length)
			return false
		}
		if r.hidden != n.log {
			w.violate("the sampler is sent a row of %s at position %d that was not computed from its log", id, pos)
			return false
		}
		t.id = r.hidden.pick(r.token, n.q.seed, n.q.endEvery)
		n.log, n.length, n.emitted = n.log.extend(t.id), n.length+1, n.emitted+1
		switch {
		case t.id == endToken && n.q.endEvery > 0:
			t.finish = "stop"
		case n.q.samplerLimit && n.emitted >= n.q.maxTokens:
			t.finish = "length"
		}
	}
	n.last = pos
	n.history = append(n.history[:0:0], t.id)
	t.logprob = -float64(mix(uint64(r.hidden), 5)>>60) / 4
	out.Token, out.Data, out.Finished, out.Logprob = t.id, t, t.finish != "", t.logprob
	p.fromSampler.send(data, func() { p.tell(out) })
	if out.Finished {
		delete(s.pipes[p], id)
	}
	return true
}

func (s *sampler) score(p *pipe, e sched.Entry, pos int, r row, target int32) {
	out := sched.Scored{ID: e.ID, Epoch: e.Epoch, Position: pos + 1, Data: logprobOf(r.hidden, target)}
	p.fromSampler.send(data, func() { p.tell(out) })
}
