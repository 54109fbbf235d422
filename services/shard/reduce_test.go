package shard_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"testing"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// beside returns members that share a machine: replica i of n has an equal share of the slots.
func beside(n uint32) (out []*shardv1.Member) {
	for i := range n {
		m := member(i, slotCount*i/n, slotCount*(i+1)/n)
		m.Chain, m.Places = trainOpening(i, n).GetChain(), []*shardv1.Place{{Address: "mem:shard"}}
		out = append(out, m)
	}
	return out
}

// reduce calls Reduce and sends gradients. It returns the call, and its error if there is one.
func (c *conversation) reduce(ctx context.Context, open *shardv1.ReduceOpen, gradients ...*eventv1.Gradient) (
	grpc.BidiStreamingClient[shardv1.ReduceRequest, shardv1.ReduceResponse], error) {
	c.t.Helper()
	stream, err := c.client.Reduce(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	err = stream.Send(&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Open{Open: open}})
	if _, other := stream.Recv(); other != nil {
		err = other
	}
	for _, g := range gradients {
		if err == nil {
			err = stream.Send(&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Gradient{Gradient: g}})
		}
	}
	return stream, rpc.FromStatus(err)
}

// linkBroken reads until the stage reports a broken link.
func (c *conversation) linkBroken() *shardv1.LinkBroken {
	c.t.Helper()
	for {
		if l := c.next().GetLinkBroken(); l != nil {
			return l
		}
	}
}

func TestReduce_RefusesStrangers(t *testing.T) {
	c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 2))
	chain, other := trainOpening(0, 2).GetChain(), trainOpening(1, 2).GetChain()
	for name, open := range map[string]*shardv1.ReduceOpen{
		"nothing":       nil,
		"no caller":     {Chain: chain},
		"another chain": {Chain: make([]byte, 16), From: other},
		"another stage": {Chain: chain, Stage: 1, From: other},
		"itself":        {Chain: chain, From: chain},
	} {
		if _, err := c.reduce(c.ctx, open); fault.CodeOf(err) != fault.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.end()
}

// Two replicas of one machine give the bits of a single one, and nothing goes over the bus.
func TestReduce_ReplicasMatchASingleOne(t *testing.T) {
	norms, digests := alone(t, 3)
	bus := gradbus.NewMemory(busLimit)
	r := newTrainRig(t, bus)
	for _, n := range []uint32{2, 4, 3} {
		var replicas []*conversation
		for i := range n {
			replicas = append(replicas, r.train(trainOpening(i, n)))
		}
		for step := uint64(1); step <= 3; step++ {
			for i, m := range beside(n) {
				replicas[i].attempt(step, 0, m.GetLo(), m.GetHi(), m.GetHi()-m.GetLo(), beside(n)...)
			}
			for i, c := range replicas {
				if _, got := c.folded(); !sameNorms(got, norms[step-1]) {
					t.Errorf("step %d: norms of replica %d of %d differ from those of a single one", step, i, n)
				}
			}
			for i, c := range replicas {
				if got := c.apply(step); got != digests[step-1] {
					t.Errorf("step %d: replica %d of %d has weights %x, a single one %x", step, i, n, got, digests[step-1])
				}
			}
		}
		for _, c := range replicas {
			c.end()
		}
	}
}

// A replica is lost in every way in which an attempt can be aborted; the one that is left makes the step alone.
func TestReduce_LostReplicaLeavesNoTrace(t *testing.T) {
	_, digests := alone(t, 2)
	for name, slots := range map[string]uint32{"before its first slot": 0, "between two slots": 1,
		"while it waits for the others": 2} {
		t.Run(name, func(t *testing.T) {
			r := newTrainRig(t, gradbus.NewMemory(busLimit))
			a, b := r.train(trainOpening(0, 2)), r.train(trainOpening(1, 2))
			a.attempt(1, 0, 0, 2, 2, beside(2)...)
			b.attempt(1, 0, 2, 4, slots, beside(2)...)
			a.abort(1, 0)
			b.abort(1, 0)
			a.attempt(1, 1, 0, 2, 2, beside(2)...)
			b.attempt(1, 1, 2, 4, 2, beside(2)...)
			a.folded()
			b.folded()
			if got := a.applyAs(&shardv1.Apply{Step: 1, Attempt: 1}); got != digests[0] {
				t.Errorf("weights %x, a single replica has %x", got, digests[0])
			}
			b.applyAs(&shardv1.Apply{Step: 1, Attempt: 1})
			b.end()
			a.attempt(2, 0, 0, 4, 4, member(0, 0, 4))
			a.folded()
			if got := a.apply(2); got != digests[1] {
				t.Errorf("weights %x alone, a single replica has %x", got, digests[1])
			}
			a.end()
		})
	}
}

