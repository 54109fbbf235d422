package integration_test

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

var runnerName = flag.String("runner", "inproc", "where the scenarios run: inproc, procs or compose")

// Layout says how many stages and replicas a model is deployed on.
type Layout struct {
	Stages   int
	Replicas int
}

// Mesh is a running deployment as its users see it.
type Mesh struct {
	Router  routerv1.RouterServiceClient
	Trainer trainerv1.TrainerServiceClient
	HTTP    string // base URL of the HTTP API
	// TextDir is the folder of the training texts, as the trainer sees it.
	TextDir string
}

// runner starts deployments.
type runner interface {
	// Start deploys the bundled model and returns when it can serve a request.
	Start(ctx context.Context, t *testing.T, l Layout, texts string) *Mesh
}

func newRunner(t *testing.T) runner {
	t.Helper()
	switch *runnerName {
	case "inproc":
		return inproc{}
	case "procs":
		return &procs{binary: need(t, "lamina"), consul: need(t, "consul"), nats: need(t, "nats-server")}
	case "compose":
		return newCompose(t)
	}
	t.Fatalf("unknown runner %q", *runnerName)
	return nil
}

// root returns the repository's top folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// bundled returns the path of the model that comes with the repository.
func bundled(t *testing.T) string { return filepath.Join(root(t), "models", "lamina-tolstoy") }

// need returns the path of a binary that `make build tools` builds in bin/.
func need(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(root(t), "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("find %s: run `make build tools` first", path)
	}
	return path
}

// start deploys a layout and waits until the router serves the model over it.
func start(t *testing.T, l Layout) *Mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	mesh := newRunner(t).Start(ctx, t, l, writeTexts(t))
	waitTopology(ctx, t, mesh, l)
	return mesh
}

// waitTopology waits until the router has the pipelines of the layout.
func waitTopology(ctx context.Context, t *testing.T, mesh *Mesh, l Layout) {
	t.Helper()
	var last *routerv1.Mesh
	for {
		resp, err := mesh.Router.Topology(ctx, &routerv1.TopologyRequest{})
		if err == nil {
			last = resp.GetMesh()
			pipelines := last.GetPipelines()
			fit := len(pipelines) == l.Replicas
			for _, p := range pipelines {
				fit = fit && len(p.GetStages()) == l.Stages
			}
			if fit {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("want %d pipelines of %d stages in time; last error %v, last topology %v", l.Replicas, l.Stages,
				err, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// writeTexts writes the training text: numbers spelled digit by digit, which a tiny
// model learns in a few steps.
func writeTexts(t *testing.T) string {
	t.Helper()
	words := []string{"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
	var text []byte
	for n := range 4000 {
		for _, digit := range []int{n / 1000, n / 100 % 10, n / 10 % 10, n % 10} {
			text = append(text, words[digit]...)
			text = append(text, ' ')
		}
		text = append(text, '\n')
	}
	dir := t.TempDir()
	// Containers may read the folder as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "count.txt"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}
