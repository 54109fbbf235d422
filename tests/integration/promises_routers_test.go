package integration_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// both returns clients of the two routers of a fleet.
func (f *fleet) both() []routerv1.RouterServiceClient {
	return []routerv1.RouterServiceClient{f.router(0), f.router(1)}
}

// resumableMix returns mixed requests of one choice each, as resumable ones are.
func resumableMix(n int, tokens uint32) []*routerv1.GenerateRequest {
	out := mixed(n, tokens)
	for _, r := range out {
		r.Sampling.Choices, r.Sampling.Choice = 0, 0
	}
	return out
}

// warmUp runs a resumable request at each router, so that the stream of the journal exists.
func (f *fleet) warmUp() {
	f.t.Helper()
	for i, router := range f.both() {
		r := greedy(prompts[0], 4)
		r.Resumable = true
		if _, err := generate(f.t.Context(), &Mesh{Router: router}, r); err != nil {
			f.t.Fatalf("warm up router %d: %v", i, err)
		}
	}
}

// S13: a router is killed; each of its resumable streams goes on at the other one, and no token is lost or
// repeated. The journal is on a NATS server.
func TestPromise_S13_StreamsOutliveTheirRouter(t *testing.T) {
	streams := pickInt(32, 200)
	f := startFleet(t, fleetSpec{stages: 2, replicas: 2, routers: 2, nats: true}, true)
	requests := resumableMix(24, uint32(pickInt(80, 128)))
	want := undisturbed(t, f.router(1), requests)
	f.warmUp()
	flow := startFlow(t, f.both(), requests, want, streams, true)
	t.Logf("%.0f tokens/s before the fault", flow.prove())
	f.members["router-0"].kill()
	pause(t, time.Second)
	// The promise is about tokens, not time: half of the streams are computed again.
	v := flow.hold(within(30 * time.Second))
	if v.resumes < streams/4 {
		t.Errorf("only %d streams were resumed", v.resumes)
	}
}

// S11: each service is restarted by SIGTERM under load, one member after another, the routers too. Streams
// that a router cannot finish in time are resumed at the other one.
func TestPromise_S11_RollingRestart(t *testing.T) {
	f := startFleet(t, fleetSpec{stages: 2, replicas: 2, routers: 2, samplers: 2, tokenizers: 2, nats: true,
		routerArg: []string{"--drain=500ms"}}, true)
	requests := resumableMix(24, 128)
	want := undisturbed(t, f.router(1), requests)
	f.warmUp()
	flow := startFlow(t, f.both(), requests, want, 8, true)
	t.Logf("%.0f tokens/s before the restarts", flow.prove())
	patterns := []string{"router-*", "shard-0-0", "sampler-0", "tokenizer-0"}
	if slow() {
		patterns = []string{"router-*", "shard-*", "sampler-*", "tokenizer-*", "router-*"}
	}
	for _, pattern := range patterns {
		for _, m := range f.match(pattern) {
			took := m.stop()
			m.start()
			f.awaitListed()
			f.awaitPipelines(2)
			t.Logf("%s exited after %v", m.name, took.Round(time.Millisecond))
			if took > within(30*time.Second) {
				t.Errorf("%s exited after %v, more than 30 s", m.name, took)
			}
		}
	}
	if v := flow.hold(within(5 * time.Second)); v.resumes == 0 {
		t.Error("no stream was resumed: the routers were not busy when they were restarted")
	}
}

// awaitListed waits until every member is registered.
func (f *fleet) awaitListed() {
	f.t.Helper()
	f.await(time.Minute, "all members to be registered", func() bool {
		names := f.registry.Names()
		for _, service := range []string{"router", "shard", "sampler", "tokenizer"} {
			if len(names[service]) < len(f.match(service+"-*")) {
				return false
			}
		}
		return true
	})
}

// S12: entries of the registry flap, the registry goes away and comes back empty, and answers go on. A model
// with another digest joins meanwhile and is never mixed in.
func TestPromise_S12_RegistryFlapsAndIsLost(t *testing.T) {
	f := startFleet(t, fleetSpec{stages: 2, replicas: 2}, true)
	models, err := f.router(0).ListModels(t.Context(), &routerv1.ListModelsRequest{})
	if err != nil || len(models.GetModels()) != 1 {
		t.Fatalf("want one model, got %v, %v", models, err)
	}
	requests := mixed(12, 64)
	for _, r := range requests {
		r.Model = models.GetModels()[0].GetDigest()
	}
	want := undisturbed(t, f.router(0), requests)
	flow := startFlow(t, []routerv1.RouterServiceClient{f.router(0)}, requests, want, 8, false)
	t.Logf("%.0f tokens/s before the faults", flow.prove())
	// A first stage that is free, and a last stage of a model that differs only in its weights.
	f.add("shard", "2-0", "--model="+bundled(t), "--layers=0/2", "--threads=1")
	f.add("shard", "2-1", "--model="+otherWeights(t), "--layers=1/2", "--threads=1")
	f.members["shard-2-0"].start()
	f.members["shard-2-1"].start()
	f.awaitListed()
	random := rand.New(rand.NewPCG(12, 0))
	flaps := 0
	for end := time.Now().Add(time.Duration(pickInt(3, 60)) * time.Second); time.Now().Before(end); flaps++ {
		f.deregister(random)
		pause(t, 100*time.Millisecond)
	}
	t.Logf("%d entries were removed", flaps)
	if err := f.registry.Stop(); err != nil {
		t.Fatal(err)
	}
	pause(t, time.Duration(pickInt(2, 60))*time.Second)
	if err := f.registry.Start(); err != nil {
		t.Fatal(err)
	}
	f.awaitListed()
	f.awaitPipelines(2)
	if n := f.pipelines(0); n > 2 {
		t.Errorf("%d pipelines are open, want 2: stages of different models were mixed", n)
	}
	flow.hold(within(time.Second))
}

// otherWeights returns a copy of the bundled model with one other weight.
func otherWeights(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), filepath.Base(bundled(t)))
	if err := os.CopyFS(dir, os.DirFS(bundled(t))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "model.safetensors")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-4] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// deregister removes a random entry from the registry. Its service registers itself again.
func (f *fleet) deregister(random *rand.Rand) {
	f.t.Helper()
	ids := f.registry.IDs()
	if len(ids) == 0 {
		return
	}
	id := ids[random.IntN(len(ids))]
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodPut,
		fmt.Sprintf("http://%s/v1/agent/service/deregister/%s", f.registry.Addr(), id), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
}
