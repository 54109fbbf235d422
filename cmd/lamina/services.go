package main

import (
	"fmt"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// serviceFlags are what every service has.
type serviceFlags struct {
	Advertise      string `help:"Address that others reach this service at; that of --listen when absent."`
	Metrics        string `help:"Address of /metrics, /healthz and /readyz over HTTP; none when absent."`
	Consul         string `help:"Consul's address." default:"127.0.0.1:8500" env:"LAMINA_CONSUL_ADDR"`
	ConsulToken    string `help:"Consul's token." env:"LAMINA_CONSUL_TOKEN"`
	TLSCert        string `name:"tls-cert" help:"Certificate (PEM) of this service."`
	TLSKey         string `name:"tls-key" help:"Key (PEM) of the certificate."`
	TLSCA          string `name:"tls-ca" help:"Authority (PEM) of all services' certificates."`
	InsecureListen bool   `help:"Let addresses be reachable from other machines without TLS."`
}

func (f *serviceFlags) config(e *verb.Env, listen string) app.ServiceConfig {
	return app.ServiceConfig{
		Log: e.Log, Listen: listen, Advertise: f.Advertise, Metrics: f.Metrics, Consul: f.Consul, Token: f.ConsulToken,
		Files: rpc.Files{Cert: f.TLSCert, Key: f.TLSKey, CA: f.TLSCA}, Insecure: f.InsecureListen,
		Ready: func(addr string) { fmt.Fprintf(e.Stdout, "grpc %s\n", addr) },
	}
}

type tokenizerCmd struct {
	serviceFlags
	Listen    string `help:"gRPC address." default:"127.0.0.1:7071"`
	Model     string `short:"m" required:"" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model."`
	Name      string `help:"The model's name; that of its file or folder when absent."`
	Library   string `help:"Folder of further models, whose vocabularies are loaded when they are asked for."`
	MaxModels int    `help:"Vocabularies to hold at once." default:"64"`
	Texts     string `help:"Folder of texts that vocabularies may be trained on; none when absent."`
}

// Run serves until interrupted.
func (c *tokenizerCmd) Run(e *verb.Env) error {
	return app.Tokenizer(e.Ctx, c.config(e, c.Listen), app.TokenizerConfig{Model: c.Model, Name: c.Name, Library: c.Library, Texts: c.Texts, Models: c.MaxModels})
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
	Listen      string `help:"gRPC address." default:"127.0.0.1:7073"`
	Model       string `short:"m" help:"GGUF file (any part of a split one), or folder with a GGUF or Hugging Face model; none holds no layers."`
	Name        string `help:"The model's name; that of its file or folder when absent."`
	Layers      string `help:"Layers to hold: LO:HI (HI not included), or I/N for part I (from 0) of N, or none; all when absent."`
	KVPositions int    `name:"kv-positions" help:"Positions in the KV cache." default:"16384"`
	Train       bool   `help:"Accept training; needs NATS."`
	NATS        string `name:"nats" help:"NATS with JetStream, for gradient events." default:"nats://127.0.0.1:4222" env:"LAMINA_NATS"`
	NATSToken   string `name:"nats-token" help:"NATS's token." env:"LAMINA_NATS_TOKEN"`
}

// Run serves until interrupted.
func (c *shardCmd) Run(e *verb.Env) error {
	kernels, end, err := meshKernels(&c.KernelFlags)
	if err != nil {
		return err
	}
	defer end()
	return app.Shard(e.Ctx, c.config(e, c.Listen), app.ShardConfig{
		Kernels: kernels, Model: c.Model, Name: c.Name, Layers: c.Layers, KVPositions: c.KVPositions, Train: c.Train,
		NATS: nats.Config{URL: c.NATS, Token: c.NATSToken},
	})
}

type routerCmd struct {
	serviceFlags
	Listen string `help:"gRPC address." default:"127.0.0.1:7070"`
	HTTP   string `name:"http" help:"Address of the HTTP face and the console; empty for none." default:"127.0.0.1:8080"`
	speculateFlags
	hiddenFlags
	Draft string `help:"Name or digest of a smaller model on the mesh that proposes draft tokens; it needs the same vocabulary, and a name of its own."`
}

// hiddenFlags say how hidden states travel between stages.
type hiddenFlags struct {
	HiddenType string `help:"How hidden states travel between stages: f32 is exact, bf16 takes half the bytes and rounds them." enum:"f32,bf16" default:"f32"`
}

func (f hiddenFlags) hiddenType() tensorv1.ElementType {
	if f.HiddenType == "bf16" {
		return tensorv1.ElementType_ELEMENT_TYPE_BF16
	}
	return tensorv1.ElementType_ELEMENT_TYPE_F32
}

// speculateFlags are the settings of speculative decoding.
type speculateFlags struct {
	Speculate  int     `help:"Most draft tokens after each token, proposed by n-grams of the text so far, else by --draft; their rows are computed with the token's. The text is the same." default:"0"`
	DraftLeast float64 `help:"A draft token of --draft with a lower probability is the last of its round." default:"0.4"`
}

func (f speculateFlags) speculation(draft string) (app.Speculation, error) {
	if f.Speculate < 0 || f.Speculate > 16 {
		return app.Speculation{}, fault.Field("speculate", "%d is not within 0..16", f.Speculate)
	}
	if !(f.DraftLeast >= 0 && f.DraftLeast < 1) {
		return app.Speculation{}, fault.Field("draft-least", "%v is not within 0..1", f.DraftLeast)
	}
	return app.Speculation{IDs: f.Speculate, Draft: draft, Least: f.DraftLeast}, nil
}

// Run serves until interrupted.
func (c *routerCmd) Run(e *verb.Env) error {
	speculation, err := c.speculation(c.Draft)
	if err != nil {
		return err
	}
	return app.Router(e.Ctx, c.config(e, c.Listen), app.RouterConfig{
		HTTP: c.HTTP, Speculation: speculation, HiddenType: c.hiddenType(), Bound: func(addr string) { fmt.Fprintf(e.Stdout, "http %s\n", addr) },
	})
}

type trainerCmd struct {
	serviceFlags
	Listen string `help:"gRPC address." default:"127.0.0.1:7074"`
	Dir    string `help:"Folder of runs." default:"runs"`
}

// Run serves until interrupted.
func (c *trainerCmd) Run(e *verb.Env) error { return app.Trainer(e.Ctx, c.config(e, c.Listen), c.Dir) }
