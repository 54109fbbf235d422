package consul_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/discovery/discoverytest"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

func TestMain(m *testing.M) { leak.Main(m) }

// agent starts a Consul agent on free ports, or skips the test.
func agent(t *testing.T, arguments ...string) *consulAgent {
	t.Helper()
	binary := os.Getenv("LAMINA_CONSUL")
	if binary == "" {
		binary = "../../../bin/consul"
	}
	if _, err := os.Stat(binary); err != nil {
		t.Skipf("no consul at %s: run `make tools` or set LAMINA_CONSUL", binary)
	}
	a := &consulAgent{t: t, binary: binary, ports: freePorts(t, 5), more: arguments}
	a.start()
	t.Cleanup(a.stop)
	return a
}

// consulAgent is a Consul server that keeps no data when it stops.
type consulAgent struct {
	t      *testing.T
	binary string
	ports  []int
	more   []string // arguments
	cmd    *exec.Cmd
}

func (a *consulAgent) addr() string { return fmt.Sprintf("127.0.0.1:%d", a.ports[0]) }

// start runs the agent and waits until it has elected itself as leader.
func (a *consulAgent) start() {
	a.t.Helper()
	arguments := []string{"agent", "-dev", "-log-level=error", "-client=127.0.0.1", "-bind=127.0.0.1",
		fmt.Sprintf("-http-port=%d", a.ports[0]), fmt.Sprintf("-server-port=%d", a.ports[1]),
		fmt.Sprintf("-serf-lan-port=%d", a.ports[2]),
		fmt.Sprintf("-serf-wan-port=%d", a.ports[3]), fmt.Sprintf("-grpc-port=%d", a.ports[4]), "-grpc-tls-port=-1",
		"-dns-port=-1"}
	a.cmd = exec.Command(a.binary, append(arguments, a.more...)...)
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(2 * time.Minute)
	for {
		if resp, err := client.Get("http://" + a.addr() + "/v1/status/leader"); err == nil {
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK && len(body) > len(`""`) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-limit:
			a.t.Fatal("the consul agent did not elect a leader in time")
		}
	}
}

func (a *consulAgent) stop() {
	a.cmd.Process.Kill()
	a.cmd.Wait() // its error says that the process was killed
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// registry returns a registry on an agent.
func registry(t *testing.T, a *consulAgent) *consul.Registry {
	t.Helper()
	r, err := consul.New(consul.Config{Addr: a.addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// serve runs a gRPC server that passes health checks until stop.
func serve(t *testing.T) (addr string, stop func()) {
	t.Helper()
	l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, rpc.NewServer(rpc.ServerOptions{}), l, nil) }()
	return l.Addr().String(), sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRegistry_KeepsTheContract(t *testing.T) {
	t.Parallel()
	discoverytest.Run(t, registry(t, agent(t)), serve)
}

// await reads lists until one has n instances.
func await(t *testing.T, ch <-chan []discovery.Instance, n int) []discovery.Instance {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		select {
		case state, open := <-ch:
			if !open {
				t.Fatal("the watch ended")
			}
			if len(state) == n {
				return state
			}
		case <-limit:
			t.Fatalf("waited for %d instances", n)
		}
	}
}

func TestRegistry_UnhealthyIsNotListed(t *testing.T) {
	t.Parallel()
	r := registry(t, agent(t))
	addr, stop := serve(t)
	defer stop()
	ch, err := r.Watch(t.Context(), "shard")
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Register(t.Context(), discovery.Instance{ID: "a", Service: "shard", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, 1)
	stop()
	await(t, ch, 0)
	if err := g.Deregister(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRegistry_ComesBackWithAnAgentThatForgotEverything(t *testing.T) {
	t.Parallel()
	a := agent(t)
	r := registry(t, a)
	addr, stop := serve(t)
	defer stop()
	ch, err := r.Watch(t.Context(), "shard")
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Register(t.Context(), discovery.Instance{ID: "a", Service: "shard", Addr: addr})
	if err != nil {
		t.Fatal(err)
	}
	await(t, ch, 1)
	a.stop()
	if err := g.Update(t.Context(), map[string]string{"fact": "new"}); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("update with no agent: %v", err)
	}
	select {
	case state := <-ch:
		t.Errorf("without an agent the list is %v", state)
	default:
	}
	a.start()
	// The new agent knows nothing but what registers again. The watch may miss the moment in which that is nothing.
	for limit := time.After(2 * time.Minute); ; {
		select {
		case state := <-ch:
			if len(state) == 0 || state[0].Meta["fact"] != "new" {
				continue
			}
		case <-limit:
			t.Fatal("after the restart the instance does not come back with its new facts")
		}
		break
	}
	if err := g.Deregister(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLock_IsLostWithItsSessionOrKey(t *testing.T) {
	t.Parallel()
	a := agent(t)
	r := registry(t, a)
	transport := &http.Transport{DisableKeepAlives: true}
	raw, err := api.NewClient(&api.Config{Address: a.addr(), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	var token uint64
	for _, lose := range []func(name string) error{
		func(name string) error {
			sessions, _, err := raw.Session().List(nil)
			for _, s := range sessions {
				if s.Name == name {
					_, destroyed := raw.Session().Destroy(s.ID, nil)
					err = errors.Join(err, destroyed)
				}
			}
			return err
		},
		func(string) error {
			_, err := raw.KV().Delete("lamina/lock/run", nil)
			return err
		},
		nil, // the last holder keeps it
	} {
		l, err := r.Lock(t.Context(), "run", "trainer-1")
		if err != nil {
			t.Fatal(err)
		}
		if l.Token() <= token {
			t.Errorf("token %d after %d", l.Token(), token)
		}
		token = l.Token()
		if lose != nil {
			if err := lose("trainer-1"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-l.Lost():
			case <-time.After(2 * time.Minute):
				t.Error("Lost is not closed after the lock was lost")
			}
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestRegistry_RefusesWhatConsulCannotReach(t *testing.T) {
	r, err := consul.New(consul.Config{Addr: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"mem:a", "unix:/run/a", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"} {
		_, err := r.Register(t.Context(), discovery.Instance{ID: "a", Service: "shard", Addr: addr})
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := r.Register(t.Context(),
		discovery.Instance{ID: "a", Service: "shard", Addr: "127.0.0.1:1"}); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("no agent: %v", err)
	}
	if _, err := r.Lock(t.Context(), "run", "a"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("lock with no agent: %v", err)
	}
}
