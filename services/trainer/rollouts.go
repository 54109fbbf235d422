package trainer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// Before each step the trainer publishes the adapter of the step before at a router and samples the step's answers
// there, like any client. A token depends on the weights, the prompt and the seed of its answer only, so the answers
// of a step are the same whatever the layout of the run, the pipeline that samples them and the order in which they
// come. The stages of the run then compute the log-probabilities of the same tokens again.

// rolloutsFile is the name of the file of answers in the folder of a run.
const rolloutsFile = "rollouts.jsonl"

// rolloutRequests is how many answers are sampled at a time.
const rolloutRequests = 32

// round is the answers of a step.
type round struct {
	step   uint64 // of the data
	groups []*group
}

// group is the answers to one prompt.
type group struct {
	prompt  *prompt
	epoch   int64
	answers []answer
	*sequence
}

// answer is a sampled answer.
type answer struct {
	ids       []int32
	logprobs  []float32 // as the sampler has reported them
	text      string
	reward    float64
	advantage float64
}

// rolloutLine is a line of rollouts.jsonl.
type rolloutLine struct {
	Step      uint64    `json:"step"`
	Slot      int       `json:"slot"`
	Line      int       `json:"line"` // of the file of prompts
	Prompt    string    `json:"prompt"`
	Text      string    `json:"text"`
	Reward    float64   `json:"reward"`
	Advantage float64   `json:"advantage"`
	IDs       []int32   `json:"ids"`
	Logprobs  []float32 `json:"logprobs"` // as the sampler has reported them
}