// A call that breaks ends the attempt on the stage that it was made to, with a report. The next attempt succeeds.
func TestReduce_BrokenCallIsReported(t *testing.T) {
	norms, _ := alone(t, 1)
	for _, early := range []bool{false, true} {
		r := newTrainRig(t, gradbus.NewMemory(busLimit))
		a := r.train(trainOpening(0, 2))
		open := &shardv1.ReduceOpen{Chain: trainOpening(0, 2).GetChain(), From: trainOpening(1, 2).GetChain()}
		ctx, cancel := context.WithCancel(r.ctx)
		defer cancel()
		begin := func() { a.attempt(1, 0, 0, 2, 2, beside(2)...) }
		if !early {
			begin()
		}
		stream, err := a.reduce(ctx, open)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := stream.Recv(); err == nil {
			t.Error("the call goes on")
		}
		if early { // the call may break before the attempt begins, or after
			begin()
		}
		if got := a.linkBroken(); got.GetReplica() != 1 || got.GetStep() != 1 || got.GetMessage() == "" {
			t.Errorf("reported %v", got)
		}
		a.abort(1, 0)
		b := r.train(trainOpening(1, 2))
		a.attempt(1, 1, 0, 2, 2, beside(2)...)
		b.attempt(1, 1, 2, 4, 2, beside(2)...)
		for _, c := range []*conversation{a, b} {
			if _, got := c.folded(); !sameNorms(got, norms[0]) {
				t.Error("norms differ from those of a single replica")
			}
		}
		a.end()
		b.end()
	}
}

// A stage that folds a gradient for others of its machine, and cannot call one of them, reports that. The other one
// knows of no call, and waits.
func TestReduce_ACallThatCannotBeMadeIsReported(t *testing.T) {
	a := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 2))
	a.attempt(1, 0, 0, 2, 2, beside(2)...)
	open := &shardv1.ReduceOpen{Chain: trainOpening(0, 2).GetChain(), From: trainOpening(1, 2).GetChain()}
	stream, err := a.reduce(a.ctx, open, gradientEvents(make([]float32, tensorCount))...) // replica 1 is not open
	if err != nil {
		t.Fatal(err)
	}
	for {
		f := a.next()
		if f.GetFolded() != nil {
			t.Fatal("the attempt is over, and the sum has not arrived")
		}
		if got := f.GetLinkBroken(); got != nil {
			if got.GetReplica() != 1 || got.GetStep() != 1 {
				t.Errorf("reported %v", got)
			}
			break
		}
	}
	a.abort(1, 0)
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	a.end()
}

