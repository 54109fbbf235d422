package router

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
)

// A new pipeline has to compute a few tokens before requests are sent to it: that every stage answers
// is known only then. The probe also measures the first step times, so that step deadlines hold from
// the first request on.
const (
	probePrompt = 16
	probeTokens = 6
	probeLimit  = 60 * time.Second // weights may have to be read from disk
)

// probe runs a sequence through every stage and the sampler. It uses the draft session's form, which
// no client sees.
func (p *pipeline) probe(ctx context.Context) error {
	picker, err := sample.NewPicker(sample.Rules{})
	if err != nil {
		return err
	}
	capacity, vocab := p.capacity(), int(p.stages[0].GetVocab())
	prompt := min(probePrompt, max(1, capacity-probeTokens))
	seq := newSequence(&sequence{
		epoch: 1, rules: &samplerv1.Rules{}, picker: picker, private: true, maxLen: min(prompt+probeTokens, capacity),
	})
	for i := range prompt {
		seq.log = append(seq.log, int32((i+1)%max(1, vocab)))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeLimit,
		fault.New(fault.DeadlineExceeded, "no answer within %v", probeLimit))
	defer cancel()
	if err := p.submit(seq); err != nil {
		return err
	}
	defer func() { _ = p.tell(seq.cancel()) }() // a lost pipeline has no session to cancel
	for n := 0; len(seq.log)+n < seq.maxLen; {
		o, err := seq.next(ctx, p)
		switch {
		case err != nil:
			err = context.Cause(ctx)
		case o.lost != nil:
			err = o.lost
		case o.err != nil:
			err = o.err
		case o.token != nil:
			n++
		}
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "probe pipeline %s after %d of %d tokens", p.id, n,
				seq.maxLen-len(seq.log))
		}
	}
	return nil
}