// rollOut samples the answers of a step, unless the data of the run are no prompts.
func (t *training) rollOut(f *fleet, step uint64) error {
	p, ok := t.data.source.(*prompts)
	if !ok {
		return nil
	}
	if step > 1 {
		if err := t.finish(f, step-1); err != nil { // what is published is what the stages have
			return err
		}
	}
	client, err := t.router(f.ctx)
	if err != nil {
		return err
	}
	digest, err := t.publishPolicy(f.ctx, client)
	if err != nil {
		return err
	}
	m, data := t.run.manifest, t.history.data(step)
	r := &round{step: data}
	g, ctx := errgroup.WithContext(f.ctx)
	g.SetLimit(rolloutRequests)
	for slot := range m.Slots {
		for s := range m.SlotSequences {
			group := &group{answers: make([]answer, m.GRPO.Group)}
			group.epoch, group.prompt = p.at(data, slot, s)
			r.groups = append(r.groups, group)
			for i := range group.answers {
				key := mix(mix(mix(mix(m.Seed^0x726f6c6c6f7574)+data)+uint64(slot*m.SlotSequences+s)) + uint64(i))
				g.Go(func() error {
					var err error
					group.answers[i], err = t.answer(ctx, client, digest, group.prompt, key)
					return err
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, group := range r.groups {
		if err := t.judgeGroup(f.ctx, group); err != nil {
			return err
		}
		group.sequence = t.groupSequence(group)
		for _, a := range group.answers {
			if err := t.rollouts.write(rolloutLine{Step: step, Slot: i / m.SlotSequences, Line: group.prompt.line,
				Prompt: group.prompt.Text, Text: a.text, Reward: a.reward, Advantage: a.advantage, IDs: a.ids,
				Logprobs: a.logprobs}); err != nil {
				return err
			}
		}
	}
	p.round = r
	if m.GRPO.KL > 0 {
		return f.first(func(c *chain) error { return t.referenceRollouts(f, c, step, r) })
	}
	return nil
}

// router connects to a live router.
func (t *training) router(ctx context.Context) (routerv1.RouterServiceClient, error) {
	if t.client != nil {
		return t.client, nil
	}
	addrs, err := t.run.service.routers(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := t.run.service.cfg.Dialer.Dial(addrs[0])
	if err != nil {
		return nil, err
	}
	t.client = routerv1.NewRouterServiceClient(conn)
	return t.client, nil
}

// answer samples one answer from the policy itself: no sampling parameter changes its distribution.
func (t *training) answer(ctx context.Context, client routerv1.RouterServiceClient, adapter string, p *prompt,
	seed uint64) (answer, error) {
	var out answer
	m := t.run.manifest
	ids := make([]uint32, len(p.IDs))
	for i, id := range p.IDs {
		ids[i] = uint32(id)
	}
	one, zero, all := float32(1), float32(0), uint32(0)
	stream, err := client.Generate(ctx, &routerv1.GenerateRequest{
		Model: t.initial.GetDigest(), Adapter: adapter,
		Prompt:    &routerv1.GenerateRequest_TokenIds{TokenIds: &routerv1.TokenIds{Ids: ids}},
		MaxTokens: uint32(m.GRPO.MaxTokens),
		Sampling: &routerv1.Sampling{Temperature: &one, TopP: &one, TopK: &all, MinP: &zero, RepetitionPenalty: &one,
			Seed: &seed, Advanced: &samplerv1.Advanced{}},
	})
	if err != nil {
		return out, rpc.FromStatus(err)
	}
	var text strings.Builder
	finished := false
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) && finished {
			break
		}
		if err != nil {
			err = rpc.FromStatus(err)
			return out, fault.Wrap(fault.CodeOf(err), err, "sample an answer to line %d", p.line)
		}
		switch {
		case r.GetStarted() != nil:
			if !slices.Equal(r.GetStarted().GetPromptIds(), ids) || r.GetStarted().GetAdapter() != adapter {
				return out, fault.New(fault.Internal, "sample an answer to line %d: the router has another prompt or adapter",
					p.line)
			}
		case r.GetToken() != nil:
			token := r.GetToken()
			if len(out.ids) == m.GRPO.MaxTokens {
				return out, fault.New(fault.Internal, "sample an answer to line %d: got more than %d tokens", p.line,
					m.GRPO.MaxTokens)
			}
			out.ids, out.logprobs = append(out.ids, int32(token.GetId())), append(out.logprobs, token.GetLogprob())
			text.WriteString(token.GetText())
		case r.GetFinished() != nil:
			text.WriteString(r.GetFinished().GetText())
			finished = true
		}
	}
	if len(out.ids) == 0 {
		return out, fault.New(fault.Internal, "sample an answer to line %d: got no tokens", p.line)
	}
	out.text = text.String()
	return out, nil
}

// judgeGroup sets rewards and advantages.
func (t *training) judgeGroup(ctx context.Context, g *group) error {
	rewards := make([]float64, len(g.answers))
	var run errgroup.Group
	run.SetLimit(2) // a reward may be a process
	for i := range g.answers {
		run.Go(func() (err error) {
			rewards[i], err = t.run.plan.reward.Score(ctx, reward.Sample{Prompt: g.prompt.Text, Text: g.answers[i].text,
				Answer: g.prompt.Answer})
			return err
		})
	}
	if err := run.Wait(); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "score the answers to line %d", g.prompt.line)
	}
	for i, a := range tuning.Advantages(rewards) {
		g.answers[i].reward, g.answers[i].advantage = rewards[i], a
	}
	return nil
}

// groupSequence puts the answers of a group into a sequence. Each is a document behind the prompt.
func (t *training) groupSequence(g *group) *sequence {
	q := &sequence{name: fmt.Sprintf("%d/%d", g.epoch, g.prompt.line)}
	for i, a := range g.answers {
		rows := len(g.prompt.IDs) + len(a.ids) - 1
		all := append(slices.Clone(g.prompt.IDs), a.ids...)
		q.IDs = append(q.IDs, all[:rows]...)
		for row := range rows {
			target := int32(-1)
			if row+1 >= len(g.prompt.IDs) {
				target = all[row+1]
			}
			q.Targets = append(q.Targets, target)
		}
		q.Documents = append(q.Documents, rows)
		q.rollouts = append(q.rollouts, &shardv1.Rollout{Document: uint32(i), Advantage: a.advantage,
			Logprobs: a.logprobs})
	}
	q.Pad(t.data.length, t.data.pad())
	return q
}

// referenceRollouts computes the log-probabilities of the answers under the base.
func (t *training) referenceRollouts(f *fleet, c *chain, step uint64, r *round) error {
	m := t.run.manifest
	for _, g := range r.groups {
		for _, o := range g.rollouts {
			o.Reference = nil
		}
	}
	return t.forward(f, c, &shardv1.Step{Step: step, Base: true}, m.Slots, func(slot int) (*micro, error) {
		return t.data.slot(r.step, slot, m.SlotSequences)
	}, func(slot int, l *shardv1.Loss) error {
		got := l.GetRollouts()
		for _, g := range r.groups[slot*m.SlotSequences : (slot+1)*m.SlotSequences] {
			for _, o := range g.rollouts {
				if len(got) == 0 || len(got[0].GetLogprobs()) != len(o.GetLogprobs()) {
					return fault.New(fault.Internal, "compute the reference of step %d: slot %d lacks rollouts", step, slot)
				}
				o.Reference, got = got[0].GetLogprobs(), got[1:]
			}
		}
		return nil
	})
}

// policyLine is what metrics.jsonl has of the answers of a step.
type policyLine struct {
	Reward       float64 `json:"reward"` // mean
	AnswerTokens float64 `json:"answer_tokens"`
	// Mismatched are tokens whose log-probability in training has other bits than the sampler has reported, and
	// Difference is the largest difference.
	Mismatched uint64  `json:"mismatched"`
	Difference float64 `json:"difference"`
	Clipped    float64 `json:"clipped"` // share of the tokens whose ratio was clipped
	KL         float64 `json:"kl"`      // mean over the tokens of the divergence from the base; 0 if it is not measured
}

// policyOf sums up the answers of a step in the order of its slots; nil if there are none.
func (t *training) policyOf(b *batch) *policyLine {
	p, ok := t.data.source.(*prompts)
	if !ok {
		return nil
	}
	out := &policyLine{}
	answers, tokens, clipped := 0, 0, 0
	for _, g := range p.round.groups {
		for _, a := range g.answers {
			out.Reward += a.reward
			answers++
		}
	}
	for _, losses := range b.rolloutLosses {
		for _, l := range losses {
			tokens += int(l.GetTokens())
			clipped += int(l.GetClipped())
			out.Mismatched += uint64(l.GetMismatched())
			out.Difference = max(out.Difference, l.GetDifference())
			out.KL += l.GetKl()
		}
	}
	out.Reward /= float64(answers)
	out.AnswerTokens = float64(tokens) / float64(answers)
	out.Clipped, out.KL = float64(clipped)/float64(max(1, tokens)), out.KL/float64(max(1, tokens))
	return out
}
