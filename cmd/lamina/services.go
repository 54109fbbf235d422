package main

import (
	"fmt"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// serviceFlags are the flags of every service.
type serviceFlags struct {
	Advertise      string `help:"Address at which other services reach this one. Default: the address of --listen."`
	Metrics        string `help:"HTTP address that serves /metrics, /healthz and /readyz. Default: none."`
	Consul         string `help:"Address of the Consul agent."                                                      default:"127.0.0.1:8500" env:"LAMINA_CONSUL_ADDR"`
	ConsulToken    string `help:"Token for Consul."                                                                                          env:"LAMINA_CONSUL_TOKEN"`
	TLSCert        string `help:"Certificate of this service (PEM file)."                                                                                              name:"tls-cert"`
	TLSKey         string `help:"Private key of the certificate (PEM file)."                                                                                           name:"tls-key"`
	TLSCA          string `help:"Certificate authority of all services (PEM file)."                                                                                    name:"tls-ca"`
	TLSRevoked     string `help:"Revoked certificates: lists that the authority has signed (PEM file), as lamina certs revoke makes one. Default: none."               name:"tls-revoked"`
	InsecureListen bool   `help:"Allow listening on addresses that other machines can reach, without TLS and without authentication."`
	accessFlags
	adminFlags
	traceFlags
}

// traceFlags say where traces go.
type traceFlags struct {
	OTLPEndpoint string `name:"otlp-endpoint" env:"OTEL_EXPORTER_OTLP_ENDPOINT" help:"URL of an OpenTelemetry collector that takes OTLP over gRPC, such as http://127.0.0.1:4317. Default: none, and requests are not traced."`
}

func (f traceFlags) traces() trace.Config {
	return trace.Config{Endpoint: f.OTLPEndpoint, Version: version}
}

// adminFlags are those of the listener for administrators.
type adminFlags struct {
	AdminAddr string `help:"Address for administrators: profiles (pprof), effective configuration, build, log level. :PORT listens on loopback. With keys, tokens or certificates it needs the role operator. Default: none." placeholder:"ADDRESS"`
}

func (f adminFlags) admin(e *verb.Env) app.AdminConfig {
	return app.AdminConfig{
		Addr: f.AdminAddr, Version: version, Level: e.Level, Config: e.Config,
		Bound: func(addr string) { fmt.Fprintf(e.Stdout, "admin %s\n", addr) },
	}
}

// accessFlags say who may use the listeners of a process.
type accessFlags struct {
	AuthKeys    string   `help:"File of API keys, as lamina keys makes it. Whoever shows neither a key nor a certificate is refused. Default: none."               env:"LAMINA_AUTH_KEYS"`
	AuthTokens  string   `help:"File of the identity providers (OpenID Connect) whose tokens are accepted beside API keys, in YAML. Default: none."             env:"LAMINA_AUTH_TOKENS" type:"path"`
	AuditLog    string   `help:"File to which each action of operators is appended as a line of JSON. Default: none."                                            env:"LAMINA_AUDIT_LOG"`
	OpenProbes  bool     `help:"Answer /healthz, /readyz and the gRPC health service without credentials."                                                       env:"LAMINA_OPEN_PROBES"`
	AllowHost   []string `help:"Name by which HTTP clients may address this server, besides localhost, names without a dot and addresses. Can be repeated."    sep:"none"`
	AllowOrigin []string `help:"Origin of a website whose scripts may use the HTTP APIs, such as https://chat.example.org. Can be repeated. Default: none." sep:"none"`
}

func (f accessFlags) access() app.AccessConfig {
	return app.AccessConfig{Keys: f.AuthKeys, Tokens: f.AuthTokens, Audit: f.AuditLog, OpenProbes: f.OpenProbes,
		Hosts: f.AllowHost, Origins: f.AllowOrigin}
}

func (f *serviceFlags) config(e *verb.Env, listen string) app.ServiceConfig {
	return app.ServiceConfig{
		Log: e.Log, Listen: listen, Advertise: f.Advertise, Metrics: f.Metrics, Consul: f.Consul, Token: f.ConsulToken,
		Files:    rpc.Files{Cert: f.TLSCert, Key: f.TLSKey, CA: f.TLSCA, Revoked: f.TLSRevoked},
		Insecure: f.InsecureListen,
		Access:   f.access(), Admin: f.admin(e), Traces: f.traces(),
		Ready: func(addr string) { fmt.Fprintf(e.Stdout, "grpc %s\n", addr) },
	}
}

type tokenizerCmd struct {
	serviceFlags
	Listen    string `help:"gRPC address."                                                                     default:"127.0.0.1:7071"`
	Model     string `help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model."                          short:"m" type:"model"`
	Name      string `help:"Name of the model. Default: the name of its file or folder."`
	Auto      bool   `help:"Know the models of the store and those that shards have, too: their vocabularies are loaded on demand."`
	Library   string `help:"Folder of more models, whose vocabularies are loaded on demand."`
	MaxModels int    `help:"Maximum number of vocabularies to keep loaded."                                    default:"64"`
	Texts     string `help:"Folder of texts on which vocabularies may be trained. Default: none."`
}

// Run serves until interrupted.
func (c *tokenizerCmd) Run(e *verb.Env) error {
	t := app.TokenizerConfig{Model: c.Model, Name: c.Name, Library: c.Library, Texts: c.Texts, Models: c.MaxModels}
	switch {
	case c.Auto:
		var err error
		if t.Store, err = storeDir(e.Store); err != nil {
			return err
		}
	case c.Model == "":
		return fault.Field("model", "name a model, or give --auto")
	}
	return app.Tokenizer(e.Ctx, c.config(e, c.Listen), t)
}

type samplerCmd struct {
	serviceFlags
	Listen string `help:"gRPC address." default:"127.0.0.1:7072"`
}

// Run serves until interrupted.
func (c *samplerCmd) Run(e *verb.Env) error { return app.Sampler(e.Ctx, c.config(e, c.Listen)) }

type shardCmd struct {
	serviceFlags
	verb.KernelFlags
	autoFlags
	Auto     bool   `help:"Wait for layers: the router that holds the placer's lock assigns them, of models of --model-dir."`
	ModelDir string `help:"Folder of GGUF files and model folders, for --auto; models that come into it later are found as well. Default: the store (lamina pull)."`
	Fetch    bool   `help:"With --auto: take models that other shards have, too. Layers that are assigned are fetched from them into the store."`
	sourceFlags
	StoreLimit  string        `help:"Size of the store, such as 200GB. Default: no limit." env:"LAMINA_STORE_LIMIT"`
	Listen      string        `help:"gRPC address."                                                                                                                       default:"127.0.0.1:7073"`
	Model       string        `help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model. Default: none, so that the shard holds no layers."                                 short:"m" type:"model"`
	Name        string        `help:"Name of the model. Default: the name of its file or folder."`
	Layers      string        `help:"Layers to hold: LO:HI (HI excluded), I/N for part I (from 0) of N, or none. Default: all."`
	KVPositions int           `help:"Number of positions in the KV cache; 0 means 16384."                                                                                                default:"16384"                           name:"kv-positions"`
	Train       bool          `help:"Take part in training runs. This needs NATS."`
	Runs        string        `help:"The trainer's folder of training runs, if this machine has it: stages write their parts of checkpoints there. Default: none, so that they are sent to the trainer."`
	Host        string        `help:"Name of this machine: replicas on shards with the same name exchange gradients directly, without NATS. Default: a name that all processes of a machine find."`
	Drain       time.Duration `help:"When the shard is stopped, how long the current steps of training runs may still take."   default:"20s"`
	NATS        string        `help:"Address of a NATS server with JetStream, for gradient events."                                                                       default:"nats://127.0.0.1:4222"           name:"nats"         env:"LAMINA_NATS"`
	natsFlags
	adapterMemoryFlags
}

// adapterMemoryFlags bound the memory of adapters.
type adapterMemoryFlags struct {
	AdapterMemory int64 `help:"Memory for adapters on each shard, in MiB." default:"1024"`
}

// bytes returns the bound in bytes.
func (f adapterMemoryFlags) bytes() (int64, error) {
	if f.AdapterMemory < 1 || f.AdapterMemory > 1<<20 {
		return 0, fault.Field("adapter-memory", "want 1 to %d MiB, got %d", 1<<20, f.AdapterMemory)
	}
	return f.AdapterMemory << 20, nil
}

// adapterFlags name the adapters of a router.
type adapterFlags struct {
	Adapter     []string `help:"Adapter (LoRA) to offer beside its model: NAME=DIR or MODEL:NAME=DIR, a folder in PEFT's layout. Can be repeated. Requests name it as MODEL:NAME." placeholder:"NAME=DIR" sep:"none"`
	AnyBase     bool     `help:"Accept adapters of --adapter that were trained on another base than their model, such as the same weights in another element type."`
	AdapterDir  string   `help:"Folder in which the router keeps the adapters that it is sent (lamina adapters load)." default:"adapters"`
	AdapterDisk int64    `help:"Room for the files in --adapter-dir, in MiB. The least recently used adapters make room for new ones, but not those in use." default:"8192"`
}

// batchFlags say where a router keeps batches of requests, and how much they may take.
type batchFlags struct {
	BatchDir      string `help:"Folder in which the router keeps batches of requests (/v1/batches) and their files; empty for none. Each router needs one of its own." default:"batches"`
	BatchDisk     int64  `help:"Room for the files in --batch-dir, in MiB. A tenant has at most half of it." default:"8192"`
	BatchRequests int    `help:"How many requests of batches run at a time." default:"8"`
}

// batches returns the settings that the flags give.
func (f batchFlags) batches() (app.Batches, error) {
	switch {
	case f.BatchDisk < 1 || f.BatchDisk > 1<<30:
		return app.Batches{}, fault.Field("batch-disk", "want 1 to %d MiB, got %d", 1<<30, f.BatchDisk)
	case f.BatchRequests < 1 || f.BatchRequests > 1024:
		return app.Batches{}, fault.Field("batch-requests", "want 1 to 1024, got %d", f.BatchRequests)
	}
	return app.Batches{Dir: f.BatchDir, Disk: f.BatchDisk << 20, Requests: f.BatchRequests}, nil
}

// adapters returns the adapters that the flags name.
func (f adapterFlags) adapters() ([]app.Adapter, error) {
	if f.AdapterDisk < 1 || f.AdapterDisk > 1<<30 {
		return nil, fault.Field("adapter-disk", "want 1 to %d MiB, got %d", 1<<30, f.AdapterDisk)
	}
	var out []app.Adapter
	for _, text := range f.Adapter {
		a, err := app.ParseAdapter(text)
		if err != nil {
			return nil, err
		}
		a.AnyBase = f.AnyBase
		out = append(out, a)
	}
	return out, nil
}

// Run serves until interrupted.
func (c *shardCmd) Run(e *verb.Env) error {
	if c.Drain <= 0 || c.Drain > maxDrain {
		return fault.Field("drain", "%v: want more than 0 and at most %v", c.Drain, maxDrain)
	}
	if err := inBounds(bound{"kv-positions", c.KVPositions, 0, maxPositions}); err != nil {
		return err
	}
	adapterBytes, err := c.bytes()
	if err != nil {
		return err
	}
	if c.DeviceMemory, err = c.deviceMemory(); err != nil {
		return err
	}
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return err
	}
	defer end()
	auto, done, err := c.automatic(e)
	if err != nil {
		return err
	}
	defer done()
	return app.Shard(e.Ctx, c.serviceFlags.config(e, c.Listen), app.ShardConfig{
		Auto:    auto,
		Kernels: kernels, Model: c.Model, Name: c.Name, Layers: c.Layers, KVPositions: c.KVPositions, Train: c.Train,
		NATS: c.natsFlags.config(c.NATS), RunsDir: c.Runs, Host: c.Host, Drain: c.Drain,
		AdapterBytes: adapterBytes,
	})
}

