package plan

import "math"

// timing is a chain in the terms of the cost model:
//
//   - A stage computes b rows in (ms + (b-1)*row) * work, where an average layer has work 1.
//
//   - A stage of a lone stream waits for the others before each token, and for the client before the first chunk. On a
//     host with a quota of processor time it is faster then (rested). Over many tokens it is not: a token takes no less
//     time than the quota of any stage.
//
//   - A frame with b rows takes hop + b*send to a stage. The first stage is sent ids, which take no time.
//
//   - A token takes the sum over all stages, and router for the sampler and the way back.
//
//   - The first token takes first in addition.
//
// All times are in milliseconds.
type timing struct {
	stages []stageTime
	head   float64 // work of the head, which the last stage computes for one row of each sequence
	router float64
	first  float64
}

type stageTime struct{ ms, row, work, hop, send, share, saved float64 }

// rested is the time of a computation after a wait.
func (s *stageTime) rested(ms float64) float64 { return rested(ms, s.share, s.saved) }

func (p *placement) chain(m int, chain chainOf) *timing {
	j := p.jobs[m]
	t := &timing{head: j.head, router: p.r.RouterMS, first: p.r.FirstMS}
	for _, c := range chain.cuts {
		n := j.node(&p.r.Hosts[c.node], c.node, 0, 0)
		s := stageTime{n.ms, n.row, j.works[c.hi] - j.works[c.lo], n.hop, n.send, n.share, n.saved}
		if c.lo == 0 {
			s.send = 0
		}
		t.stages = append(t.stages, s)
	}
	return t
}

// batch returns the time of a batch of decode rows in a stage.
func (t *timing) batch(i int, rows float64) float64 {
	s := &t.stages[i]
	work := s.work
	if i == len(t.stages)-1 {
		work += t.head
	}
	return (s.ms + (rows-1)*s.row) * work
}

func (t *timing) predict(prompt int) Prediction {
	out := Prediction{TokenMS: t.router, PromptTokens: prompt, FirstMS: t.first}
	slow, slowHop, saturated, least := -1.0, -1.0, 0.0, 0.0
	for i, s := range t.stages {
		hop, compute := s.hop+s.send, t.batch(i, 1)
		out.TokenMS += hop + s.rested(compute)
		least = math.Max(least, compute)
		if hop > slowHop {
			slowHop, out.SlowestHopped = hop, i
		}
		if compute > slow {
			slow, out.SlowestStage = compute, i
		}
		saturated = math.Max(saturated, math.Max(t.batch(i, batchRows), batchRows*s.send))
	}
	out.TokenMS = math.Max(out.TokenMS, least)
	out.TokensPerS = 1000 / out.TokenMS
	out.SaturatedTPS = 1000 * batchRows / saturated
	out.TTFTMS = t.firstToken(prompt)
	return out
}

// firstToken returns the time to the first token. Chunks of the prompt follow each other through the stages:
// the first one takes its time in each stage, and each further one the time of the slowest stage.
func (t *timing) firstToken(prompt int) float64 {
	compute := func(i, rows int) float64 {
		return (t.stages[i].ms + float64(rows-1)*t.stages[i].row) * t.stages[i].work
	}
	chunk := func(i, rows int) float64 { return t.stages[i].send*float64(rows) + compute(i, rows) }
	out := t.first + t.router
	first := min(prompt, chunkRows)
	for i, s := range t.stages {
		ms := compute(i, first)
		if i == len(t.stages)-1 {
			ms += s.ms * t.head
		}
		out += s.hop + s.send*float64(first) + s.rested(ms)
	}
	later := func(rows int) (slowest float64) {
		for i := range t.stages {
			slowest = math.Max(slowest, chunk(i, rows))
		}
		return slowest
	}
	left := prompt - first
	out += float64(left/chunkRows) * later(chunkRows)
	if rest := left % chunkRows; rest > 0 {
		out += later(rest)
	}
	return out
}

// streams returns the tokens per second of n streams. They are divided into micro-batches, of which as many
// may be in flight as there are stages and one more. A round of all of them takes as long as one takes through
// all stages, or as all of them take in the slowest stage.
func (t *timing) streams(n int) float64 {
	best := 0.0
	for batches := 1; batches <= min(n, len(t.stages)+1); batches++ {
		rows := float64(n) / float64(batches)
		through, slowest := t.router, 0.0
		for i, s := range t.stages {
			compute := t.batch(i, rows)
			through += s.hop + s.send*rows + compute
			slowest = math.Max(slowest, math.Max(compute, s.send*rows))
		}
		best = math.Max(best, float64(n)*1000/math.Max(through, float64(batches)*slowest))
	}
	return best
}
