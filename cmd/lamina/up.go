package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// meshKernels makes the chosen kernel set and the function that ends it.
func meshKernels(f *verb.KernelFlags) (app.Kernels, func(), error) {
	set, end, err := f.KernelSet()
	return app.Kernels{Set: set, Threads: f.Threads}, end, err
}

// bundledModel is the model that comes with Lamina: beside the working folder, or
// beside the binary's folder.
func bundledModel() string {
	const name = "models/lamina-tolstoy"
	if _, err := os.Stat(name); err == nil {
		return name
	}
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), "..", name)
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	return name
}

type upCmd struct {
	verb.KernelFlags
	Model          string `short:"m" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model; the bundled model when absent."`
	Name           string `help:"The model's name; that of its file or folder when absent."`
	Stages         int    `help:"Stages of each pipeline." default:"2"`
	Replicas       int    `help:"Pipelines." default:"1"`
	GRPC           string `name:"grpc" help:"Address of the gRPC API." default:"127.0.0.1:7070"`
	HTTP           string `name:"http" help:"Address of the HTTP face and the console." default:"127.0.0.1:8080"`
	KVPositions    int    `name:"kv-positions" help:"Positions in each shard's KV cache." default:"16384"`
	Runs           string `help:"Folder of training runs." default:"runs"`
	InsecureListen bool   `help:"Let addresses be reachable from other machines without TLS."`
	speculateFlags
	hiddenFlags
	Draft string `help:"Smaller model of the same vocabulary, file or folder, that proposes draft tokens (5 without --speculate)."`
}

// Run serves until interrupted.
func (c *upCmd) Run(e *verb.Env) error {
	if c.Model == "" {
		c.Model = bundledModel()
	}
	speculation, err := c.speculation(c.Draft)
	if err != nil {
		return err
	}
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return err
	}
	defer end()
	mesh, err := app.Start(e.Ctx, app.MeshConfig{
		Log: e.Log, Kernels: kernels, Model: c.Model, Name: c.Name, Stages: c.Stages, Replicas: c.Replicas, KVPositions: c.KVPositions, Speculation: speculation, HiddenType: c.hiddenType(),
		Train: true, RunsDir: c.Runs, GRPC: c.GRPC, HTTP: c.HTTP, Insecure: c.InsecureListen,
	})
	if err != nil {
		return err
	}
	url := "http://" + mesh.HTTPAddr()
	fmt.Fprintf(e.Stdout, "serving %s over %d stages\n\n", c.Model, c.Stages)
	fmt.Fprintf(e.Stdout, "console  %s\ngrpc     %s\ntry      curl -N %s/v1/completions -d '{\"prompt\": \"The prince\", \"max_tokens\": 64, \"stream\": true}'\n\n", url, mesh.GRPCAddr(), url)
	return mesh.Wait()
}

// meshFlags say which mesh answers: a router elsewhere, or one in this process.
type meshFlags struct {
	verb.KernelFlags
	Model  string `short:"m" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model, served in this process."`
	Stages int    `help:"Stages of the pipeline in this process." default:"1"`
	Router string `help:"Ask this router instead of a mesh in this process." env:"LAMINA_ROUTER"`
	speculateFlags
	hiddenFlags
	Draft string `help:"Smaller model of the same vocabulary, file or folder, that proposes draft tokens (5 without --speculate)."`
}

// dial returns a router to ask and the function that ends what was started for it.
func (f *meshFlags) dial(e *verb.Env) (routerv1.RouterServiceClient, func() error, error) {
	if f.Router != "" {
		if f.Draft != "" {
			return nil, nil, fault.Field("draft", "%q cannot be given to the router at %s: it has its own", f.Draft, f.Router)
		}
		dialer := rpc.NewDialer(rpc.DialOptions{})
		conn, err := dialer.Dial(f.Router)
		if err != nil {
			return nil, nil, errors.Join(err, dialer.Close())
		}
		return routerv1.NewRouterServiceClient(conn), dialer.Close, nil
	}
	if f.Model == "" {
		f.Model = bundledModel()
	}
	if f.Stages < 1 {
		return nil, nil, fault.Field("stages", "%d: want one or more", f.Stages)
	}
	speculation, err := f.speculation(f.Draft)
	if err != nil {
		return nil, nil, err
	}
	kernels, end, err := meshKernels(&f.KernelFlags)
	if err != nil {
		return nil, nil, err
	}
	mesh, err := app.Start(e.Ctx, app.MeshConfig{Log: e.Log, Kernels: kernels, Model: f.Model, Stages: f.Stages, Speculation: speculation})
	if err != nil {
		end()
		return nil, nil, err
	}
	conn, err := mesh.Router()
	if err != nil {
		return nil, nil, errors.Join(err, mesh.Close())
	}
	return routerv1.NewRouterServiceClient(conn), func() error {
		defer end()
		return mesh.Close()
	}, nil
}

type trainCmd struct {
	verb.KernelFlags
	Manifest string `required:"" help:"The run's manifest, JSON."`
	Stages   int    `help:"Stages of each chain." default:"1"`
	Replicas int    `help:"Chains; slots are shared out over them." default:"1"`
	Resume   bool   `help:"Go on from the last whole checkpoint."`
	Out      string `help:"Folder of the run: checkpoints, metrics.jsonl and the trained model; runs/NAME when absent."`
	Trainer  string `help:"Ask this trainer instead of a mesh in this process." env:"LAMINA_TRAINER"`
	Format   string `help:"Output: text (a progress bar) or json (the last state)." enum:"text,json" default:"text"`
}

// Run starts the run and follows it to its end.
func (c *trainCmd) Run(e *verb.Env) error {
	manifest, err := os.ReadFile(c.Manifest)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "read manifest")
	}
	if c.Stages < 1 || c.Replicas < 1 {
		return fault.Field("stages", "%d stages and %d replicas: want one or more of each", c.Stages, c.Replicas)
	}
	client, done, err := c.dial(e)
	if err != nil {
		return err
	}
	return errors.Join(c.follow(e, client, manifest), done())
}

func (c *trainCmd) dial(e *verb.Env) (trainerv1.TrainerServiceClient, func() error, error) {
	if c.Trainer != "" {
		dialer := rpc.NewDialer(rpc.DialOptions{})
		conn, err := dialer.Dial(c.Trainer)
		if err != nil {
			return nil, nil, errors.Join(err, dialer.Close())
		}
		return trainerv1.NewTrainerServiceClient(conn), dialer.Close, nil
	}
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return nil, nil, err
	}
	mesh, err := app.Start(e.Ctx, app.MeshConfig{Log: e.Log, Kernels: kernels, Train: true, Trainers: c.Stages * c.Replicas})
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
		return mesh.Close()
	}, nil
}
