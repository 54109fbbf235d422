package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// meshKernels returns the kernel set that the flags choose, and a function that closes it.
func meshKernels(f *verb.KernelFlags) (app.Kernels, func(), error) {
	set, end, err := f.KernelSet()
	return app.Kernels{Set: set, Threads: f.Threads}, end, err
}

// bundledModel returns the path of the model that comes with Lamina. It is relative to the working
// folder, or else to the folder above that of the binary.
func bundledModel() (string, error) {
	const name = "models/lamina-tolstoy"
	_, missing := os.Stat(name)
	if missing == nil {
		return name, nil
	}
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), "..", name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	return "", fault.Wrap(fault.NotFound, missing, "open the bundled model: it lies in the source tree of Lamina: "+
		"name another one with --model (lamina models lists those of this machine, lamina pull fetches one)")
}

type upCmd struct {
	verb.KernelFlags
	Model          string `short:"m" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model. Default: the bundled model." type:"model"`
	Name           string `          help:"Name of the model. Default: the name of its file or folder."`
	Stages         int    `          help:"Number of stages of each pipeline."                                                                                                                        default:"2"`
	Auto           int    `          help:"Start this many shards without layers, and let the router place the layers, in place of --stages."                                                                             default:"0"`
	MemoryLimit    string `          help:"Bytes for weights and KV caches of each shard with --auto, such as 2GB or 1.5GiB. Default: an equal part of what is available."`
	Replicas       int    `          help:"Number of pipelines."                                                                                                                                      default:"1"`
	GRPC           string `          help:"Address of the gRPC API."                                                                                                                                  default:"127.0.0.1:7070" name:"grpc"`
	HTTP           string `          help:"Address of the HTTP API and the console."                                                                                                                  default:"127.0.0.1:8080" name:"http"`
	KVPositions    int    `          help:"Number of positions in the KV cache of each shard; 0 means 16384."                                                                                                        default:"16384"          name:"kv-positions"`
	Runs           string `          help:"Folder of training runs."                                                                                                                                  default:"runs"`
	InsecureListen bool   `          help:"Allow listening on addresses that other machines can reach, without TLS and without authentication."`
	TLSCert        string `          help:"Certificate of the public addresses (PEM file). Default: none, and no TLS." name:"tls-cert"`
	TLSKey         string `          help:"Private key of the certificate (PEM file)."                                 name:"tls-key"`
	TLSCA          string `          help:"Certificate authority of clients that show a certificate (PEM file)."       name:"tls-ca"`
	TLSRevoked     string `help:"Revoked certificates: lists that the authority has signed (PEM file), as lamina certs revoke makes one. Default: none." name:"tls-revoked"`
	accessFlags
	adminFlags
	traceFlags
	speculateFlags
	hiddenStateFlags
	schedulingFlags
	metricsFlags
	toolsFlags
	adapterFlags
	batchFlags
	adapterMemoryFlags
	dataFlags
	Draft      string `          help:"Draft model for speculative decoding: file or folder of a smaller model with the same vocabulary. It proposes 5 draft tokens unless --speculate is given." type:"model"`
	StoreLimit string `          help:"Size of the store of models, which the console pulls into, such as 200GB. Default: no limit."                                                             env:"LAMINA_STORE_LIMIT"`
	Endpoint   string `          help:"Server of the repositories that the console pulls from."                                                                                                             default:"${endpoint}" env:"HF_ENDPOINT"`
}

// Run serves until interrupted.
func (c *upCmd) Run(e *verb.Env) error {
	if err := inBounds([]bound{{"stages", c.Stages, 1, maxReplicas}, {"replicas", c.Replicas, 1, maxReplicas},
		{"kv-positions", c.KVPositions, 0, maxPositions}}...); err != nil {
		return err
	}
	if err := c.checkScheduling(); err != nil {
		return err
	}
	if c.Model == "" {
		var err error
		if c.Model, err = bundledModel(); err != nil {
			return err
		}
	}
	speculation, err := c.speculation(c.Draft)
	if err != nil {
		return err
	}
	adapters, err := c.adapters()
	if err != nil {
		return err
	}
	adapterBytes, err := c.bytes()
	if err != nil {
		return err
	}
	jobs, err := c.batches()
	if err != nil {
		return err
	}
	shards, err := c.shards()
	if err != nil {
		return err
	}
	models, err := c.store(e)
	if err != nil {
		return err
	}
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return err
	}
	defer end()
	mesh, err := app.Start(e.Ctx, app.MeshConfig{
		Adapters: adapters, AdapterDir: c.AdapterDir, AdapterDisk: c.AdapterDisk << 20, AdapterBytes: adapterBytes,
		Batches:     jobs,
		Auto:        shards,
		Placing:     app.Placing{Replicas: c.Replicas},
		Log:         e.Log,
		Kernels:     kernels,
		Model:       c.Model,
		Name:        c.Name,
		Stages:      c.Stages,
		Replicas:    c.Replicas,
		KVPositions: c.KVPositions,
		Speculation: speculation,
		HiddenType:  c.hiddenType(),
		Scheduling:  c.scheduling(),
		Train:       true,
		Store:       models,
		Runs:        app.TrainerConfig{Dir: c.Runs, Data: c.Data, AllowPaths: c.AllowPath, AllowWrite: c.AllowWrite},
		GRPC:        c.GRPC,
		HTTP:        c.HTTP,
		Insecure:    c.InsecureListen,
		Files:       rpc.Files{Cert: c.TLSCert, Key: c.TLSKey, CA: c.TLSCA, Revoked: c.TLSRevoked},
		Access:      c.access(),
		Admin:       c.admin(e),

		MetricsPrefix: c.MetricsPrefix,
		Tools:         c.ServerTools,
		Traces:        c.traces(),
	})
	if err != nil {
		return err
	}
	url, header := "http://"+mesh.HTTPAddr(), ""
	if c.TLSCert != "" {
		url = "https://" + mesh.HTTPAddr()
	}
	if c.AuthKeys != "" || c.AuthTokens != "" {
		header = ` -H "Authorization: Bearer $LAMINA_API_KEY"`
	}
	if c.Auto > 0 {
		fmt.Fprintf(e.Stdout, "serving %s over %s; `lamina status` shows where its layers are\n\n", c.Model,
			plural.Of(c.Auto, "shard"))
	} else {
		fmt.Fprintf(e.Stdout, "serving %s over %s\n\n", c.Model, plural.Of(c.Stages, "stage"))
	}
	for _, a := range adapters {
		fmt.Fprintf(e.Stdout, "adapter  %s from %s\n", a.Name, a.Dir)
	}
	fmt.Fprintf(e.Stdout, "console  %s\ngrpc     %s\n", url, mesh.GRPCAddr())
	const body = `{"prompt": "The prince", "max_tokens": 64, "stream": true}`
	fmt.Fprintf(e.Stdout, "try      curl -N%s %s/v1/completions -d '%s'\n\n", header, url, body)
	return mesh.Wait()
}