// T6 without the bus: what another replica sends is rejected, with its name, if it must not be used.
func TestReduce_BadGradientsAreRejected(t *testing.T) {
	notFinite, stale := shardv1.RejectReason_REJECT_REASON_NOT_FINITE, shardv1.RejectReason_REJECT_REASON_STALE
	misshapen := shardv1.RejectReason_REJECT_REASON_MISSHAPEN
	nan := make([]float32, tensorCount)
	nan[100] = float32(math.NaN())
	for name, c := range map[string]struct {
		values []float32
		change func(*eventv1.Gradient)
		want   shardv1.RejectReason
	}{
		"not a number":         {nan, func(*eventv1.Gradient) {}, notFinite},
		"of another run":       {nil, func(g *eventv1.Gradient) { g.Run = "other" }, misshapen},
		"of another's slots":   {nil, func(g *eventv1.Gradient) { g.SlotLo, g.SlotHi = 0, 2 }, misshapen},
		"of another part":      {nil, func(g *eventv1.Gradient) { g.Part = "0-2.0.sum" }, misshapen},
		"of another wire type": {nil, func(g *eventv1.Gradient) { g.Wire = "int8" }, misshapen},
		"of a later step":      {nil, func(g *eventv1.Gradient) { g.Step = 9 }, stale},
		"too short": {nil, func(g *eventv1.Gradient) {
			g.Data = g.GetData()[4:]
			g.Checksum = wire.Checksum(g.GetData())
		}, misshapen},
		"with flipped bits": {nil, func(g *eventv1.Gradient) {
			g.Data = bytes.Clone(g.GetData())
			g.Data[17] ^= 4
		}, misshapen},
	} {
		t.Run(name, func(t *testing.T) {
			conv := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 2))
			conv.attempt(1, 0, 0, 2, 2, beside(2)...)
			if c.values == nil {
				c.values = make([]float32, tensorCount)
			}
			events := gradientEvents(c.values)
			c.change(events[0])
			open := &shardv1.ReduceOpen{Chain: trainOpening(0, 2).GetChain(), From: trainOpening(1, 2).GetChain()}
			stream, err := conv.reduce(conv.ctx, open, events...)
			if err != nil {
				t.Fatal(err)
			}
			if got := conv.rejected(); got.GetReplica() != 1 || got.GetReason() != c.want ||
				len(got.GetEvidence()) == 0 {
				got.Evidence = nil
				t.Errorf("rejected %v, want replica 1 for %v", got, c.want)
			}
			if err := stream.CloseSend(); err != nil {
				t.Error(err)
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("the call ended with %v", err)
			}
			conv.abort(1, 0)
			conv.end()
		})
	}
}

// A bad gradient that comes after its attempt has ended is not held against the next attempt, in which its replica
// takes no part.
func TestReduce_LateBadGradientOfALostReplicaIsForgotten(t *testing.T) {
	norms, _ := alone(t, 1)
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	a, b := r.train(trainOpening(0, 3)), r.train(trainOpening(2, 3))
	a.attempt(1, 0, 0, 1, 1, beside(3)...)
	bad := gradientEvents(make([]float32, tensorCount))[0]
	bad.Run = "other"
	open := &shardv1.ReduceOpen{Chain: trainOpening(0, 3).GetChain(), From: trainOpening(1, 3).GetChain()}
	stream, err := a.reduce(a.ctx, open, bad)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.rejected(); got.GetReplica() != 1 {
		t.Errorf("rejected a gradient of replica %d", got.GetReplica())
	}
	err = stream.Send(&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Gradient{Gradient: bad}})
	if err = errors.Join(err, stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) { // the stage has taken it
		t.Errorf("the call ended with %v", err)
	}
	a.abort(1, 0)
	members := beside(3)
	members = []*shardv1.Member{members[0], members[2]}
	members[0].Hi = members[1].GetLo()
	a.attempt(1, 1, 0, 2, 2, members...)
	b.attempt(1, 1, 2, 4, 2, members...)
	for _, c := range []*conversation{a, b} {
		if _, got := c.folded(); !sameNorms(got, norms[0]) {
			t.Error("norms differ from those of a single replica")
		}
	}
	a.end()
	b.end()
}

// Members whose places cannot be are refused.
func TestReduce_WrongPlacesNameTheField(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	for name, change := range map[string]func([]*shardv1.Member){
		"one without a place":    func(m []*shardv1.Member) { m[1].Places = nil },
		"a chain of 3 bytes":     func(m []*shardv1.Member) { m[1].Chain = []byte("abc") },
		"two places of a stage":  func(m []*shardv1.Member) { m[1].Places = append(m[1].GetPlaces(), m[1].GetPlaces()...) },
		"no address":             func(m []*shardv1.Member) { m[1].Places[0].Address = "" },
		"the same chain twice":   func(m []*shardv1.Member) { m[1].Chain = m[0].GetChain() },
		"the chain of the other": func(m []*shardv1.Member) { m[0].Chain, m[1].Chain = m[1].GetChain(), m[0].GetChain() },
	} {
		c, members := r.train(trainOpening(0, 2)), beside(2)
		change(members)
		c.attempt(1, 0, 0, 2, 2, members...)
		if err := c.fails(); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
