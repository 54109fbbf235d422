package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

type trainCmd struct {
	verb.KernelFlags
	connectFlags
	Manifest string `required:"" help:"File with the manifest of the run, as JSON."`
	Stages   int    `            help:"Number of stages of each replica."                                                                                       default:"1"`
	Replicas int    `            help:"Number of replicas, over which the slots of a batch are distributed."                                                    default:"1"`
	Resume   bool   `            help:"Continue from the last complete checkpoint."`
	Out      string `            help:"Folder for the checkpoints, metrics.jsonl and the trained model. Default: runs/NAME."`
	DryRun   bool   `            help:"Check the manifest, print what the run will take in parameters, tokens, memory and time on this machine, and start nothing."`
	Detach   bool   `            help:"Start the run on the trainer that --trainer names, and do not follow it."`
	Trainer  string `            help:"Address of a trainer to use instead of a mesh in this process."                                                                      env:"LAMINA_TRAINER"`
	Format   string `            help:"Output: text (a progress bar; plain lines if it is not a terminal) or json (the last state)."                                        default:"text" enum:"text,json"`
}

// Run starts the training run and shows its progress until it ends.
func (c *trainCmd) Run(e *verb.Env) error {
	manifest, err := os.ReadFile(c.Manifest)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "read manifest")
	}
	if c.Stages < 1 || c.Replicas < 1 {
		return fault.Field("stages", "%d stages and %d replicas: want one or more of each", c.Stages, c.Replicas)
	}
	if c.Detach && c.Trainer == "" {
		return fault.Field("detach", "the run would end with this process; name a trainer by --trainer")
	}
	if c.DryRun {
		return c.dryRun(e, manifest)
	}
	return c.run(e, manifest)
}

// run trains in a mesh of this process or at the trainer.
func (c *trainCmd) run(e *verb.Env, manifest []byte) error {
	// The mesh outlives the first interrupt, which only asks the run to stop.
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.Ctx))
	defer cancel()
	client, done, err := c.dial(ctx, e, sampledModel(manifest))
	if err != nil {
		return err
	}
	return errors.Join(c.start(ctx, e, client, manifest), done())
}

// start starts the run and follows it.
func (c *trainCmd) start(
	ctx context.Context, e *verb.Env, client trainerv1.TrainerServiceClient, manifest []byte,
) error {
	out, err := c.outDir()
	if err != nil {
		return err
	}
	resp, err := client.StartRun(ctx, &trainerv1.StartRunRequest{
		ManifestJson: manifest, Stages: uint32(c.Stages), Replicas: uint32(c.Replicas), Resume: c.Resume, Out: out,
	})
	if err != nil {
		return rpc.FromStatus(err)
	}
	if c.Detach {
		fmt.Fprintln(e.Stdout, resp.GetRun())
		return nil
	}
	last, err := follow(ctx, e, client, resp.GetRun(), c.Format == "text")
	if err != nil {
		return err
	}
	if c.Format == "json" {
		var failed error // to publish; the object says so, too
		if last.GetState() == trainerv1.RunState_RUN_STATE_DONE && c.Trainer == "" {
			_, failed = c.publishDone(e, manifest, last)
		}
		return errors.Join(printProto(e, last), runError(last), failed)
	}
	switch last.GetState() {
	case trainerv1.RunState_RUN_STATE_DONE:
		if err := printTrained(e, last); err != nil || c.Trainer != "" {
			return err
		}
		loaded, err := c.publishDone(e, manifest, last)
		if err == nil && loaded != nil {
			printLoaded(e, loaded)
		}
		return err
	case trainerv1.RunState_RUN_STATE_STOPPED:
		fmt.Fprintf(e.Stdout, "stopped after step %d of %d; continue with --resume\n", last.GetStep(), last.GetSteps())
	default:
	}
	return runError(last)
}

// printTrained says where the result of a run is and how it is served.
func printTrained(e *verb.Env, last *trainerv1.Run) error {
	path := last.GetModelPath()
	if !adapter.Is(path) {
		_, err := fmt.Fprintf(e.Stdout, "model    %s\nweights  sha256:%s\nserve it with: lamina up --model %s\n", path,
			last.GetWeightsDigest(), path)
		return err
	}
	a, err := adapter.Open(path)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(e.Stdout, "adapter  %s\nweights  sha256:%s\n"+
		"serve it with: lamina up --model %s --adapter %s=%s\n", path, last.GetWeightsDigest(), a.Base, last.GetName(),
		path); err != nil {
		return err
	}
	return printPublished(e, last)
}