// store returns the store of models of this machine. The console does without one where there is no place for it.
func (c *upCmd) store(e *verb.Env) (app.StoreConfig, error) {
	limit, err := parseMemory("store-limit", c.StoreLimit)
	if err != nil {
		return app.StoreConfig{}, err
	}
	dir, err := storeDir(e.Store)
	if err != nil {
		e.Log.Info("the console pulls no models", "error", err)
		return app.StoreConfig{}, nil
	}
	return app.StoreConfig{Dir: dir, Limit: limit, Endpoint: c.Endpoint}, nil
}

// maxAuto is the largest number of shards with --auto in one process.
const maxAuto = 64

// shards returns the shards that take their layers from the placer, or nil without --auto.
func (c *upCmd) shards() ([]app.AutoShard, error) {
	if c.Auto < 0 || c.Auto > maxAuto {
		return nil, fault.Field("auto", "want 0 to %d shards, got %d", maxAuto, c.Auto)
	}
	memory, err := parseMemory("memory-limit", c.MemoryLimit)
	if err != nil {
		return nil, err
	}
	if memory > 0 && c.Auto == 0 {
		return nil, fault.Field("memory-limit", "it is for shards with --auto")
	}
	return slices.Repeat([]app.AutoShard{{Memory: memory}}, c.Auto), nil
}

// meshFlags say which mesh answers: that of a running router, or one in this process.
type meshFlags struct {
	verb.KernelFlags
	connectFlags
	Model   string `short:"m" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model, to serve in this process. Default: the bundled model." type:"model"`
	Stages  int    `          help:"Number of stages of the pipeline in this process."                                                                                                         default:"1"`
	Router  string `          help:"Address of a router to use instead of a mesh in this process."                                                                                                         env:"LAMINA_ROUTER"`
	Adapter string `          help:"Adapter (LoRA) to use: its folder, in PEFT's layout; with --router its name or digest there." placeholder:"DIR"`
	speculateFlags
	hiddenStateFlags
	Draft string `          help:"Draft model for speculative decoding: file or folder of a smaller model with the same vocabulary. It proposes 5 draft tokens unless --speculate is given." type:"model"`
}

// localAdapter is the name of the adapter of a mesh in this process.
const localAdapter = "adapter"

// adapter returns the name by which requests name the adapter; empty for none.
func (f *meshFlags) adapter() string {
	if f.Router == "" && f.Adapter != "" {
		return localAdapter
	}
	return f.Adapter
}

// dial returns a client of the router and a function that closes everything that was opened for it.
func (f *meshFlags) dial(e *verb.Env) (routerv1.RouterServiceClient, func() error, error) {
	if f.Router != "" {
		if f.Draft != "" {
			return nil, nil, fault.Field("draft",
				"%q cannot be used with --router %s: the router has a draft model of its own", f.Draft, f.Router)
		}
		dialer, err := f.dialer()
		if err != nil {
			return nil, nil, err
		}
		conn, err := dialer.Dial(f.Router)
		if err != nil {
			return nil, nil, errors.Join(err, dialer.Close())
		}
		return routerv1.NewRouterServiceClient(conn), dialer.Close, nil
	}
	if f.Model == "" {
		var err error
		if f.Model, err = bundledModel(); err != nil {
			return nil, nil, err
		}
	}
	if f.Stages < 1 {
		return nil, nil, fault.Field("stages", "%d: want one or more", f.Stages)
	}
	speculation, err := f.speculation(f.Draft)
	if err != nil {
		return nil, nil, err
	}
	var adapters []app.Adapter
	if f.Adapter != "" {
		adapters = []app.Adapter{{Name: localAdapter, Dir: f.Adapter}}
	}
	kernels, end, err := meshKernels(&f.KernelFlags)
	if err != nil {
		return nil, nil, err
	}
	mesh, err := app.Start(e.Ctx, app.MeshConfig{Log: e.Log, Kernels: kernels, Model: f.Model, Stages: f.Stages,
		Speculation: speculation, Adapters: adapters})
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
