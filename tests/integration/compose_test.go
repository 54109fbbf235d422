package integration_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// compose deploys each layout on the four shards of docker-compose.yml; shards that a
// layout does not need hold no layers. The project has its own name and networks, so a
// deployment that `make compose-up` started is not touched.
type compose struct {
	project string
	files   []string // of docker-compose, below the repository's top folder
	env     []string
}

const (
	composeProject = "lamina-test"
	composeGRPC    = "17070"
	composeHTTP    = "18080"
	composeTrainer = "17074"
)

func newCompose(t *testing.T) *compose {
	t.Helper()
	needDocker(t)
	return &compose{project: composeProject, files: []string{"docker-compose.yml"}, env: append(os.Environ(),
		"LAMINA_SUBNET=10.78", "LAMINA_GRPC_PORT="+composeGRPC, "LAMINA_HTTP_PORT="+composeHTTP,
		"LAMINA_TRAINER_PORT="+composeTrainer)}
}

func needDocker(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("docker", "info").CombinedOutput(); err != nil {
		t.Fatalf("no docker engine: %v\n%s", err, out)
	}
}

// layers returns which layers each of the four shards holds.
func (l Layout) layers(t *testing.T) []string {
	t.Helper()
	switch l {
	case Layout{1, 1}:
		return []string{"0/1", "none", "none", "none"}
	case Layout{2, 1}:
		return []string{"0/2", "1/2", "none", "none"}
	case Layout{2, 2}:
		return []string{"0/2", "1/2", "0/2", "1/2"}
	case Layout{4, 1}:
		return []string{"0/4", "1/4", "2/4", "3/4"}
	}
	t.Fatalf("layout %+v does not fit four shards", l)
	return nil
}

func (c *compose) Start(ctx context.Context, t *testing.T, l Layout, texts string) *Mesh {
	t.Helper()
	env := append(c.env, "LAMINA_TEXT_DIR="+texts)
	for i, layers := range l.layers(t) {
		env = append(env, fmt.Sprintf("LAMINA_LAYERS_%s=%s", []string{"A0", "A1", "B0", "B1"}[i], layers))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.run(context.Background(), t, env, "logs", "--tail=40"))
		}
		c.down(t, env)
	})
	c.run(ctx, t, env, "up", "-d")
	return &Mesh{
		Router:  routerv1.NewRouterServiceClient(dial(t, "127.0.0.1:"+composeGRPC)),
		Trainer: trainerv1.NewTrainerServiceClient(dial(t, "127.0.0.1:"+composeTrainer)),
		HTTP:    "http://127.0.0.1:" + composeHTTP, TextDir: "/text",
	}
}

// down removes the deployment. When a container exits during its health check, the Docker engine
// may fail to release its network endpoint, and the network cannot be removed; the next run
// reuses it. This is not a failure as long as no container is left.
func (c *compose) down(t *testing.T, env []string) {
	t.Helper()
	ctx := context.Background()
	out, err := c.try(ctx, t, env, "down", "-v", "--remove-orphans", "-t", "5")
	if err == nil {
		return
	}
	left, psErr := exec.Command("docker", "ps", "-aq", "--filter",
		"label=com.docker.compose.project="+c.project).CombinedOutput()
	if strings.Contains(out, "has active endpoints") && psErr == nil && len(left) == 0 {
		t.Logf("docker-compose down: a network stays behind: %v", err)
		return
	}
	t.Errorf("docker-compose down: %v\n%s", err, out)
}

func (c *compose) run(ctx context.Context, t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, err := c.try(ctx, t, env, args...)
	if err != nil {
		t.Errorf("docker-compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *compose) try(ctx context.Context, t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	all := []string{"-p", c.project}
	for _, file := range c.files {
		all = append(all, "-f", file)
	}
	cmd := exec.CommandContext(ctx, "docker-compose", append(all, args...)...)
	cmd.Dir, cmd.Env = root(t), env
	out, err := cmd.CombinedOutput()
	return string(out), err
}