// printPublished says which routers offer the adapter of a run.
func printPublished(e *verb.Env, last *trainerv1.Run) error {
	for _, p := range last.GetPublished() {
		text := fmt.Sprintf("as %s:%s, %s", p.GetModel(), p.GetName(), p.GetDigest())
		if p.GetError() != "" {
			text = "failed: " + p.GetError()
		}
		if _, err := fmt.Fprintf(e.Stdout, "publish  on router %s %s\n", p.GetRouter(), text); err != nil {
			return err
		}
	}
	return nil
}

// follow shows the progress of a run until it ends. The first interrupt stops the run after its current step,
// with a checkpoint; the second one ends at once.
func follow(
	ctx context.Context, e *verb.Env, client trainerv1.TrainerServiceClient, name string, text bool,
) (*trainerv1.Run, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stopOnInterrupt(ctx, cancel, e, client, name)
	}()
	defer func() { cancel(); <-stopped }()
	show := &progress{}
	if text {
		show = newProgress(e.Stdout)
	}
	last, err := show.watch(ctx, client, name)
	show.end()
	return last, err
}

// stopOnInterrupt stops a run when e's context ends, and calls cancel at the next interrupt.
func stopOnInterrupt(
	ctx context.Context, cancel context.CancelFunc, e *verb.Env, client trainerv1.TrainerServiceClient, name string,
) {
	select {
	case <-ctx.Done():
		return
	case <-e.Ctx.Done():
	}
	fmt.Fprintf(e.Stderr, "\nstop after the current step, with a checkpoint; interrupt again to stop at once\n")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	done := make(chan error, 1)
	go func() {
		_, err := client.StopRun(ctx, &trainerv1.StopRunRequest{Run: name})
		done <- err
	}()
	select {
	case <-signals:
		cancel()
		<-done //nolint:errcheck // the call was cut off
	case err := <-done:
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(e.Stderr, "lamina: stop run %s: %v\n", name, rpc.FromStatus(err))
		}
	}
}

// outDir is the folder of the run as the trainer is told. A trainer takes a relative path to be in its folder of runs,
// and a user takes it to be in the working directory.
func (c *trainCmd) outDir() (string, error) {
	if c.Out == "" || c.Trainer != "" {
		return c.Out, nil
	}
	return filepath.Abs(c.Out)
}

// runsDir is the folder of runs of a mesh in this process. Its shards write checkpoints there.
func (c *trainCmd) runsDir() string {
	if c.Out == "" {
		return ""
	}
	return filepath.Dir(filepath.Clean(c.Out))
}

// sampledModel returns the model that answers are sampled from while the run goes on; empty for none. A manifest that
// cannot be read is refused later.
func sampledModel(manifest []byte) string {
	var m struct {
		Objective string
		Model     struct{ From string }
	}
	if json.Unmarshal(manifest, &m) != nil || m.Objective != objectiveGRPO {
		return ""
	}
	return m.Model.From
}

// dial connects to a trainer, or to that of a mesh in this process. The mesh serves a model if the run samples from it.
func (c *trainCmd) dial(ctx context.Context, e *verb.Env, serve string) (
	_ trainerv1.TrainerServiceClient, done func() error, err error) {
	if c.Trainer != "" {
		return c.dialTrainer(c.Trainer)
	}
	adapters := ""
	if serve != "" {
		if adapters, err = os.MkdirTemp("", "lamina-adapters-"); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(adapters))
			}
		}()
	}
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return nil, nil, err
	}
	// Whoever starts this process may name any file that the process can read.
	mesh, err := app.Start(ctx, app.MeshConfig{
		Log: e.Log, Kernels: kernels, Train: true, Trainers: c.Stages * c.Replicas, Model: serve, AdapterDir: adapters,
		Runs: app.TrainerConfig{Dir: c.runsDir(), Data: ".", AllowPaths: []string{"/"}, AllowWrite: []string{"/"},
			Transient: true, Programs: true},
	})
	if err != nil {
		end()
		return nil, nil, err
	}
	conn, err := mesh.Trainer()
	if err != nil {
		return nil, nil, errors.Join(err, mesh.Close())
	}
	return trainerv1.NewTrainerServiceClient(conn), func() error {
		defer end()
		err := mesh.Close()
		if adapters != "" {
			err = errors.Join(err, os.RemoveAll(adapters))
		}
		return err
	}, nil
}

// dialTrainer connects to a trainer.
func (f connectFlags) dialTrainer(addr string) (trainerv1.TrainerServiceClient, func() error, error) {
	dialer, err := f.dialer()
	if err != nil {
		return nil, nil, err
	}
	conn, err := dialer.Dial(addr)
	if err != nil {
		return nil, nil, errors.Join(err, dialer.Close())
	}
	return trainerv1.NewTrainerServiceClient(conn), dialer.Close, nil
}
