package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// checks is what is remembered about a pipeline to check its scheduler.
type checks struct {
	sent    []sentBatch // the last batches
	steps   int
	now     time.Duration
	last    uint64            // the last step number
	warm    uint64            // the last step before what was measured counts
	emitted map[sched.ID]bool // had a token in this step, so they are suspects no more
	// service is what the tenants have received, counted apart from the scheduler.
	service map[string]float64
}

type sentBatch struct {
	at, deadline time.Duration
}

// checkStep checks what one call of Step has decided.
func (p *pipe) checkStep(now time.Duration, commands []sched.Command) {
	w, c := p.w, &p.checks
	c.steps++
	now = max(now, c.now) // the scheduler's time does not go back
	if late := now - c.now - sched.StepEvery; late > 0 && c.steps > 1 {
		for i := range c.sent { // the router was paused, and its scheduler allows for that
			c.sent[i].deadline += late
		}
	}
	c.now = now
	failed := false
	clear(c.emitted)
	for _, command := range commands {
		switch e := command.(type) {
		case sched.Emit:
			c.emitted[e.ID] = true
		case sched.Fail:
			failed = true
		case sched.Batch:
			p.checkBatch(e)
			c.sent = append(c.sent, sentBatch{now, e.Deadline})
		}
	}
	oldest := p.sched.Oldest(now)
	for len(c.sent) > 0 && c.sent[0].at < now-oldest {
		c.sent = c.sent[1:]
	}
	if oldest > 0 && !failed {
		limit := time.Duration(-1) // of the batches that were sent then
		for _, s := range c.sent {
			if s.at == now-oldest {
				limit = max(limit, s.deadline)
			}
		}
		if limit >= 0 && oldest > limit {
			w.violate("%s has waited %v for a batch with the deadline %v and does not fail", p.name, oldest, limit)
		}
		if due, ok := p.sched.Due(); limit >= 0 && (!ok || due > now-oldest+limit+1) {
			w.violate("%s is to be asked again at %v, %v, and a batch has its deadline at %v", p.name, due, ok,
				now-oldest+limit)
		}
	}
	s := p.sched.Stats()
	switch {
	case s.Waiting > w.sc.Queue+w.sc.Entries && s.Waiting > w.sc.Queue+w.sc.Entries+p.movedHere():
		w.violate("%s has %d waiting sequences, its queue has %d places", p.name, s.Waiting, w.sc.Queue)
	case s.Running > w.sc.Entries:
		w.violate("%s runs %d sequences, a batch has room for %d", p.name, s.Running, w.sc.Entries)
	case s.Cached > s.Held || s.Cached < 0:
		w.violate("%s has %d cached pages among %d", p.name, s.Cached, s.Held)
	}
	if every := w.sc.checkEvery(); c.steps%every == 0 {
		if err := p.sched.Check(); err != nil {
			w.violate("%s: %v", p.name, err)
		}
		if w.sc.Fair {
			p.checkFairness()
		}
	}
}

// checkEvery is how many steps lie between two checks of all pages.
func (sc *Scenario) checkEvery() int {
	if sc.Pages > 512 {
		return 512
	}
	return 16
}

// checkBatch checks the form of a batch.
func (p *pipe) checkBatch(b sched.Batch) {
	w, rows := p.w, 0
	if b.Step != p.checks.last+1 {
		w.violate("%s sends step %d after step %d", p.name, b.Step, p.checks.last)
	}
	p.checks.last = b.Step
	for i, e := range b.Entries {
		rows += e.Rows
		if e.Rows < 1 || e.Logits > e.Rows {
			w.violate("%s sends %d rows of %s with %d logits", p.name, e.Rows, e.ID, e.Logits)
		}
		if w.sc.Fair {
			p.count(e)
		}
		known := p.sched.Proven(e.ID)
		if q := w.owner[e.ID]; q != nil && b.ReplayUntil == 0 && p.seqs[e.ID].suspect && len(p.seqs[e.ID].more) == 0 &&
			!p.checks.emitted[e.ID] && e.Position < known && known < e.Position+e.Rows {
			w.violate("%s sends rows %d to %d of the suspect %s in one entry, and %d of them were computed before",
				p.name, e.Position, e.Position+e.Rows, e.ID, known-e.Position)
		}
		for _, o := range b.Entries[:i] {
			if o.ID == e.ID {
				w.violate("%s sends two entries of %s in step %d", p.name, e.ID, b.Step)
			}
		}
	}
	if rows != len(b.Tokens) || rows > w.sc.BatchRows {
		w.violate("%s sends %d rows and %d tokens in step %d, at most %d fit", p.name, rows, len(b.Tokens), b.Step,
			w.sc.BatchRows)
	}
	if b.Deadline <= 0 || len(b.Entries) == 0 {
		w.violate("%s sends step %d of %d entries with the deadline %v", p.name, b.Step, len(b.Entries), b.Deadline)
	}
	// Without faults every batch takes about the same time, so that a deadline that is much longer than
	// any batch has ever taken would hide a stage that is frozen.
	// A stage that has just taken the place of another one gets more time.
	if b.Step > p.checks.warm+24 && !p.rebuilt && len(w.sc.Faults) == 0 && w.sc.Jitter == 0 && w.sc.Loss == 0 {
		if most := w.longestStep(p, rows); b.Deadline > 2*time.Second+8*most {
			w.violate("%s gives step %d the deadline %v, no step takes more than %v", p.name, b.Step, b.Deadline, most)
		}
	}
}

