package trainer

import (
	"errors"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// load has every stage load its part of a checkpoint. Stages that share the run's folder read it there;
// the others are sent theirs.
func (f *fleet) load(c *checkpoint.Checkpoint, chains ...*chain) error {
	return eachOf(chains, func(ch *chain, i int, s *stage) error {
		load := &shardv1.Load{Step: c.Step}
		if s.shares {
			load.ManifestSha256 = c.Digest[:]
		} else if err := f.sendState(c, ch, i); err != nil {
			return err
		}
		err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Load{Load: load}})
		var r *shardv1.TrainResponse
		if err == nil {
			r, err = f.reply(s)
		}
		switch {
		case err != nil && s.shares && fault.CodeOf(err) == fault.DataLoss:
			return &damagedError{c.Step, err}
		case err != nil:
			return err
		case r.GetLoaded() == nil:
			return fault.New(fault.Internal, "load layers %v: the stage answered with %T", s.spans, r.GetFrame())
		}
		return nil
	})
}

// sendState sends a stage the tensors that it holds, one after the other. It verifies each one first.
func (f *fleet) sendState(c *checkpoint.Checkpoint, ch *chain, i int) error {
	lo, hi := f.manifest.share(ch.replica, f.layout.replicas)
	spec := f.spec
	spec.Head.Tied = spec.Head.Tied && !f.untied
	for _, file := range c.Files {
		for _, t := range file.Tensors {
			param, from, to, some := cutSlots(t.Name)
			holders := spec.Holders(param, f.ranges)
			if file.Kind == residual { // the two parts of a tied weight have one each, under their own names
				holders = holders[:min(1, len(holders))]
			}
			if !slices.ContainsFunc(holders, func(at int) bool { return at%len(ch.stages) == i }) ||
				some && (from < lo || to > hi) {
				continue
			}
			if err := f.sendTensor(c, ch.stages[i], file.Kind, t.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fleet) sendTensor(c *checkpoint.Checkpoint, s *stage, kind, name string) (err error) {
	sum := wire.NewSum()
	err = c.Read(kind, name, func(piece []byte) error {
		sum.Add(piece)
		return nil
	})
	if fault.CodeOf(err) == fault.DataLoss {
		return &damagedError{c.Step, err}
	}
	if err != nil {
		return err
	}
	r, err := c.OpenTensor(kind, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	value := shardv1.StateKind_value["STATE_KIND_"+strings.ToUpper(kind)]
	return wire.Stream(r.Tensor.Shape, sum.Checksum(), r, func(head *tensorv1.Tensor) error {
		return f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_State{
			State: &shardv1.State{Name: name, Kind: shardv1.StateKind(value), Tensor: head}}})
	}, func(chunk *tensorv1.Chunk) error {
		return f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Chunk{Chunk: chunk}})
	})
}
