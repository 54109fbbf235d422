package shard

import (
	"errors"
	"io/fs"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// openAdapter returns the adapter that a run trains, with its initial values; nil if it trains all parameters.
func openAdapter(o *shardv1.TrainOpen, spec *model.Spec) (*adapter.Adapter, error) {
	a := o.GetAdapter()
	if a == nil {
		return nil, nil
	}
	config, err := adapter.ParseConfig(a.GetConfigJson())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "open.adapter.config_json")
	}
	if len(config.Save) > 0 && o.GetObjective() != nil {
		return nil, fault.Field("open.adapter.config_json", "modules_to_save leaves no base that an objective compares with")
	}
	from := a.GetInitial()
	if from == nil {
		out, err := spec.NewAdapterFor(*config, o.GetSeed())
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "open.adapter.config_json")
		}
		return out, nil
	}
	digest, err := adapter.Digest(from.GetPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, err, "open.adapter.initial")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "open.adapter.initial")
	}
	if digest != from.GetDigest() {
		return nil, fault.Field(
			"open.adapter.initial.digest",
			"%s is %s here, the trainer has %s",
			from.GetPath(),
			digest,
			from.GetDigest(),
		)
	}
	out, err := adapter.Open(from.GetPath())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "open.adapter.initial")
	}
	out.Dropout = config.Dropout
	return out, nil
}

// trainAdapter puts an adapter on a stage, to be trained.
func trainAdapter(stage *model.Stage[float32], a *adapter.Adapter) error {
	part, err := stage.NewAdapter(a)
	if err == nil {
		stage.Train(part)
	}
	return err
}
