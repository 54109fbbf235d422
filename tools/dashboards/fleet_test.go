package dashboards_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// limit bounds every wait of the test.
const limit = 3 * time.Minute

// fleet is a mesh in this process: two shards whose layers a placer has chosen, and one that trains. A second mesh has
// a shard on a GPU without a GPU.
type fleet struct {
	mesh    *app.Mesh
	devices *app.Mesh
	router  routerv1.RouterServiceClient
	trainer trainerv1.TrainerServiceClient
}

func start(t *testing.T, ctx context.Context) *fleet {
	t.Helper()
	path, err := filepath.Abs("../../models/lamina-tolstoy")
	if err != nil {
		t.Fatal(err)
	}
	const kv = 512
	set := cpu.New(2)
	t.Cleanup(set.Close)
	shards := half(t, path, kv, set)
	m, err := app.Start(ctx, app.MeshConfig{
		Model: path, Kernels: app.Kernels{Set: set, Threads: 2}, Auto: shards, HTTP: "127.0.0.1:0",
		Placing: app.Placing{KVLeast: kv, KVMost: kv}, Train: true, Trainers: 1,
		Runs: app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{"/"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	router, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	trainer, err := m.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{m, devices(t, ctx), routerv1.NewRouterServiceClient(router),
		trainerv1.NewTrainerServiceClient(trainer)}
}

// devices starts a mesh whose only stage is on a GPU without a GPU. Nobody sends it a request.
func devices(t *testing.T, ctx context.Context) *app.Mesh {
	t.Helper()
	d := twin.New(twin.Config{Devices: 1, Machine: twin.Simulated, Usage: func() driver.Usage {
		return driver.Usage{Utilisation: 0.5, Celsius: 61, Watts: 300}
	}})
	set, err := cuda.Open(d, cuda.Config{KV: kernel.KVAuto})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	m, err := app.Start(ctx, app.MeshConfig{Kernels: app.Kernels{Set: set}, Trainers: 1, HTTP: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// half returns two shards that hold a little more than half of a model each.
func half(t *testing.T, path string, kv int, set *cpu.Set) []app.AutoShard {
	t.Helper()
	files, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	z := files.Sizes()
	layer := z.Layers[0] + files.Spec.KVBytes(set.KV())*int64(kv)
	n := int64(len(z.Layers)+1)/2 + 1
	memory := int64(float64(z.Embedding+z.Head+n*layer) / 0.8)
	return []app.AutoShard{{Memory: memory}, {Memory: memory}}
}

// deploy makes the model that is served a deployment of its name.
func (f *fleet) deploy(t *testing.T, ctx context.Context) {
	t.Helper()
	models, err := f.router.ListModels(ctx, &routerv1.ListModelsRequest{})
	if err != nil || len(models.GetModels()) != 1 {
		t.Fatalf("%v, %v", models, err)
	}
	stream, err := f.router.Deploy(ctx, &routerv1.DeployRequest{Model: models.GetModels()[0].GetName()})
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// load runs requests to their end: some share a prompt, one is stopped by its client and one is refused.
func (f *fleet) load(t *testing.T, ctx context.Context) {
	t.Helper()
	zero := float32(0)
	prompt := strings.Repeat("The prince looked at the sky. ", 8)
	request := func(n uint32, model string) *routerv1.GenerateRequest {
		return &routerv1.GenerateRequest{
			Model: model, Prompt: &routerv1.GenerateRequest_Text{Text: prompt}, MaxTokens: n,
			Sampling: &routerv1.Sampling{Temperature: &zero}, IgnoreEnd: true,
		}
	}
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := f.generate(ctx, request(12, ""), -1); err != nil {
				t.Error(err)
			}
		})
		group.Wait() // so that the prompt is in the cache
	}
	if err := f.generate(ctx, request(400, ""), 3); err == nil {
		t.Error("a request that was canceled ended well")
	}
	if err := f.generate(ctx, request(4, "no such model"), -1); err == nil {
		t.Error("a model that nobody serves has answered")
	}
}

// generate runs a request and cancels it after some tokens, or never if that is below 0.
func (f *fleet) generate(ctx context.Context, r *routerv1.GenerateRequest, cancelAfter int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	none := uint32(0)
	r.WaitForCapacity = &none
	stream, err := f.router.Generate(ctx, r)
	if err != nil {
		return err
	}
	for n := 0; ; {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.GetToken() != nil {
			if n++; n == cancelAfter {
				cancel()
			}
		}
	}
}

// train starts a run that does not end by itself, and returns when it has taken steps.
func (f *fleet) train(t *testing.T, ctx context.Context) {
	t.Helper()
	manifest := `{"name": "dashboard", "data": {"text": "` + textFile(t) + `", "validation_fraction": 0.1},
		"vocabulary": {"type": "char"}, "model": {"architecture": "llama", "layers": 2, "width": 16, "heads": 2,
		"ff": 24, "tied": true}, "slots": 2, "slot_sequences": 1, "sequence_len": 8, "steps": 1000000,
		"learning_rate": {"max": 0.01, "min": 0.001, "warmup": 2}, "seed": 3, "checkpoint_every": 100000}`
	resp, err := f.trainer.StartRun(ctx,
		&trainerv1.StartRunRequest{ManifestJson: []byte(manifest), Stages: 1, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := f.trainer.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.GetRun().GetStep() >= 2 {
			return
		}
	}
}

// scrape reads /metrics with Prometheus's own parser, as samples at a moment.
func (f *fleet) scrape(t *testing.T, ctx context.Context, s *store, at time.Time) {
	t.Helper()
	scrapeMesh(t, ctx, f.mesh, s, at, "")
	scrapeMesh(t, ctx, f.devices, s, at, "lamina_device_") // the other series are there already
	s.add(labels.FromStrings(labels.MetricName, "up"), at, 1)
}

// scrapeMesh reads the series of a mesh whose names have a prefix.
func scrapeMesh(t *testing.T, ctx context.Context, m *app.Mesh, s *store, at time.Time, prefix string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.HTTPAddr()+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %s, %v", resp.Status, err)
	}
	if !bytes.HasSuffix(text, []byte("\n")) {
		t.Fatal("the scrape is cut")
	}
	p := textparse.NewPromParser(text, labels.NewSymbolTable(), false)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("parse the scrape: %v", err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		_, _, value := p.Series()
		var l labels.Labels
		p.Labels(&l)
		if strings.HasPrefix(l.Get(labels.MetricName), prefix) {
			s.add(l, at, value)
		}
	}
}
