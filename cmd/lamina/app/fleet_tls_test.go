package app_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// TestFleet_ServesAndTrainsOverMutualTLS runs each service with a certificate of its own role. A generation and a
// training run need every call between services, so what the role matrix forgets would fail here.
func TestFleet_ServesAndTrainsOverMutualTLS(t *testing.T) {
	dir, model := t.TempDir(), shared(t, "models/stories260K/stories260K-f32.gguf")
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
	as := func(name, secret string) rpc.DialOptions {
		f := files(name)
		if name == "" {
			f = rpc.Files{CA: f.CA}
		}
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
	registry.CheckWith(as("monitor", ""))
	if err := registry.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	bus, err := nats.NewLoopback("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	config := func(c app.ServiceConfig, name string) app.ServiceConfig {
		c.Files = files(name)
		return c
	}
	kernels := app.Kernels{Set: ref.New[float32](), Threads: 1}
	start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		return app.Tokenizer(ctx, config(c, "tokenizer"), app.TokenizerConfig{Model: model})
	})
	start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		return app.Sampler(ctx, config(c, "sampler"))
	})
	var shards []*service
	for _, layers := range []string{"0/2", "1/2"} {
		shards = append(shards, start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
			return app.Shard(ctx, config(c, "shard"), app.ShardConfig{Kernels: kernels, Model: model, Layers: layers,
				Train: true, NATS: nats.Config{URL: bus.URL()}})
		}))
	}
	keys, secrets := keyFile(t, auth.Key{Name: "user", Tenant: "a", Roles: []auth.Role{auth.User}},
		auth.Key{Name: "operator", Tenant: "a", Roles: []auth.Role{auth.Operator}})
	router := start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		c = config(c, "router")
		c.Access.Keys = keys
		return app.Router(ctx, c, app.RouterConfig{Drain: time.Second, AdapterDir: t.TempDir()})
	})
	trainer := start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
		return app.Trainer(ctx, config(c, "trainer"), app.TrainerConfig{Dir: filepath.Join(dir, "runs"), Data: dir,
			AllowPaths: []string{"/"}})
	})
	dialer := func(name string) *rpc.Dialer {
		d := rpc.NewDialer(as(name, ""))
		t.Cleanup(func() { d.Close() })
		return d
	}
	connect := func(addr string, o rpc.DialOptions) *grpc.ClientConn {
		d := rpc.NewDialer(o)
		t.Cleanup(func() { d.Close() })
		conn, err := d.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	// A generation: router, tokenizer, both shards, sampler.
	zero := float32(0)
	users := routerv1.NewRouterServiceClient(connect(router.addr, as("", secrets["user"])))
	wait := uint32(60) // seconds
	stream, err := users.Generate(ctx, &routerv1.GenerateRequest{MaxTokens: 4, WaitForCapacity: &wait,
		Prompt:   &routerv1.GenerateRequest_Text{Text: "Once"},
		Sampling: &routerv1.Sampling{Temperature: &zero}})
	if err != nil {
		t.Fatal(err)
	}
	tokens := 0
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.GetToken() != nil {
			tokens++
		}
	}
	if tokens != 4 {
		t.Errorf("%d tokens", tokens)
	}

	// Training runs: trainer, both shards, their exchange; and with rewards the router, which samples.
	people := trainerv1.NewTrainerServiceClient(connect(trainer.addr, as("client-trainer", "")))
	for _, raw := range [][]byte{manifest(t, "tls", map[string]any{"steps": 2}),
		policyManifest(t, "qwen2", map[string]any{"group": 2, "max_tokens": 4,
			"reward": []any{map[string]any{"regex": "[a-m]"}}},
			map[string]any{"name": "rewards", "model": map[string]any{"from": model}, "steps": 1, "slots": 2})} {
		started, err := people.StartRun(ctx, &trainerv1.StartRunRequest{Stages: 2, Replicas: 1, ManifestJson: raw})
		if err != nil {
			t.Fatal(err)
		}
		watch, err := people.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: started.GetRun()})
		if err != nil {
			t.Fatal(err)
		}
		var last *trainerv1.Run
		for {
			r, err := watch.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = r.GetRun()
		}
		if last.GetState() != trainerv1.RunState_RUN_STATE_DONE {
			t.Errorf("the run %s is %v: %s", last.GetName(), last.GetState(), last.GetError())
		}
	}

	// What roles may not do.
	for what, call := range map[string]func() error{
		"a sampler asks a shard": func() error {
			_, err := shardv1.NewShardServiceClient(connect(shards[0].addr, as("sampler", ""))).Describe(ctx,
				&shardv1.DescribeRequest{})
			return err
		},
		"an operator asks a shard": func() error {
			_, err := shardv1.NewShardServiceClient(connect(shards[0].addr, as("client-operator", ""))).Describe(ctx,
				&shardv1.DescribeRequest{})
			return err
		},
		"a shard asks the router": func() error {
			_, err := routerv1.NewRouterServiceClient(connect(router.addr, as("shard", ""))).ListModels(ctx,
				&routerv1.ListModelsRequest{})
			return err
		},
		"a user asks the trainer": func() error {
			_, err := trainerv1.NewTrainerServiceClient(connect(trainer.addr, as("client-user", ""))).ListRuns(ctx,
				&trainerv1.ListRunsRequest{})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}

	// Plans are made of shards by who may ask them. The error says why nobody answers.
	if _, err := app.LiveInventory(ctx, registry.Addr(), "", dialer("client-operator")); fault.CodeOf(err) !=
		fault.PermissionDenied {
		t.Errorf("an operator reads the inventory: %v", err)
	}
	live, err := app.LiveInventory(ctx, registry.Addr(), "", dialer("router"))
	if err != nil || len(live.Shards) != len(shards) {
		t.Errorf("a router reads an inventory of %v: %v", live, err)
	}

	// Metrics are served over TLS and not to everyone. The router has found all members.
	if r, err := http.Get("http://" + shards[0].http + "/metrics"); err == nil {
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if !strings.Contains(string(text), "HTTPS") {
			t.Errorf("metrics in plaintext: %d %s", r.StatusCode, text)
		}
	}
	operators := routerv1.NewRouterServiceClient(connect(router.addr, as("", secrets["operator"])))
	// The router sees a member once its entry in the catalog arrives, which nothing above waits for.
	topology, err := operators.WatchTopology(ctx, &routerv1.WatchTopologyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for members := 0; members < 6; {
		r, err := topology.Recv()
		if err != nil {
			t.Fatalf("%d members of 6: %v", members, err)
		}
		members = len(r.GetMesh().GetMembers())
	}
}