// deviceMemory returns the bytes that the shard may allocate on its GPU; 0 for what is free, and on processors.
func (c *shardCmd) deviceMemory() (int64, error) {
	if !c.OnDevice() {
		return 0, nil
	}
	return parseMemory("memory-limit", c.MemoryLimit)
}

// automatic returns the settings of a shard with --auto, or nil without. done ends the use of its sources.
func (c *shardCmd) automatic(e *verb.Env) (auto *app.AutoShard, done func(), err error) {
	done = func() {}
	switch {
	case !c.Auto && (c.ModelDir != "" || c.MemoryLimit != "" && !c.OnDevice() || c.Zone != "" || c.Fetch || c.given()):
		return nil, done, fault.Field("auto", "--model-dir, --memory-limit, --zone, --fetch and --source are for a shard "+
			"with --auto")
	case !c.Auto && c.Model == "" && !c.Train:
		return nil, done, fault.Field("model", "a shard without a model does nothing: give --model, --auto or --train")
	case !c.Auto:
		return nil, done, nil
	case c.Model != "" || c.Layers != "" || c.Name != "":
		return nil, done, fault.Field("auto", "a shard with --auto takes models of --model-dir and layers from the placer: "+
			"leave out --model, --name and --layers")
	case len(c.Source) > 0 && c.ModelDir != "":
		return nil, done, fault.Field("source", "models of sources come into the store: leave out --model-dir")
	}
	settings, err := c.auto(c.ModelDir)
	if err != nil {
		return nil, done, err
	}
	settings.Fetch = c.Fetch || len(c.Source) > 0
	if settings.StoreLimit, err = parseMemory("store-limit", c.StoreLimit); err != nil {
		return nil, done, err
	}
	if settings.Fetch || c.ModelDir == "" {
		if settings.Store, err = storeDir(e.Store); err != nil {
			return nil, done, err
		}
	}
	settings.Sources, done, err = c.sources()
	return &settings, done, err
}