// count counts the service that an entry is for its tenant: 1 for a token of a prompt, and 2 for a generated
// one. What was lost by a preemption is not counted again.
func (p *pipe) count(e sched.Entry) {
	q, c := p.seqs[e.ID], &p.checks
	if c.service == nil {
		c.service = map[string]float64{}
	}
	if _, known := c.service[q.tenant]; !known { // a tenant begins where the least served one is
		least := -1.0
		for _, s := range c.service {
			if least < 0 || s < least {
				least = s
			}
		}
		c.service[q.tenant] = max(0, least)
	}
	weight := 1.0
	if o := p.w.owner[e.ID]; o != nil && o.weight > 0 {
		weight = o.weight
	}
	for pos := max(q.counted, e.Position); pos < e.Position+e.Rows-len(e.Drafts); pos++ {
		cost := 1.0
		if pos >= len(q.log) {
			cost = 2
		}
		c.service[q.tenant] += cost / weight
		q.counted = pos + 1
	}
}

// longestStep bounds the time of a step in a fleet without faults.
func (w *world) longestStep(p *pipe, _ int) time.Duration {
	stage := 2 * (w.sc.BatchTime + 2*time.Duration(w.sc.BatchRows)*w.sc.RowTime)
	inFlight := time.Duration(len(p.chain) + 1)
	return (inFlight*stage*time.Duration(w.sc.Routers) + 8*w.sc.Hop) * time.Duration(len(p.chain))
}

// checkQuota checks the bounds of the queue: sequences that were never admitted, by tenant.
func (p *pipe) checkQuota() {
	if p.w.sc.TenantQueue == 0 || p.checks.steps%8 != 0 {
		return
	}
	waiting := map[string]int{}
	for _, id := range p.order {
		q := p.seqs[id]
		if !q.admitted && q.tenant != "" && !q.moved && !p.pending(id) {
			waiting[q.tenant]++
			if n := waiting[q.tenant]; n > p.w.sc.TenantQueue {
				p.w.violate("%s lets %d sequences of tenant %s wait, at most %d may", p.name, n, q.tenant,
					p.w.sc.TenantQueue)
			}
		}
	}
}

// movedHere counts the sequences that came from other pipelines, which the queue's bound does not apply to.
func (p *pipe) movedHere() int {
	n := 0
	for _, q := range p.seqs {
		if q.moved {
			n++
		}
	}
	return n
}

// pending reports whether the scheduler has not handled the submission of a sequence yet, or has not
// been heard about it.
func (p *pipe) pending(id sched.ID) bool {
	return slices.ContainsFunc(
		p.events,
		func(e sched.Event) bool { s, ok := e.(sched.Submit); return ok && s.ID == id },
	)
}

// checkFairness checks the bound of the virtual token counter (Sheng et al. 2024, theorem 4.8): of two
// tenants that both have waiting requests, neither has had more service than the other plus what a prompt
// costs at most, and what all tokens that fit into the cache cost. Once more as many positions are what
// others may have more while the first of the queue waits for pages.
func (p *pipe) checkFairness() {
	service := p.checks.service
	backlogged := map[string]bool{}
	for _, id := range p.order {
		if q := p.seqs[id]; !q.admitted && !q.draft {
			backlogged[q.tenant] = true
		}
	}
	if len(backlogged) < 2 {
		return
	}
	low, high := -1.0, -1.0
	for _, r := range p.w.requests { // in a defined order
		if !backlogged[r.tenant] {
			continue
		}
		s := service[r.tenant]
		if low < 0 || s < low {
			low = s
		}
		high = max(high, s)
	}
	// A prompt's token costs 1 and a generated one 2; weights are at least 1.
	longest := p.w.sc.Load.To + p.w.sc.Load.PrefixLen
	bound := float64(longest) + 3*float64(p.w.sc.Pages*p.w.sc.PageLen)
	p.w.log("service %v backlogged %v", service, backlogged)
	p.w.report.FairChecks++
	p.w.report.Unfair = max(p.w.report.Unfair, (high-low)/bound)
	if high-low > bound {
		p.w.violate(
			"%s: the service of two backlogged tenants differs by %.0f, more than %.0f",
			p.name,
			high-low,
			bound,
		)
	}
}

