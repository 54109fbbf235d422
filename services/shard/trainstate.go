package shard

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const f32 = tensorv1.ElementType_ELEMENT_TYPE_F32

// sorted orders parameters by name, which is the order in digests and events.
func sorted(params []model.Param[float32]) []model.Param[float32] {
	return slices.SortedFunc(
		slices.Values(params), func(a, b model.Param[float32]) int { return cmp.Compare(a.Name, b.Name) },
	)
}

// stateTensor is a tensor of the stage's state.
type stateTensor struct {
	name   string // the owner's for a tied copy; with the slots that it is about, if that is not all
	kind   shardv1.StateKind
	shape  []int
	values []float32
	slots  bool // only this replica has it
	copied bool // another stage saves it
}

// key identifies a tensor in the state.
func (t *stateTensor) key() string { return fmt.Sprintf("%d %s", t.kind, t.name) }

// slotsName names the part of a parameter's state that belongs to some slots only.
func slotsName(param string, n schedule.Node) string {
	return fmt.Sprintf("%s@%d-%d", param, n.Lo, n.Hi)
}

// tensors lists the stage's state: that of each parameter, and the residuals of this replica's units.
func (r *trainRun) tensors() []stateTensor {
	var out []stateTensor
	for _, p := range r.state {
		for _, part := range []struct {
			kind   shardv1.StateKind
			values []float32
		}{
			{shardv1.StateKind_STATE_KIND_WEIGHT, p.Data}, {shardv1.StateKind_STATE_KIND_MOMENT1, p.m},
			{shardv1.StateKind_STATE_KIND_MOMENT2, p.v},
		} {
			if part.values != nil {
				out = append(out, stateTensor{name: p.Owner(), kind: part.kind, shape: p.Shape, values: part.values,
					copied: p.Tied()})
			}
		}
	}
	for _, s := range r.spans {
		out = append(out, s.reducer.tensors()...)
	}
	return out
}

// tensors lists the residuals. The two parts of a tied weight have one each.
func (m *reducer) tensors() []stateTensor {
	var out []stateTensor
	for _, n := range m.units {
		if m.residual[n] == nil {
			continue
		}
		for _, b := range m.buckets {
			at := b.lo
			for _, p := range b.params {
				out = append(out, stateTensor{
					name: slotsName(p.Name, n), kind: shardv1.StateKind_STATE_KIND_RESIDUAL, shape: p.Shape,
					values: m.residual[n][at : at+len(p.Data)], slots: true,
				})
				at += len(p.Data)
			}
		}
	}
	return out
}

// loadState reads a state tensor and the chunks that follow it.
func (r *trainRun) loadState(s *shardv1.State) error {
	all := r.tensors()
	at := slices.IndexFunc(all, func(t stateTensor) bool { return t.name == s.GetName() && t.kind == s.GetKind() })
	if at < 0 {
		return fault.Field("state.name", "layers %v have no %v of %q", r.layers(), s.GetKind(), s.GetName())
	}
	dst := all[at].values
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
	r.loaded[all[at].key()] = true
	return nil
}

// finishLoad checks that the state is complete.
func (r *trainRun) finishLoad(l *shardv1.Load) error {
	for _, t := range r.tensors() {
		if !r.loaded[t.key()] {
			return fault.Field("state", "lacks the %v of %q", t.kind, t.name)
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
	for _, t := range r.tensors() {
		if t.copied || f.GetWeightsOnly() && t.kind != shardv1.StateKind_STATE_KIND_WEIGHT ||
			f.GetSlotsOnly() && !t.slots {
			continue
		}
		head, chunks := wire.Encode(f32, t.shape, t.values)
		if err := r.send(
			&shardv1.TrainResponse{
				Frame: &shardv1.TrainResponse_State{State: &shardv1.State{Name: t.name, Kind: t.kind, Tensor: head}},
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
	return r.send(
		&shardv1.TrainResponse{
			Frame: &shardv1.TrainResponse_Fetched{Fetched: &shardv1.Fetched{Step: r.step, Digest: r.digest()}},
		},
	)
}
