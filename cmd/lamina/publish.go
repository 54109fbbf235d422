package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/services/trainer"
)

type adaptersPublishCmd struct {
	adapterRouterFlags
	Trainer  string `help:"Address of the trainer." default:"127.0.0.1:7070" env:"LAMINA_TRAINER"`
	As       string `help:"Name of the adapter on the router: NAME or MODEL:NAME. Default: the name of the run, for the model that it was trained on."`
	AnyBase  bool   `help:"Accept that the model is another base, such as the same weights in another element type."`
	Training string `arg:"" name:"run" help:"Name of the run. If it is not done yet, the command waits for its end."`
}

// Run waits for the end of a run and sends its adapter to the router.
func (c *adaptersPublishCmd) Run(e *verb.Env) (err error) {
	dir, err := os.MkdirTemp("", "lamina-publish-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	from := trainerFlags{connectFlags: c.connectFlags, Trainer: c.Trainer}
	if err := from.call(e, 0, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		last, err := (&progress{}).watch(ctx, client, c.Training)
		if err == nil {
			err = runError(last)
		}
		if err == nil && last.GetState() != trainerv1.RunState_RUN_STATE_DONE {
			err = fault.New(fault.FailedPrecondition, "run %s is %s, not done", c.Training, stateName(last.GetState()))
		}
		if err != nil {
			return err
		}
		return fetchAdapter(ctx, client, c.Training, dir)
	}); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "publish run %s", c.Training)
	}
	loaded, err := c.publish(e, dir, c.Training, c.As, c.AnyBase)
	if err != nil {
		return err
	}
	return c.print(e, loaded)
}

// publishDone sends the adapter of a run of this process that is done to the router that its manifest names, if it
// names one: the mesh of this process has no routers of others. It adds to last what has become of that.
func (f connectFlags) publishDone(
	e *verb.Env, manifest []byte, last *trainerv1.Run,
) (*routerv1.LoadAdapterResponse, error) {
	m, err := trainer.ParseManifest(manifest)
	if err != nil || m.Publish == nil || m.Publish.Router == "" {
		return nil, err
	}
	router := adapterRouterFlags{connectFlags: f, Router: m.Publish.Router}
	as := cmp.Or(m.Publish.Name, last.GetName())
	if m.Publish.Model != "" {
		as = m.Publish.Model + ":" + as
	}
	loaded, err := router.publish(e, last.GetModelPath(), last.GetName(), as, m.Publish.AnyBase)
	now := loaded.GetAdapter()
	done := &trainerv1.Published{Router: m.Publish.Router, Name: cmp.Or(m.Publish.Name, last.GetName()),
		Model: now.GetModel(), Digest: now.GetDigest(), Replaced: loaded.GetReplaced()}
	if err != nil {
		done.Error = err.Error()
	}
	last.Published = append(last.Published, done)
	return loaded, err
}

// publish sends the adapter in a folder to the router. as is NAME or MODEL:NAME; without a model it is for the one that
// it was trained on, and without a name it has that of its run.
func (f *adapterRouterFlags) publish(
	e *verb.Env, dir, run, as string, anyBase bool,
) (*routerv1.LoadAdapterResponse, error) {
	values, err := adapter.Open(dir)
	if err != nil {
		return nil, err
	}
	open := &routerv1.LoadAdapterOpen{AnyBase: anyBase}
	open.Model, open.Name = splitAdapter(as)
	open.Model, open.Name = cmp.Or(open.GetModel(), values.BaseDigest), cmp.Or(open.GetName(), run)
	return f.load(e, open, dir)
}

// fetchAdapter copies the adapter of a run to a folder.
func fetchAdapter(ctx context.Context, client trainerv1.TrainerServiceClient, run, dir string) error {
	for _, name := range []string{adapter.ConfigFile, adapter.WeightsFile} {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		err = fetchArtifact(ctx, client, run, path.Join("adapter", name), 0, file)
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}