// maxDrain is the longest time that a router or shard may take to stop.
const maxDrain = time.Hour

type routerCmd struct {
	serviceFlags
	Listen string `help:"gRPC address."                                                                                                                                       default:"127.0.0.1:7070"`
	HTTP   string `help:"Address of the HTTP API and the console; empty for none."                                                                                            default:"127.0.0.1:8080" name:"http"`
	speculateFlags
	hiddenStateFlags
	placingFlags
	schedulingFlags
	metricsFlags
	toolsFlags
	adapterFlags
	batchFlags
	NATS string `help:"Address of a NATS server with JetStream, for the journal of resumable requests. Default: none, so that a request is resumed only at its own router."                          name:"nats"       env:"LAMINA_NATS"`
	natsFlags
	Drain time.Duration `help:"How long requests may still run after a stop."                                                                                                       default:"20s"`
	Draft string        `help:"Draft model for speculative decoding: name or digest of a smaller model on the mesh. It must have the same vocabulary and a different name."`
}

// metricsFlags say how metrics are called.
type metricsFlags struct {
	MetricsPrefix string `help:"Prefix of the metrics that have vLLM's names, for its dashboards and for endpoint pickers; none leaves them out." default:"vllm:"`
}

// toolsFlags say which tools the router runs.
type toolsFlags struct {
	ServerTools string `help:"File (YAML) of the tools that the router runs for requests that name them: web search, pages and MCP servers. Default: none." placeholder:"FILE"`
}

