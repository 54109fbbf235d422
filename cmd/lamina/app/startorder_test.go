package app_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// closedAddr returns a loopback address on which nobody listens.
func closedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// fakeConsul implements the part of the API of a Consul agent that a service needs to start, and
// counts registrations.
func fakeConsul(t *testing.T, addr, version string) (registered func() int) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/agent/self":
			fmt.Fprintf(w, `{"Config": {"Version": %q}}`, version)
		case r.URL.Path == "/v1/agent/service/register":
			mu.Lock()
			n++
			mu.Unlock()
		case r.URL.Path == "/v1/agent/services":
			fmt.Fprint(w, "{}")
		case strings.HasPrefix(r.URL.Path, "/v1/agent/service/deregister/"):
		default:
			http.Error(w, "no", http.StatusInternalServerError)
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// service runs one service until the test ends or stop is called.
type service struct {
	t    *testing.T
	log  *logtest.Buffer
	addr string // gRPC
	http string // metrics
	stop func() error
}

func start(t *testing.T, consul string, run func(context.Context, app.ServiceConfig) error) *service {
	t.Helper()
	s := &service{t: t, log: &logtest.Buffer{}, http: closedAddr(t)}
	ctx, cancel := context.WithCancel(t.Context())
	bound, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, app.ServiceConfig{
			Log: slog.New(slog.NewTextHandler(s.log, nil)), Listen: "127.0.0.1:0", Metrics: s.http, Consul: consul,
			Ready: func(addr string) { bound <- addr },
		})
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	select {
	case s.addr = <-bound:
	case err := <-ended:
		ended <- err
		t.Fatalf("the service ended before it listened: %v", err)
	}
	return s
}

func (s *service) health() healthv1.HealthCheckResponse_ServingStatus {
	s.t.Helper()
	dialer := rpc.NewDialer(rpc.DialOptions{})
	defer dialer.Close()
	conn, err := dialer.Dial(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := healthv1.NewHealthClient(conn).Check(s.t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetStatus()
}

func (s *service) get(path string) (int, string) {
	s.t.Helper()
	r, err := http.Get("http://" + s.http + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit:
			t.Fatalf("%s: not in time", what)
		case <-tick.C:
		}
	}
}

func (s *service) waits(what string) {
	s.t.Helper()
	await(s.t, "say what is waited for", func() bool { return s.log.Count(what) > 0 })
	if got := s.health(); got != healthv1.HealthCheckResponse_NOT_SERVING {
		s.t.Errorf("while the service waits its health is %v", got)
	}
	if code, text := s.get("/readyz"); code != http.StatusServiceUnavailable {
		s.t.Errorf("while the service waits /readyz answers %d %s", code, text)
	}
	if code, _ := s.get("/healthz"); code != http.StatusOK {
		s.t.Errorf("while the service waits /healthz answers %d", code)
	}
}

func (s *service) serves() {
	s.t.Helper()
	await(s.t, "serve", func() bool { return s.health() == healthv1.HealthCheckResponse_SERVING })
	await(s.t, "be ready", func() bool { code, _ := s.get("/readyz"); return code == http.StatusOK })
}

func TestService_WaitsForConsulAndSaysSoOnce(t *testing.T) {
	consul := closedAddr(t)
	s := start(t, consul, app.Sampler)
	s.waits("waiting for a dependency")
	registered := fakeConsul(t, consul, "2.1.3")
	s.serves()
	if n := s.log.Count("waiting for a dependency"); n != 1 {
		t.Errorf("there are %d log lines about waiting", n)
	}
	if registered() == 0 { // the fake agent forgets it, so it may have registered again
		t.Error("it serves and is not registered")
	}
	if n := s.log.Count("upgrade it"); n != 0 {
		t.Errorf("there are %d warnings about a new Consul", n)
	}
}

func TestService_WarnsOnceOfAnOldConsul(t *testing.T) {
	consul := closedAddr(t)
	fakeConsul(t, consul, "1.22.7")
	s := start(t, consul, app.Sampler)
	s.serves()
	await(t, "warn", func() bool { return s.log.Count("upgrade it") > 0 })
	if n := s.log.Count("upgrade it"); n != 1 {
		t.Errorf("there are %d warnings", n)
	}
}

func TestService_EndsPromptlyWhileItWaits(t *testing.T) {
	s := start(t, closedAddr(t), app.Sampler)
	s.waits("waiting for a dependency")
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the service ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the service goes on waiting")
	}
}

func TestShard_WaitsForNATS(t *testing.T) {
	consul, addr := closedAddr(t), closedAddr(t)
	registered := fakeConsul(t, consul, "2.1.0")
	s := start(t, consul, func(ctx context.Context, c app.ServiceConfig) error {
		return app.Shard(ctx, c, app.ShardConfig{
			Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1}, Train: true,
			NATS: nats.Config{URL: "nats://" + addr},
		})
	})
	s.waits("nats at nats://" + addr)
	if registered() != 0 {
		t.Error("the shard is registered before it can train")
	}
	port := 0
	if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	natstest.Start(t, &server.Options{Port: port})
	s.serves()
	if registered() == 0 {
		t.Error("it serves and is not registered")
	}
}

// metricNames returns the names of the metrics at an address.
func metricNames(t *testing.T, url string) map[string]bool {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "# TYPE lamina_"); ok {
			names[strings.Fields(name)[0]] = true
		}
	}
	return names
}

// TestMesh_ExportsWhatItsServicesDo compares the metrics of a mesh in one process with those of
// separate services.
func TestMesh_ExportsWhatItsServicesDo(t *testing.T) {
	path := "../../../models/lamina-tolstoy"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, err := app.Start(ctx, app.MeshConfig{
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1}, Model: path, Stages: 2, Train: true,
		Runs: app.TrainerConfig{Dir: t.TempDir()}, HTTP: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	consul := closedAddr(t)
	fakeConsul(t, consul, "2.1.0")
	services := map[string]func(context.Context, app.ServiceConfig) error{
		"sampler": app.Sampler,
		"tokenizer": func(ctx context.Context, c app.ServiceConfig) error {
			return app.Tokenizer(ctx, c, app.TokenizerConfig{Model: path})
		},
		"shard": func(ctx context.Context, c app.ServiceConfig) error {
			return app.Shard(ctx, c,
				app.ShardConfig{Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1}, Model: path, Layers: "0/2"})
		},
		"trainer": func(ctx context.Context, c app.ServiceConfig) error {
			return app.Trainer(ctx, c, app.TrainerConfig{Dir: t.TempDir()})
		},
		"router": func(ctx context.Context,
			c app.ServiceConfig) error {
			return app.Router(ctx, c, app.RouterConfig{})
		},
	}
	alone := map[string]bool{}
	for name, run := range services {
		s := start(t, consul, run)
		s.serves()
		own := metricNames(t, "http://"+s.http+"/metrics")
		maps.Copy(alone, own)
		var missing []string
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("of the metrics of a %s the mesh lacks %v", name, missing)
			}
		})
		await(t, "export what the services do", func() bool { // a metric with labels comes with its first value
			mesh := metricNames(t, "http://"+m.HTTPAddr()+"/metrics")
			missing = slices.DeleteFunc(slices.Sorted(maps.Keys(own)), func(metric string) bool { return mesh[metric] })
			return len(missing) == 0
		})
	}
	if len(alone) < 8 {
		t.Errorf("the services only export %d metrics", len(alone))
	}
}
