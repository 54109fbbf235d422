package app_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// No host of a fleet has the model's files. A server outside has them: with the digests of their chunks, so that each
// host fetches its own layers, and without, so that one host pulls the model and the others fetch from it. Each byte
// comes from outside once.
func TestMesh_LayersComeFromOutside(t *testing.T) {
	path := shared(t, "models/stories260K/stories260K-f32.gguf")
	source, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	pulled, err := pull.Pull(t.Context(), source, &pull.Path{Path: path}, pull.Options{Name: "stories"})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := source.Model("stories")
	if err != nil {
		t.Fatal(err)
	}
	const kv = 512
	for name, at := range map[string]string{"by layers": "/", "as a whole": "/" + filepath.Base(path)} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			files := http.FileServer(http.Dir(stored.Path))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, ".gguf") && r.Method == http.MethodGet {
					w = &sentBytes{w, &sent}
				}
				files.ServeHTTP(w, r)
			}))
			defer server.Close()
			client := pull.NewClient(pull.ClientOptions{})
			defer client.Close()
			set := cpu.New(2)
			t.Cleanup(set.Close)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			t.Cleanup(cancel)
			fleet := autoFleet(t, path, kv, 2, 2, 2)
			for i := range fleet {
				fleet[i].Store, fleet[i].Fetch = t.TempDir(), true
				fleet[i].Sources = []app.OutsideSource{{Name: server.URL + at,
					Source: &pull.Web{Client: client, URL: server.URL + at}}}
			}
			var log logtest.Buffer
			_, router := startMesh(t, ctx, app.MeshConfig{
				Model: path, Kernels: app.Kernels{Set: set, Threads: 2}, Auto: fleet,
				Log: slog.New(slog.NewTextHandler(&log, nil)),
				Placing: app.Placing{KVLeast: kv, KVMost: kv, Settle: 300 * time.Millisecond, Keeper: plan.KeeperConfig{
					Steady: time.Second, Every: time.Second}},
			})
			defer func() {
				if t.Failed() {
					t.Log(log.String())
				}
			}()
			m := placementOf(t, ctx, router, "a pipeline", func(m *routerv1.Mesh) bool { return len(hostsOf(m)) == 3 })
			got, err := tokensOf(ctx, router, []uint32{1, 403, 407, 261, 378}, 8)
			if err != nil || len(got) != 8 {
				t.Errorf("%d tokens, %v", len(got), err)
			}
			size := pulled.Manifest.Size()
			t.Logf("stages %v; the server has sent %d bytes of %d", m.GetPipelines()[0].GetStages(), sent.Load(), size)
			if n := sent.Load(); n == 0 || n > size+size/10 {
				t.Errorf("the server has sent %d bytes, and the model has %d", n, size)
			}
		})
	}
}

// sentBytes counts the bytes of a response.
type sentBytes struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (s *sentBytes) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.n.Add(int64(n))
	return n, err
}

// Two shards with certificates find each other through Consul. One has the model, the other one fetches its layers over
// mutual TLS, and the tokenizer its vocabulary.
func TestFleet_FetchesLayersOverMutualTLS(t *testing.T) {
	dir, path := t.TempDir(), shared(t, "models/stories260K/stories260K-f32.gguf")
	ca, err := issue.NewAuthority("lamina", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, id := range issue.All() {
		if err := ca.Issue(dir, id, nil, time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	files := func(name string) rpc.Files {
		return rpc.Files{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key"),
			CA: filepath.Join(dir, "ca.pem")}
	}
	dialAs := func(f rpc.Files, secret string) rpc.DialOptions {
		certs, err := f.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		return rpc.DialOptions{TLS: certs.Client(), Secret: secret}
	}
	registry, err := agent.New()
	if err != nil {
		t.Fatal(err)
	}
	registry.CheckWith(dialAs(files("monitor"), ""))
	if err := registry.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	config := func(c app.ServiceConfig, name string) app.ServiceConfig {
		c.Files = files(name)
		return c
	}
	set := cpu.New(1)
	t.Cleanup(set.Close)
	start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		return app.Tokenizer(ctx, config(c, "tokenizer"), app.TokenizerConfig{Store: t.TempDir()})
	})
	start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		return app.Sampler(ctx, config(c, "sampler"))
	})
	const kv = 2048 // the default of a plan
	fleet := autoFleet(t, path, kv, 3, 3)
	fleet[0].ModelDir = t.TempDir()
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(fleet[0].ModelDir, filepath.Base(path)), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	fleet[1].Store, fleet[1].Fetch = t.TempDir(), true
	for _, auto := range fleet {
		start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
			return app.Shard(ctx, config(c, "shard"), app.ShardConfig{Kernels: app.Kernels{Set: set, Threads: 1},
				Auto: &auto})
		})
	}
	keys, secrets := keyFile(t, auth.Key{Name: "user", Tenant: "a", Roles: []auth.Role{auth.User}})
	router := start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		c = config(c, "router")
		c.Access.Keys = keys
		return app.Router(ctx, c, app.RouterConfig{Drain: time.Second, AdapterDir: t.TempDir()})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	d := rpc.NewDialer(dialAs(rpc.Files{CA: filepath.Join(dir, "ca.pem")}, secrets["user"]))
	t.Cleanup(func() { d.Close() })
	conn, err := d.Dial(router.addr)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokensOf(ctx, routerv1.NewRouterServiceClient(conn), []uint32{1, 403, 407, 261, 378}, 8)
	if err != nil || len(got) != 8 {
		t.Fatalf("%v, %v", got, err)
	}
	s, err := store.Open(fleet[1].Store, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if used, err := s.Usage(); err != nil || used == 0 {
		t.Errorf("the store of the shard without files has %d bytes, %v", used, err)
	}
}
