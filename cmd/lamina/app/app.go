// Package app builds Lamina's parts from plain settings: the whole mesh in one
// process (Mesh), or one service that meets the others through Consul and NATS
// (Serve). It is the one boring place where vendors are wired; cmd/lamina gives it
// flags and the integration tests give it literals.
package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/openai"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// drain is how long HTTP answers may still be written after a stop.
const drain = 5 * time.Second

// Kernels is a kernel set with its end.
type Kernels struct {
	Set     kernel.Set[float32]
	Threads int
}

// instance registers a service while a part runs.
func instance(ctx context.Context, registry discovery.Registry, i discovery.Instance) (func(), error) {
	reg, err := registry.Register(ctx, i)
	if err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = reg.Deregister(ctx) // the health check removes what could not be
	}, nil
}

// newID makes an instance's id.
func newID(service string) string {
	b := make([]byte, 4)
	rand.Read(b) // never fails
	return service + "-" + hex.EncodeToString(b)
}

// registerable is a service that a gRPC server can be given.
type registerable interface{ Register(grpc.ServiceRegistrar) }

// grpcPart serves a service and announces it once it serves.
func grpcPart(name, addr string, o rpc.ServerOptions, lo rpc.ListenOptions, service registerable, registry discovery.Registry, i discovery.Instance, bound func(string)) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		l, err := rpc.Listen(addr, lo)
		if err != nil {
			return err
		}
		if i.Addr == "" {
			i.Addr = l.Addr().String()
		}
		if bound != nil {
			bound(l.Addr().String())
		}
		server := rpc.NewServer(o)
		service.Register(server)
		var gone func()
		var registerErr error
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		err = rpc.Serve(ctx, server, l, func() {
			if gone, registerErr = instance(ctx, registry, i); registerErr != nil {
				cancel()
				return
			}
			context.AfterFunc(ctx, gone) // before calls are drained
			ready()
		})
		if registerErr != nil {
			return registerErr
		}
		return err
	}}
}

// httpPart serves the router's HTTP face, console, metrics and probes.
func httpPart(addr string, lo rpc.ListenOptions, log *slog.Logger, s *router.Service, metrics *prometheus.Registry, bound func(string)) lifecycle.Part {
	return lifecycle.Part{Name: "http", Run: func(ctx context.Context, ready func()) error {
		l, err := rpc.Listen(addr, lo)
		if err != nil {
			return err
		}
		if bound != nil {
			bound(l.Addr().String())
		}
		b := s.Backend()
		mux := http.NewServeMux()
		mux.Handle("/v1/", openai.New(b, openai.Options{Log: log}))
		mux.Handle("/", console.New(b, console.Options{Log: log}))
		probes := obs.Handler(metrics, b.Ready)
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
			mux.Handle("GET "+path, probes)
		}
		ready()
		return obs.ServeHTTP(ctx, l, mux, drain)
	}}
}

// runPart runs a service's own loop.
func runPart(name string, run func(context.Context) error) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		ready()
		return run(ctx)
	}}
}

// openModel opens a model and works out its name and digest.
func openModel(path, name string) (*model.Files, string, string, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, "", "", fault.Wrap(fault.NotFound, err, "open model")
	}
	files, err := model.Open(path)
	if err != nil {
		return nil, "", "", err
	}
	digest, err := files.Digest()
	if err != nil {
		_ = files.Close()
		return nil, "", "", err
	}
	if name == "" {
		name = files.Name()
	}
	return files, name, digest, nil
}

// loadTokenizer makes the tokenizer service of models.
func loadTokenizer(c tokenizer.Config, models ...tokenizer.Model) (*tokenizer.Service, error) {
	c.Models = models
	return tokenizer.New(c)
}

// loadModel reads what a tokenizer knows of a model. A model without tokenizer files
// gets a vocabulary of ids, which refuses text and says so.
func loadModel(files *model.Files, name, digest string) (tokenizer.Model, error) {
	m, err := tokenizer.Load(files.Path, name, digest)
	if fault.CodeOf(err) == fault.NotFound {
		m = tokenizer.Model{Name: name, Digest: digest}
		m.Vocab, err = vocab.NewIDs(files.Spec.Vocab, files.Spec.BOS, files.Spec.EOS)
	}
	return m, err
}