// schedulingFlags are the settings of a router's schedulers.
type schedulingFlags struct {
	Queue           int           `help:"Number of requests that may wait for a pipeline; further ones are refused."                                           default:"256"`
	PrefixCacheIdle time.Duration `help:"How long the KV pages of a prompt stay in the prefix cache after their last use; below 0 turns the prefix cache off." default:"5m"`
	StepFloor       time.Duration `help:"Shortest step deadline while another pipeline could take over; 0 means 250ms between processes and 5s within one."    default:"0s"`
	Hedge           time.Duration `help:"Compute a prompt on a second pipeline too if its first token is later than 95 of 100 and this; 0 means 250ms between processes and never within one, below 0 never." default:"0s"`

	ReplayShare  float64       `help:"Positions that may be computed again after losses for each position of work; below 0 means none."                                     default:"0.5"`
	ReplayBurst  int           `help:"Positions that may be computed again at once, before any work; 0 means 65536."                                                       default:"0"`
	ReplayRefill time.Duration `help:"Time in which the budget for positions to compute again fills up without any work; 0 means one minute."                              default:"0s"`
	MixClasses   bool          `help:"Let a pipeline have stages of several kernel classes, such as GPUs and processors, if no class has all layers. Its results are those of this division alone, and its fingerprint says so."`
	ReadLimit    time.Duration `help:"How long a client may read nothing of its answer before it is disconnected; 0 means 30s."                                           default:"0s"`
}

// checkScheduling returns an error that names a flag whose value is out of bounds.
func (f schedulingFlags) checkScheduling() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"step-floor", f.StepFloor}, {"replay-refill", f.ReplayRefill}, {"read-limit", f.ReadLimit}} {
		if d.value < 0 {
			return fault.Field(d.name, "want 0 or more, got %v", d.value)
		}
	}
	return inBounds(bound{"queue", f.Queue, 1, 1 << 20}, bound{"replay-burst", f.ReplayBurst, 0, 1 << 30})
}

// bound is what a flag's value has to be within.
type bound struct {
	name               string
	value, least, most int
}

// inBounds returns an error that names the first flag whose value is out of bounds.
func inBounds(bounds ...bound) error {
	for _, b := range bounds {
		if b.value < b.least || b.value > b.most {
			return fault.Field(b.name, "want %d to %d, got %d", b.least, b.most, b.value)
		}
	}
	return nil
}

// maxPositions is the largest KV cache of a shard, in positions.
const maxPositions = 1 << 24

