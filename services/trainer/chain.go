package trainer

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

type trainStream = grpc.BidiStreamingClient[shardv1.TrainRequest, shardv1.TrainResponse]

// repliesLen is the number of replies of a stage that may wait to be read.
const repliesLen = 4096

// stage is the trainer's end of the Train stream of a stage.
type stage struct {
	chain   *chain
	addr    string
	spans   []model.Range
	client  shardv1.ShardServiceClient
	stream  trainStream
	host    string // its machine; empty if that is not known
	shares  bool   // it reads and writes the files of checkpoints itself
	replies chan *shardv1.TrainResponse

	heard   atomic.Uint64 // frames received
	actions atomic.Uint64 // changes with every action that is done; 0 while the stage waits for others
}

// chain holds the stages of one replica. It works until its context ends or a stage fails.
type chain struct {
	replica    int
	id         []byte
	stages     []*stage
	ctx        context.Context
	fail       context.CancelCauseFunc
	readers    sync.WaitGroup
	parameters uint64

	lo, hi int     // its slots in the current attempt
	speed  measure // seconds that its slowest stage computes for a slot

	leaving atomic.Bool // a shard of it is about to stop
}

// lost returns why the chain has ended, or nil.
func (c *chain) lost() error {
	if c.ctx.Err() == nil {
		return nil
	}
	return context.Cause(c.ctx)
}

func (f *fleet) send(s *stage, r *shardv1.TrainRequest) error {
	if err := s.stream.Send(r); err != nil {
		<-s.chain.ctx.Done() // the reader sets the cause
		return context.Cause(s.chain.ctx)
	}
	return nil
}

// reply waits for the next frame of a stage.
func (f *fleet) reply(s *stage) (*shardv1.TrainResponse, error) { return f.replyIn(s.chain.ctx, s) }

// replyIn is reply within a context that ends with the chain's or earlier.
func (f *fleet) replyIn(ctx context.Context, s *stage) (*shardv1.TrainResponse, error) {
	select {
	case r := <-s.replies:
		if bad := r.GetRejected(); bad != nil {
			return nil, &rejectedError{bad, s}
		}
		if torn := r.GetLinkBroken(); torn != nil {
			return nil, &linkError{torn, s}
		}
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.chain.ctx.Done():
		return nil, context.Cause(s.chain.ctx)
	}
}

// each calls do for all stages of all chains concurrently.
func (f *fleet) each(do func(c *chain, i int, s *stage) error) error { return eachOf(f.chains, do) }

func eachOf(chains []*chain, do func(c *chain, i int, s *stage) error) error {
	var g errgroup.Group
	for _, c := range chains {
		for i, s := range c.stages {
			g.Go(func() error { return do(c, i, s) })
		}
	}
	return g.Wait()
}

// feed sends a chain its step and micro-batches, until ctx ends.
func (f *fleet) feed(ctx context.Context, c *chain, step *shardv1.Step, data []*micro) error {
	for _, s := range c.stages {
		if err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: step}}); err != nil {
			return err
		}
	}
	first, last := c.stages[0], c.stages[len(c.stages)-1]
	for _, m := range data {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, s := range c.stages {
			part := &shardv1.Microbatch{Step: m.GetStep(), Slot: m.GetSlot(), Sequences: m.GetSequences(),
				Length: m.GetLength(), Documents: m.GetDocuments()}
			if s == first {
				part.Ids = m.GetIds()
			}
			if s == last {
				part.Targets, part.Picks = m.GetTargets(), m.GetPicks()
				part.Pairs, part.Rollouts = m.GetPairs(), m.GetRollouts()
			}
			if s != first && s != last && part.Documents == nil {
				continue // it learns the shape from the activation
			}
			if err := f.send(s,
				&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: part}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// collect reads a stage's replies to a step until it has folded its gradient.
func (f *fleet) collect(
	ctx context.Context, s *stage, step uint64, loss func(*shardv1.Loss) error, folded func(*shardv1.Folded),
) error {
	for {
		r, err := f.replyIn(ctx, s)
		if err != nil {
			return err
		}
		switch frame := r.GetFrame().(type) {
		case *shardv1.TrainResponse_Loss:
			if frame.Loss.GetStep() != step {
				return fault.New(fault.Internal, "step %d: got a loss of step %d", step, frame.Loss.GetStep())
			}
			if err := loss(frame.Loss); err != nil {
				return err
			}
		case *shardv1.TrainResponse_Folded:
			if at := frame.Folded; at.GetStep() != step || at.GetAttempt() != f.attempt {
				return fault.New(fault.Internal, "step %d, attempt %d: got the gradient of step %d, attempt %d", step,
					f.attempt, at.GetStep(), at.GetAttempt())
			}
			folded(frame.Folded)
			return nil
		default:
			return fault.New(fault.Internal, "step %d: layers %v answered with %T", step, s.spans, frame)
		}
	}
}

// applyChain has the stages of a chain step their optimizers. It sets their digests, and calls applied for each.
func (f *fleet) applyChain(c *chain, a *shardv1.Apply, digests []uint64, applied func(*shardv1.Applied)) error {
	var g errgroup.Group
	for i, s := range c.stages {
		g.Go(func() error {
			if err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Apply{Apply: a}}); err != nil {
				return err
			}
			r, err := f.reply(s)
			if err != nil {
				return err
			}
			if r.GetApplied() == nil {
				return fault.New(fault.Internal, "step %d: layers %v answered apply with %T", a.GetStep(), s.spans,
					r.GetFrame())
			}
			digests[i] = r.GetApplied().GetDigest()
			applied(r.GetApplied())
			return nil
		})
	}
	return g.Wait()
}
