package shard

import (
	"errors"
	"io/fs"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// initial is where the initial weights of a stage come from: the files of a model, or a random generator
// if files is nil.
type initial struct{ files *model.Files }

// openInitial opens the model that a run starts from, and checks that it is the trainer's: every stage
// opens it on its own machine.
func openInitial(w *shardv1.InitialWeights, spec *model.Spec) (initial, error) {
	if w == nil {
		return initial{}, nil
	}
	digest, err := weights.Digest(w.GetPath())
	if errors.Is(err, fs.ErrNotExist) {
		return initial{}, fault.Wrap(fault.NotFound, err, "open.initial")
	}
	if err != nil {
		return initial{}, fault.Wrap(fault.Invalid, err, "open.initial")
	}
	if digest != w.GetDigest() {
		return initial{}, fault.Field("open.initial.digest", "%s is %s here, the trainer has %s", w.GetPath(), digest,
			w.GetDigest())
	}
	files, err := model.Open(w.GetPath())
	if err != nil {
		return initial{}, fault.Wrap(fault.Invalid, err, "open.initial")
	}
	dense, err := files.Dense()
	if err == nil && !dense.Same(spec) {
		err = fault.Field("open.config_json", "describes another model than %s", w.GetPath())
	}
	if err != nil {
		return initial{}, errors.Join(err, files.Close())
	}
	return initial{files}, nil
}

// stage builds a range of layers. Of a model's files it reads the tensors of these layers only. a is the adapter that
// is trained, or nil. A base that is used as it is stored shares the packed matrices of the held stages.
func (i initial) stage(spec model.Spec, at model.Range, set kernel.Set[float32], o *shardv1.TrainOpen,
	a *adapter.Adapter, held []*model.Stage[float32]) (*model.Stage[float32], error) {
	if i.files == nil {
		return model.Init(spec, at, set, o.GetSeed())
	}
	return model.LoadBeside(i.files, at, set, model.LoadOptions{Dense: !o.GetAdapter().GetStoredBase(), Saved: a}, held)
}

func (i initial) close() error {
	if i.files == nil {
		return nil
	}
	return i.files.Close()
}
