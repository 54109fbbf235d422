package shard

import (
	"cmp"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const f32 = tensorv1.ElementType_ELEMENT_TYPE_F32

// sorted orders parameters by name, which is the order in digests and events.
func sorted(params []model.Param[float32]) []model.Param[float32] {
	return slices.SortedFunc(
		slices.Values(params), func(a, b model.Param[float32]) int { return cmp.Compare(a.Name, b.Name) },
	)
}

// param returns the parameter of a state tensor. A tied copy has its owner's name.
func (r *trainRun) param(name string) *paramState {
	for _, p := range r.state {
		if p.Owner() == name {
			return p
		}
	}
	return nil
}

// stateKinds lists what a parameter may have.
func stateKinds() []shardv1.StateKind {
	return []shardv1.StateKind{
		shardv1.StateKind_STATE_KIND_WEIGHT, shardv1.StateKind_STATE_KIND_MOMENT1, shardv1.StateKind_STATE_KIND_MOMENT2,
	}
}

// values returns the tensor of a kind, or nil if the parameter has none.
func (p *paramState) values(kind shardv1.StateKind) []float32 {
	switch kind {
	case shardv1.StateKind_STATE_KIND_WEIGHT:
		return p.Data
	case shardv1.StateKind_STATE_KIND_MOMENT1:
		return p.m
	case shardv1.StateKind_STATE_KIND_MOMENT2:
		return p.v
	}
	return nil
}

// loadState reads a state tensor and the chunks that follow it.
func (r *trainRun) loadState(s *shardv1.State) error {
	p := r.param(s.GetName())
	if p == nil {
		return fault.Field("state.name", "%q is not a parameter of layers %v", s.GetName(), r.layers())
	}
	dst := p.values(s.GetKind())
	if dst == nil {
		return fault.Field("state.kind", "%q has no %v", s.GetName(), s.GetKind())
	}
	tensors := wire.NewAssembler(4 * len(dst))
	done, err := tensors.Start(s.GetTensor())
	for err == nil && !done {
		f, ferr := r.frame()
		if ferr != nil {
			return ferr
		}
		if f.GetChunk() == nil {
			return fault.Field("frame", "%T comes before the tensor of %q is complete", f.GetFrame(), s.GetName())
		}
		done, err = tensors.Add(f.GetChunk())
	}
	if err != nil {
		return err
	}
	values, err := tensors.Float32(nil)
	if err != nil {
		return err
	}
	if len(values) != len(dst) {
		return fault.Field("state.tensor", "%d values for %q, want %d", len(values), s.GetName(), len(dst))
	}
	copy(dst, values)
	r.loaded[p.Name] |= 1 << s.GetKind()
	return nil
}

// finishLoad checks that the state is complete.
func (r *trainRun) finishLoad(l *shardv1.Load) error {
	for _, p := range r.state {
		for _, kind := range stateKinds() {
			if p.values(kind) != nil && r.loaded[p.Name]&(1<<kind) == 0 {
				return fault.Field("state", "%q lacks its weight or a moment", p.Name)
			}
		}
	}
	clear(r.loaded)
	r.step = l.GetStep()
	return r.send(
		&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loaded{Loaded: &shardv1.Loaded{Digest: r.digest()}}},
	)
}

// fetch sends the stage's own state, tensor by tensor.
func (r *trainRun) fetch(f *shardv1.Fetch) error {
	kinds := stateKinds()
	if f.GetWeightsOnly() {
		kinds = kinds[:1]
	}
	for _, p := range r.state {
		if p.Tied() {
			continue
		}
		for _, kind := range kinds {
			if p.values(kind) == nil {
				continue
			}
			head, chunks := wire.Encode(f32, p.Shape, p.values(kind))
			if err := r.send(
				&shardv1.TrainResponse{
					Frame: &shardv1.TrainResponse_State{State: &shardv1.State{Name: p.Name, Kind: kind, Tensor: head}},
				},
			); err != nil {
				return err
			}
			for _, c := range chunks {
				if err := r.send(&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Chunk{Chunk: c}}); err != nil {
					return err
				}
			}
		}
	}
	return r.send(
		&shardv1.TrainResponse{
			Frame: &shardv1.TrainResponse_Fetched{Fetched: &shardv1.Fetched{Step: r.step, Digest: r.digest()}},
		},
	)
}
