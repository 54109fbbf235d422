package router

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// A new pipeline has to compute a few tokens before requests are sent to it: that every stage answers
// is known only then. It does so twice. The first steps of a process take much longer than all later ones, and
// the second round measures what later ones take, so that step deadlines hold from the first request on.
const (
	probeRounds = 2
	probePrompt = 16
	probeTokens = 6

	// warmLimit bounds the probe of a chain whose stages have all computed before, so that they have read
	// their weights. It is short, so that a stage that was wedged for a moment is soon used again. Stages
	// that are slow get warmSlack times what their rows have taken on average.
	warmLimit = 5 * time.Second
	warmSlack = 5

	pagesEvery = 5 * time.Millisecond // between two looks at the leases of a new pipeline
	pagesWait  = time.Second          // for pages for the whole probe; then fewer have to do
)

// probe runs a sequence through every stage and the sampler. An error names the stage that did not
// compute it.
func (p *pipeline) probe(ctx context.Context) error {
	err := p.runProbe(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fault.Wrap(fault.CodeOf(err), err, "probe pipeline %s: %s", p.id, p.silentStage(ctx))
}

// silentStage describes the first stage that has computed nothing since the pipeline was opened.
func (p *pipeline) silentStage(ctx context.Context) string {
	for i, hop := range p.hops() {
		resp, err := p.service.describeShard(ctx, hop.Addr)
		if err != nil {
			return fmt.Sprintf("stage %d, layers %d-%d at %s, does not answer", i, hop.Lo, hop.Hi, hop.Addr)
		}
		for _, h := range resp.GetHeld() {
			if h.GetDigest() == hop.Digest && int(h.GetLo()) == hop.Lo && int(h.GetHi()) == hop.Hi &&
				h.GetRows() == p.stages[i].GetRows() {
				return fmt.Sprintf("stage %d, layers %d-%d at %s, computes nothing", i, hop.Lo, hop.Hi, hop.Addr)
			}
		}
	}
	return fmt.Sprintf("all stages compute, but no token comes from the sampler at %s", p.samplerAddr())
}

// awaitPages waits until the pipeline may map the pages that its probe needs, and returns how many
// positions it may hold. A stage that other pipelines use, those of other routers too, grants pages only
// when they have given some up.
func (p *pipeline) awaitPages(ctx context.Context) (positions int, err error) {
	begin := time.Now()
	tick := time.NewTicker(pagesEvery)
	defer tick.Stop()
	for {
		if p.stepped.Load() != 0 { // the scheduler knows the first leases
			n := p.capacity()
			if n >= probePrompt+probeTokens || n > probeTokens && time.Since(begin) >= pagesWait {
				return n, nil
			}
		}
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		case <-ctx.Done():
			return 0, fault.Wrap(
				fault.DeadlineExceeded,
				context.Cause(ctx),
				"wait for KV pages that other pipelines hold",
			)
		}
	}
}

func (p *pipeline) runProbe(ctx context.Context) error {
	picker, err := sample.NewPicker(sample.Rules{})
	if err != nil {
		return err
	}
	limit := p.service.cfg.ProbeLimit
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fault.New(fault.DeadlineExceeded, "no answer within %v", limit))
	defer cancel()
	capacity, err := p.awaitPages(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(p.stages, func(h *shardv1.Held) bool { return h.GetRows() == 0 }) {
		warm := min(limit, warmLimitOf(p.stages))
		ctx, cancel = context.WithTimeoutCause(
			ctx,
			warm,
			fault.New(fault.DeadlineExceeded, "no answer within %v", warm),
		)
		defer cancel()
	}
	for round := range probeRounds {
		if round > 0 {
			if err := p.tell(event{Event: sched.Warm{}}); err != nil {
				return err
			}
		}
		if err := p.probeRound(ctx, picker, capacity); err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "round %d", round+1)
		}
	}
	return nil
}

// warmLimitOf returns how long the probe of stages may take that have all computed before.
func warmLimitOf(stages []*shardv1.Held) time.Duration {
	row := 0.0 // through all stages, in microseconds
	for _, h := range stages {
		row += float64(h.GetComputeUs()) / float64(h.GetRows())
	}
	rows := float64(probeRounds * (probePrompt + probeTokens))
	return max(warmLimit, time.Duration(min(warmSlack*rows*row, 1e12))*time.Microsecond)
}

// probeRound computes a prompt and some tokens. Both rounds compute all of them, since they use no prefix cache.
func (p *pipeline) probeRound(ctx context.Context, picker *sample.Picker, capacity int) error {
	vocab := int(p.stages[0].GetVocab())
	prompt := min(probePrompt, max(1, capacity-probeTokens))
	seq := newSequence(&sequence{
		epoch: 1, rules: &samplerv1.Rules{}, picker: picker, private: true, maxLen: min(prompt+probeTokens, capacity),
	})
	for i := range prompt {
		seq.log = append(seq.log, int32((i+1)%max(1, vocab)))
	}
	want := seq.maxLen - len(seq.log)
	if err := p.submit(seq); err != nil {
		return err
	}
	defer func() { _ = p.tell(seq.cancel()) }() // a lost pipeline has no session to cancel
	for n := 0; n < want; {
		o, err := seq.next(ctx, p)
		switch {
		case err != nil:
			err = context.Cause(ctx)
		case o.lost != nil:
			err = o.lost
		case o.err != nil:
			err = o.err
		case o.struck != nil: // a pipeline that loses a stage so early is not worth a repair
			err = o.struck
		case o.token != nil:
			n++
		}
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "after %d of %d tokens", n, want)
		}
	}
	return nil
}
