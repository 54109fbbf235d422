package integration_test

import (
	"context"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// inproc runs all services in the test's process.
type inproc struct{}

func (inproc) Start(_ context.Context, t *testing.T, l Layout, texts string) *Mesh {
	t.Helper()
	set := cpu.New(0)
	mesh, err := app.Start(context.WithoutCancel(t.Context()), app.MeshConfig{
		Kernels: app.Kernels{Set: set}, Model: bundled(t), Stages: l.Stages, Replicas: l.Replicas, Train: true,
		Runs: app.TrainerConfig{Dir: t.TempDir(), AllowPaths: []string{texts}},
		HTTP: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mesh.Close(); err != nil {
			t.Error(err)
		}
		set.Close()
	})
	router, err := mesh.Router()
	if err != nil {
		t.Fatal(err)
	}
	trainer, err := mesh.Trainer()
	if err != nil {
		t.Fatal(err)
	}
	return &Mesh{
		Router: routerv1.NewRouterServiceClient(router), Trainer: trainerv1.NewTrainerServiceClient(trainer),
		HTTP: "http://" + mesh.HTTPAddr(), TextDir: texts,
	}
}
