package consul_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/discovery/discoverytest"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// agent starts a Consul agent of its own on free ports, or skips.
func agent(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("LAMINA_CONSUL")
	if binary == "" {
		binary = "../../../bin/consul"
	}
	if _, err := os.Stat(binary); err != nil {
		t.Skipf("no consul at %s: run `make tools` or set LAMINA_CONSUL", binary)
	}
	ports := freePorts(t, 5)
	cmd := exec.Command(binary, "agent", "-dev", "-log-level=error", "-client=127.0.0.1", "-bind=127.0.0.1",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]), fmt.Sprintf("-serf-lan-port=%d", ports[2]),
		fmt.Sprintf("-serf-wan-port=%d", ports[3]), fmt.Sprintf("-grpc-port=%d", ports[4]), "-grpc-tls-port=-1", "-dns-port=-1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if resp, err := http.Get("http://" + addr + "/v1/status/leader"); err == nil {
			body := make([]byte, 8)
			n, _ := resp.Body.Read(body)
			resp.Body.Close()
			if n > 3 { // more than an empty string
				return addr
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the consul agent did not elect itself in time")
	return ""
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

func TestRegistry_KeepsTheContract(t *testing.T) {
	r, err := consul.New(consul.Config{Addr: agent(t)})
	if err != nil {
		t.Fatal(err)
	}
	discoverytest.Run(t, r, func(t *testing.T) (string, func()) {
		l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- rpc.Serve(ctx, rpc.NewServer(rpc.ServerOptions{}), l, nil) }()
		return l.Addr().String(), func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}
