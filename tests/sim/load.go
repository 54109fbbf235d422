package sim

import (
	"fmt"
	"time"
)

// Load describes the requests of a run.
type Load struct {
	Requests int
	Over     time.Duration // they arrive within this time
	Tenants  int
	// Prompts have From to To tokens, and ask for up to Tokens more. Long is the probability of a prompt
	// that is as long as the cache allows.
	From, To, Tokens int
	Long             float64
	// Skewed says that tenant t1 has short prompts and long texts, and the others the opposite.
	Skewed bool
	// Prefixes is the number of texts with which prompts begin; 0 for none. PrefixLen is their length.
	Prefixes, PrefixLen int
	// The probabilities of what a request may ask for or do.
	Cancel, Slow, Score, Private, Priority, Speculate, DraftModel, Sampled, Stop, Adapter float64
	// Hostile is the number of requests that the sampler refuses, Poison that of requests that end the
	// process that computes them, and Hang that of requests that make it hang.
	Hostile, Poison, Hang int
	// EndEvery is the mean number of tokens after which a text ends by itself; 0 for never.
	EndEvery int
	// Regular says that texts are easy to guess.
	Regular bool
}

// deadly returns how many requests do harm to processes.
func (l *Load) deadly() int { return l.Poison + l.Hang }

// load plans the arrivals.
func (w *world) load() {
	l, capacity := w.sc.Load, w.sc.Pages/w.sc.Routers*w.sc.PageLen
	prefixes := make([][]int32, l.Prefixes)
	tokens := func(n int) []int32 {
		out := make([]int32, n)
		for i := range out {
			out[i] = 1 + int32(w.rnd.IntN(vocab-1))
		}
		return out
	}
	for i := range prefixes {
		prefixes[i] = tokens(l.PrefixLen)
	}
	total := l.Requests + l.Hostile + l.deadly()
	w.left = total
	for i := range total {
		q := &request{w: w, n: i, router: w.routers[w.rnd.IntN(len(w.routers))], digest: "sha256:model",
			samplerLimit: w.chance(0.5), score: w.chance(l.Score), private: w.chance(l.Private), endEvery: l.EndEvery}
		if l.Tenants > 0 {
			q.tenant = fmt.Sprintf("t%d", w.rnd.IntN(l.Tenants))
			q.weight = 1 + float64(q.tenant[1]%2)
		}
		n := l.From + w.rnd.IntN(max(1, l.To-l.From+1))
		q.maxTokens = 1 + w.rnd.IntN(l.Tokens)
		switch {
		case l.Skewed && q.tenant == "t1":
			n, q.maxTokens = 1, l.Tokens
		case l.Skewed:
			n, q.maxTokens = l.To, 1
		}
		if w.chance(l.Long) {
			n = capacity - q.maxTokens
		}
		if len(prefixes) > 0 && w.chance(0.8) {
			q.prompt = append(q.prompt, prefixes[w.rnd.IntN(len(prefixes))]...)
			if w.chance(0.2) { // a part of it
				q.prompt = q.prompt[:1+w.rnd.IntN(len(q.prompt))]
			}
		}
		if more := n - len(q.prompt); more > 0 {
			q.prompt = append(q.prompt[:len(q.prompt):len(q.prompt)], tokens(more)...)
		}
		q.prompt = q.prompt[:max(1, min(len(q.prompt), capacity-q.maxTokens))]
		if w.chance(l.Sampled) {
			q.seed = w.rnd.Uint64()
		}
		if l.Regular {
			q.seed = regularSeed
		}
		if w.chance(l.Adapter) {
			q.namespace = "adapter"
		}
		if w.chance(l.Priority) {
			q.priority = w.rnd.IntN(5) - 2
		}
		if w.chance(l.Speculate) {
			q.speculate = 1 + w.rnd.IntN(6)
			q.drafts = w.chance(l.DraftModel)
		}
		if w.chance(l.Cancel) {
			q.cancelAt = w.between(time.Millisecond, 2*l.Over+time.Second)
		}
		if w.chance(l.Slow) {
			q.readEvery = w.between(5*w.sc.BatchTime, 50*w.sc.BatchTime)
		}
		if w.chance(l.Stop) {
			q.stopAfter = 1 + w.rnd.IntN(l.Tokens)
		}
		switch {
		case i >= l.Requests+l.Hostile:
			q.hostile, q.deadly = killsStages, len(q.prompt)-1
			if i >= l.Requests+l.Hostile+l.Poison {
				q.hostile = hangsStages
			}
			// A row that another request has computed too is harmless, and so is one of a shared beginning.
			if tail := q.deadly - l.PrefixLen; tail > 0 && w.chance(0.5) {
				q.deadly -= w.rnd.IntN(tail)
			}
		case i >= l.Requests:
			q.hostile = refusedBySampler
		}
		w.requests = append(w.requests, q)
		at := w.between(0, l.Over)
		w.after(at, func() { q.router.awake(q.arrive) })
	}
}