func (f schedulingFlags) scheduling() app.Scheduling {
	share := f.ReplayShare
	if share == 0 { // 0 is the default of app.Scheduling
		share = -1
	}
	return app.Scheduling{Queue: f.Queue, CacheIdle: f.PrefixCacheIdle, StepFloor: f.StepFloor, ReplayShare: share,
		ReplayBurst: f.ReplayBurst, ReplayRefill: f.ReplayRefill, Hedge: f.Hedge,
		ReadLimit: f.ReadLimit, MixClasses: f.MixClasses}
}

// hiddenStateFlags say how hidden states are sent between stages.
type hiddenStateFlags struct {
	HiddenType string `help:"Element type of hidden states that are sent between stages: f32 is exact, bf16 halves the bytes and rounds." enum:"f32,bf16" default:"f32"`
}

func (f hiddenStateFlags) hiddenType() tensorv1.ElementType {
	if f.HiddenType == "bf16" {
		return tensorv1.ElementType_ELEMENT_TYPE_BF16
	}
	return tensorv1.ElementType_ELEMENT_TYPE_F32
}

// speculateFlags are the settings of speculative decoding.
type speculateFlags struct {
	Speculate  int     `help:"Speculative decoding: maximum number of draft tokens for each step. An n-gram lookup in the token log proposes them, or else the model of --draft. The generated text does not change." default:"0"`
	DraftLeast float64 `help:"The draft model stops proposing after a token with a lower probability than this."                                                                                                      default:"0.4"`
}

func (f speculateFlags) speculation(draft string) (app.Speculation, error) {
	if f.Speculate < 0 || f.Speculate > 16 {
		return app.Speculation{}, fault.Field("speculate", "want 0 to 16, got %d", f.Speculate)
	}
	if !(f.DraftLeast >= 0 && f.DraftLeast < 1) {
		return app.Speculation{}, fault.Field("draft-least", "want at least 0 and less than 1, got %v", f.DraftLeast)
	}
	return app.Speculation{IDs: f.Speculate, Draft: draft, MinProbability: f.DraftLeast}, nil
}

// Run serves until interrupted.
func (c *routerCmd) Run(e *verb.Env) error {
	speculation, err := c.speculation(c.Draft)
	if err != nil {
		return err
	}
	if err := c.checkScheduling(); err != nil {
		return err
	}
	if c.Drain <= 0 || c.Drain > maxDrain {
		return fault.Field("drain", "%v: want more than 0 and at most %v", c.Drain, maxDrain)
	}
	adapters, err := c.adapters()
	if err != nil {
		return err
	}
	placing, err := c.placing()
	if err != nil {
		return err
	}
	jobs, err := c.batches()
	if err != nil {
		return err
	}
	return app.Router(e.Ctx, c.serviceFlags.config(e, c.Listen), app.RouterConfig{
		Placing: placing,
		HTTP:    c.HTTP, Speculation: speculation, HiddenType: c.hiddenType(), Drain: c.Drain,
		Scheduling: c.scheduling(), Adapters: adapters, AdapterDir: c.AdapterDir, AdapterDisk: c.AdapterDisk << 20,
		NATS:          c.natsFlags.config(c.NATS),
		MetricsPrefix: c.MetricsPrefix,
		Tools:         c.ServerTools,
		Batches:       jobs,
		Bound:         func(addr string) { fmt.Fprintf(e.Stdout, "http %s\n", addr) },
	})
}

type trainerCmd struct {
	serviceFlags
	Listen  string `help:"gRPC address."            default:"127.0.0.1:7074"`
	Dir     string `help:"Folder of training runs." default:"runs"`
	Standby bool   `help:"Take up runs of the folder when their trainer has gone. Trainers that share a folder share its runs."`
	dataFlags
}

// dataFlags say which files manifests may name.
type dataFlags struct {
	Data       string   `help:"Folder of the files that the manifests of training runs name."                                                            default:"data"`
	AllowPath  []string `help:"Further folder in which manifests may name files by absolute paths. Can be repeated. / allows every folder." sep:"none"`
	AllowWrite []string `help:"Further folder in which runs may write, by absolute paths. Can be repeated. / allows every folder." sep:"none"`
}

// Run serves until interrupted.
func (c *trainerCmd) Run(e *verb.Env) error {
	return app.Trainer(e.Ctx, c.config(e, c.Listen),
		app.TrainerConfig{Dir: c.Dir, Data: c.Data, AllowPaths: c.AllowPath, AllowWrite: c.AllowWrite,
			Standby: c.Standby})
}
