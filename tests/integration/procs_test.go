package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// procs runs one process per service on loopback, with its own Consul agent and NATS server.
type procs struct{ binary, consul, nats string }

func (p *procs) Start(_ context.Context, t *testing.T, l Layout, texts string) *Mesh {
	t.Helper()
	ports := freePorts(t, 6)
	consul := fmt.Sprintf("127.0.0.1:%d", ports[0])
	nats := fmt.Sprintf("nats://127.0.0.1:%d", ports[5])

	// The services start first: they wait for Consul and NATS, in any order.
	model, at := bundled(t), "--consul="+consul
	p.service(t, "tokenizer", at, "--model="+model)
	p.service(t, "sampler", at)
	for range l.Replicas {
		for i := range l.Stages {
			p.service(t, "shard", at, "--model="+model, fmt.Sprintf("--layers=%d/%d", i, l.Stages), "--train",
				"--nats="+nats, "--threads=1")
		}
	}
	router := p.service(t, "router", at, "--http=127.0.0.1:0")
	trainer := p.service(t, "trainer", at, "--dir="+t.TempDir(), "--allow-path="+texts)
	run(t, p.consul, "agent", "-dev", "-log-level=error", "-client=127.0.0.1", "-bind=127.0.0.1",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]),
		fmt.Sprintf("-serf-lan-port=%d", ports[2]),
		fmt.Sprintf("-serf-wan-port=%d", ports[3]), fmt.Sprintf("-grpc-port=%d", ports[4]), "-grpc-tls-port=-1",
		"-dns-port=-1")
	run(t, p.nats, "--jetstream", "--store_dir="+t.TempDir(), "--addr=127.0.0.1", fmt.Sprintf("--port=%d", ports[5]))
	return &Mesh{
		Router:  routerv1.NewRouterServiceClient(dial(t, router["grpc"])),
		Trainer: trainerv1.NewTrainerServiceClient(dial(t, trainer["grpc"])),
		HTTP:    "http://" + router["http"], TextDir: texts,
	}
}

// service starts one of Lamina's services on a free port and returns the addresses
// it prints.
func (p *procs) service(t *testing.T, kind string, args ...string) map[string]string {
	t.Helper()
	cmd := exec.Command(p.binary, append([]string{kind, "--listen=127.0.0.1:0"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := begin(t, cmd)
	want := 1
	if kind == "router" {
		want = 2
	}
	addresses := map[string]string{}
	lines := bufio.NewScanner(out)
	for len(addresses) < want && lines.Scan() {
		if name, addr, ok := strings.Cut(lines.Text(), " "); ok {
			addresses[name] = addr
		}
	}
	if len(addresses) < want {
		t.Fatalf("%s ended before it served:\n%s", kind, started.String())
	}
	go io.Copy(io.Discard, out)
	return addresses
}

// run starts a process that is stopped when the test ends.
func run(t *testing.T, binary string, args ...string) { begin(t, exec.Command(binary, args...)) }

// begin starts a command and returns what it writes to standard error. When the test
// ends, the command gets SIGTERM, and SIGKILL if it does not exit in time.
func begin(t *testing.T, cmd *exec.Cmd) *strings.Builder {
	t.Helper()
	log := &strings.Builder{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("%s did not stop in time", cmd.Path)
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() && log.Len() > 0 {
			t.Logf("%s: %s", cmd.Args[1], log.String())
		}
	})
	return log
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

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