// calm reports whether nothing goes wrong but what requests do.
func (sc *Scenario) calm() bool { return len(sc.Faults) == 0 && sc.Loss == 0 && sc.Refuse == 0 }

// ended checks how a request has ended.
func (w *world) ended(q *request) {
	kind, _, _ := strings.Cut(q.end, ":")
	if q.epoch > 1 && (kind == "queue full" || kind == "quota") {
		w.violate("%s was moved and is turned away: %s", q.name(), q.end)
	}
	w.report.FirstToken = append(w.report.FirstToken, max(0, q.first-q.arrived))
	calm := w.sc.calm()
	switch kind {
	case "stop", "length", "stop string", "canceled", "queue full", "quota":
		if q.hostile >= killsStages && (kind == "stop" || kind == "length") {
			w.violate("%s ends the process that computes it and has ended with %s", q.name(), kind)
		}
		return
	case "invalid":
		if q.hostile == refusedBySampler {
			return
		}
	case "set aside":
		// A hostile request of another router may end the same process.
		if q.hostile >= killsStages || q.hedged || !calm || w.sc.Load.deadly() > 0 && w.sc.Routers > 1 {
			return
		}
	case "no memory":
		if w.sc.Refuse > 0 {
			return
		}
	case "no pipeline", "moved too often":
		if !calm || w.sc.Load.deadly() > 0 {
			return
		}
	}
	w.violate("%s ends with %q", q.name(), q.end)
}

// stuck reports requests that wait for ever.
func (w *world) stuck() {
	var b strings.Builder
	for _, q := range w.requests {
		if q.end == "" && b.Len() < 2000 {
			where := "waits for a pipeline"
			if q.waits == 0 && q.p != nil {
				where = fmt.Sprintf("is %s on %s with %d of %d tokens, %d results wait", q.seq.id, q.p.name,
					len(q.log)-len(q.prompt), q.maxTokens, len(q.seq.out))
			}
			fmt.Fprintf(&b, "\n%s (arrived %v) %s", q.name(), q.arrived, where)
		}
	}
	w.violate("%d requests have not ended:%s", w.left, b.String())
}

// settle ends all faults, waits until nothing is cached any more, and checks that nothing has leaked.
func (w *world) settle() {
	w.settling, w.sc.Loss, w.sc.Refuse = true, 0, 0
	for _, n := range w.nodes {
		n.slow = 1
		switch {
		case n.hung:
			w.kill(n)
		case n.frozen:
			n.thaw()
		}
		if n.dead {
			w.revive(n)
		}
	}
	for i := range w.nodes {
		for j := range i {
			if w.cuts[[2]int{j, i}] {
				w.heal([2]int{j, i})
			}
		}
	}
	end := w.now + w.sc.CacheIdle + 4*time.Second
	for _, f := range w.sc.Faults {
		if f.Kind == Clock && f.By < 0 { // a scheduler's time stands still until the clock has caught up
			end += time.Duration(-f.By * float64(time.Second))
		}
	}
	quiet := func() {
		for _, r := range w.routers {
			r.stopped = true
		}
	}
	w.after(end-w.now-3*time.Second, quiet)
	for w.now < end && w.err == nil && w.step() {
	}
	for _, r := range w.routers {
		for _, p := range r.all {
			if err := p.sched.Check(); err != nil {
				w.violate("%s: %v", p.name, err)
			}
			s := p.sched.Stats()
			w.report.Evicted += int(s.Evicted)
			w.report.Chained += int(s.Chained)
			w.report.Discarded += int(s.Discarded)
			if p.listed && (s.Running+s.Waiting+s.Held > 0 || len(p.seqs) > 0) {
				w.violate(
					"%s still has %d running and %d waiting sequences, %d pages and %d readers",
					p.name,
					s.Running,
					s.Waiting,
					s.Held,
					len(p.seqs),
				)
			}
		}
	}
	for _, s := range w.shards {
		for _, st := range s.stages {
			switch {
			case st.p.dead:
				w.violate("%s still has a stage of %s, which is lost", s.name, st.p.name)
			case st.p.listed && (st.mapped() > 0 || len(st.sessions) > 0):
				w.violate(
					"%s still has %d pages and %d sessions of %s",
					s.name,
					st.mapped(),
					len(st.sessions),
					st.p.name,
				)
			}
		}
		if err := s.cache.Check(); err != nil {
			w.violate("%s: %v", s.name, err)
		}
	}
	for _, s := range w.samplers {
		for _, r := range w.routers {
			for _, p := range r.all {
				if n := len(s.pipes[p]); n > 0 && p.listed {
					w.violate("%s still has %d sessions of %s", s.name, n, p.name)
				}
			}
		}
	}
}
