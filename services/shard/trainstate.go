package shard

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
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

// stateTensor is one tensor of everything that the next step of a stage depends on.
type stateTensor struct {
	name  string // a tied copy has its owner's name
	kind  shardv1.StateKind
	shape []int
	data  kernel.Buffer[float32]
	at    kernel.Memory[float32] // where data is: with the weights, or in the host's memory
	own   bool                   // this stage alone has it, and writes it to checkpoints
	equal bool                   // all replicas have it, and one of them writes it to checkpoints
}

// hostMemory is where the state is that no pass and no optimizer reads.
var hostMemory kernel.HostOps[float32]

// stateOf lists the state of a parameter. A tied copy is not written.
func (r *trainRun) stateOf(p *paramState) []stateTensor {
	var out []stateTensor
	for _, t := range []stateTensor{
		{kind: shardv1.StateKind_STATE_KIND_WEIGHT, data: p.Data},
		{kind: shardv1.StateKind_STATE_KIND_MOMENT1, data: p.m},
		{kind: shardv1.StateKind_STATE_KIND_MOMENT2, data: p.v},
	} {
		if t.data != nil {
			t.name, t.shape, t.at, t.equal = p.Owner(), p.Shape, r.memory, !p.Tied()
			out = append(out, t)
		}
	}
	return out
}

// tensors lists the state of the stage. Whoever changes one of them calls r.changes before.
func (r *trainRun) tensors() []stateTensor {
	var out []stateTensor
	for _, p := range r.state {
		if p.common != nil {
			out = append(out, r.diloco.tensors(p)...)
			continue
		}
		out = append(out, r.stateOf(p)...)
	}
	if r.diloco == nil {
		for _, s := range r.spans {
			out = append(out, s.reducer.tensors()...)
		}
	}
	return out
}

// slotsName names the part of a parameter's state that belongs to some slots only.
func slotsName(param string, n schedule.Node) string {
	return fmt.Sprintf("%s@%d-%d", param, n.Lo, n.Hi)
}

// tensors lists the residuals of this replica's units, which only it has. The two parts of a tied weight have
// one each, under their own names.
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
					data: m.residual[n][at : at+len(p.Data)], at: hostMemory, own: true,
				})
				at += len(p.Data)
			}
		}
	}
	return out
}

// kindName is the name of a kind in checkpoints.
func kindName(kind shardv1.StateKind) string {
	return strings.ToLower(strings.TrimPrefix(kind.String(), "STATE_KIND_"))
}

// findShare looks for the trainer's token in the folder of runs. If it is there, and files can be made
// beside it, then the stage reads and writes the files of checkpoints itself.
func (r *trainRun) findShare() {
	runs, o := r.service.cfg.Runs, r.open
	if runs == nil || o.GetToken() == "" {
		return
	}
	f, err := runs.Open(path.Join(o.GetFolder(), o.GetToken()))
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		try := path.Join(o.GetFolder(), fmt.Sprintf("%s-%x-%d", o.GetToken(), o.GetChain(), o.GetStage()))
		var w checkpoint.WriteFile
		if w, err = runs.Create(try); err == nil {
			if err = w.Close(); err == nil {
				err = runs.Remove(try)
			}
		}
	}
	if err != nil {
		r.service.log.Debug("the folder of the run is not shared", "folder", o.GetFolder(), "error", err)
		return
	}
	r.store = checkpoint.New(runs, path.Join(o.GetFolder(), checkpoint.Name)).Claimed(o.GetClaim())
}

var tokenPattern = regexp.MustCompile(`^\.lamina-[0-9a-f]{32}$`)

func checkShare(o *shardv1.TrainOpen) error {
	switch {
	case o.GetClaim() != "" && !checkpoint.IsClaim(o.GetClaim()):
		return fault.Field("open.claim", "%.200q is not the name of a claim", o.GetClaim())
	case o.GetFolder() == "" && o.GetToken() == "":
		return nil
	case !fs.ValidPath(o.GetFolder()) || strings.ContainsAny(o.GetFolder(), "\\:\x00") || len(o.GetFolder()) > 1024:
		return fault.Field("open.folder", "%.200q is not a path inside the folder of runs", o.GetFolder())
	case !tokenPattern.MatchString(o.GetToken()):
		return fault.Field("open.token", "%.200q is not the name of a token", o.GetToken())
	}
	return nil
}

// loadState reads a state tensor and the chunks that follow it.
func (r *trainRun) loadState(s *shardv1.State) error {
	i := slices.IndexFunc(r.all, func(t stateTensor) bool { return t.name == s.GetName() && t.kind == s.GetKind() })
	if i < 0 {
		return fault.Field("state.name", "%q has no %v in layers %v", s.GetName(), s.GetKind(), r.layers())
	}
	dst := r.all[i].data
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
	r.changes(dst)
	r.all[i].at.Upload(dst, values)
	r.loaded[i] = true
	return nil
}

// finishLoad completes the state: it reads the tensors of a checkpoint if the trainer has not sent them.
func (r *trainRun) finishLoad(l *shardv1.Load) error {
	if want := l.GetManifestSha256(); len(want) > 0 {
		if err := r.readState(l.GetStep(), want); err != nil {
			return err
		}
	}
	for i, t := range r.all {
		if !r.loaded[i] {
			return fault.Field("state", "%q lacks its %s", t.name, kindName(t.kind))
		}
	}
	clear(r.loaded)
	for _, s := range r.spans {
		s.stage.Changed()
	}
	r.step = l.GetStep()
	if r.diloco != nil {
		if err := r.diloco.loaded(r.step); err != nil {
			return err
		}
	}
	return r.send(
		&shardv1.TrainResponse{Frame: &shardv1.TrainResponse_Loaded{Loaded: &shardv1.Loaded{Digest: r.digest()}}},
	)
}

// readState reads the state of the stage from the files of a checkpoint, and nothing else of it.
func (r *trainRun) readState(step uint64, manifest []byte) error {
	if r.store == nil {
		return fault.New(
			fault.FailedPrecondition,
			"load step %d: this shard does not share the folder of the run",
			step,
		)
	}
	c, err := r.store.Open(step)
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "load step %d", step)
	}
	if string(c.Digest[:]) != string(manifest) {
		return fault.New(
			fault.DataLoss,
			"load step %d: the manifest has digest %x, the trainer's has %x",
			step,
			c.Digest,
			manifest,
		)
	}
	values := make([]float32, 0, wire.ChunkSize/4)
	for i, t := range r.all {
		_, have, ok := c.Find(kindName(t.kind), t.name)
		if !ok || !slices.Equal(have.Shape, t.shape) {
			continue // reported by finishLoad
		}
		r.changes(t.data)
		at := 0
		err := c.Read(kindName(t.kind), t.name, func(piece []byte) error {
			values = wire.Floats(values[:0], piece)
			t.at.Upload(t.data[at:at+len(values)], values)
			at += len(values)
			return nil
		})
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "load step %d", step)
		}
		r.loaded[i] = true
	}
	return nil
}
