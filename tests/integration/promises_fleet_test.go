package integration_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/internal/natstest"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// slow reports whether the long versions of the tests run, with the limits on time that the promises
// state. The short versions run beside the tests of other packages, so their limits are wider.
func slow() bool { return os.Getenv("LAMINA_SLOW") != "" }

// within returns a limit on time: the promised one in the long tests. In the short ones it is so long that a machine
// may be many times slower, and only what hangs is found.
func within(promised time.Duration) time.Duration {
	if slow() {
		return promised
	}
	return max(6*promised, 45*time.Second)
}

// pickInt returns the size of a test: the promised one in the long tests.
func pickInt(short, long int) int {
	if slow() {
		return long
	}
	return short
}

// buildDir holds the binary that fleets run.
var buildDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lamina-promises-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build builds the lamina binary. LAMINA_BINARY names one that is there already.
var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("LAMINA_BINARY"); path != "" {
		return path, nil
	}
	path := filepath.Join(buildDir, "lamina")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/lamina")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build lamina: %w\n%s", err, out)
	}
	return path, err
})

// fleetSpec says which processes a fleet has.
type fleetSpec struct {
	stages, replicas, routers, samplers, tokenizers int

	nats      bool   // run a NATS server, and let the routers keep their journal there
	gates     bool   // put a gate in front of each shard
	kv        int    // positions of the KV cache of a shard; 0 for the default
	model     string // its folder; empty for the bundled one
	routerArg []string
	auto      []int64 // memory limits of shards that take their layers from the placer
	autoDir   string  // the folder of their models; empty for that of model

	start map[string][]string // commands before that of a member, by its name
}

// fleet is a deployment of one process for each service, whose members tests kill, freeze and wedge.
// The registry runs in the test's process.
type fleet struct {
	t        *testing.T
	spec     fleetSpec
	dir      string
	binary   string
	registry *agent.Agent
	natsURL  string
	members  map[string]*member
	conns    map[string]*grpc.ClientConn // by address; for the test's goroutine alone
}

// member is a process of a fleet. It keeps its addresses when it is started again.
type member struct {
	f             *fleet
	name, service string
	args          []string
	gate          *gate // nil for none
	grpc, http    string

	cmd    *exec.Cmd
	exited chan struct{}
}

// startFleet starts a fleet and waits until each of its routers is ready with one pipeline for each
// replica. Without ready it returns as soon as the processes listen.
func startFleet(t *testing.T, spec fleetSpec, ready bool) *fleet {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a fleet of processes")
	}
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	spec.routers, spec.samplers, spec.tokenizers = max(1, spec.routers), max(1, spec.samplers), max(1, spec.tokenizers)
	f := &fleet{t: t, spec: spec, dir: t.TempDir(), binary: binary, members: map[string]*member{}}
	if f.registry, err = agent.New(); err != nil {
		t.Fatal(err)
	}
	if err := f.registry.Start(); err != nil {
		t.Fatal(err)
	}
	if spec.nats {
		f.natsURL = startNATS(t)
	}
	t.Cleanup(f.close)
	model := cmp.Or(spec.model, bundled(t))
	for i := range spec.tokenizers {
		f.add("tokenizer", fmt.Sprint(i), "--model="+model)
	}
	for i := range spec.samplers {
		f.add("sampler", fmt.Sprint(i))
	}
	for r := range spec.replicas {
		for s := range spec.stages {
			args := []string{"--model=" + model, fmt.Sprintf("--layers=%d/%d", s, spec.stages), "--threads=1"}
			if spec.kv > 0 {
				args = append(args, fmt.Sprintf("--kv-positions=%d", spec.kv))
			}
			f.add("shard", fmt.Sprintf("%d-%d", r, s), args...)
		}
	}
	for i, memory := range spec.auto {
		f.addAuto(i, memory)
	}
	for i := range spec.routers {
		args := slices.Clone(spec.routerArg)
		if spec.nats {
			args = append(args, "--nats="+f.natsURL)
		}
		f.add("router", fmt.Sprint(i), args...)
	}
	var starting sync.WaitGroup
	for _, m := range f.members {
		starting.Go(m.start)
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if ready {
		f.awaitPipelines(spec.replicas)
	}
	return f
}

func (f *fleet) add(service, number string, args ...string) *member {
	m := &member{f: f, name: service + "-" + number, service: service, grpc: "127.0.0.1:0", http: "127.0.0.1:0"}
	m.args = append([]string{"--consul=" + f.registry.Addr()}, args...)
	if f.spec.gates && service == "shard" {
		m.gate = newGate(f.t)
		m.args = append(m.args, "--advertise="+m.gate.addr)
	}
	f.members[m.name] = m
	return m
}

// start starts the process and waits until it listens.
func (m *member) start() {
	t := m.f.t
	args := append([]string{m.service, "--listen=" + m.grpc}, m.args...)
	want := 1
	if m.service == "router" {
		args, want = append(args, "--http="+m.http), 2
	}
	command := slices.Concat(m.f.spec.start[m.name], []string{m.f.binary}, args)
	cmd := exec.Command(command[0], command[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return
	}
	log, err := os.OpenFile(m.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	exited := make(chan struct{})
	m.cmd, m.exited = cmd, exited
	lines := bufio.NewScanner(out)
	for want > 0 && lines.Scan() {
		switch name, addr, _ := strings.Cut(lines.Text(), " "); name {
		case "grpc":
			m.grpc, want = addr, want-1
		case "http":
			m.http, want = addr, want-1
		}
	}
	go func() { // ends with the process
		defer close(exited)
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		_ = log.Close()
	}()
	if want > 0 {
		t.Errorf("%s ended before it served:\n%s", m.name, m.tail())
		return
	}
	if m.gate != nil {
		m.gate.aim(m.grpc)
	}
}

func (m *member) log() string { return filepath.Join(m.f.dir, m.name+".log") }

// tail returns the end of the member's log.
func (m *member) tail() string {
	text, err := os.ReadFile(m.log())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

func (m *member) signal(s os.Signal) {
	m.f.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.f.t.Errorf("signal %v to %s: %v", s, m.name, err)
	}
}

// kill ends the process by SIGKILL.
func (m *member) kill() {
	m.f.t.Helper()
	m.signal(syscall.SIGKILL)
	<-m.exited
}

// stop ends the process by SIGTERM and returns how long that took.
func (m *member) stop() time.Duration {
	m.f.t.Helper()
	begin := time.Now()
	m.signal(syscall.SIGTERM)
	select {
	case <-m.exited:
	case <-time.After(time.Minute):
		m.f.t.Errorf("%s does not stop:\n%s", m.name, m.tail())
		m.kill()
	}
	return time.Since(begin)
}

func (m *member) freeze() { m.signal(syscall.SIGSTOP) }
func (m *member) thaw()   { m.signal(syscall.SIGCONT) }

func (m *member) running() bool {
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// match returns the members whose names match a pattern, in the order of their names.
func (f *fleet) match(pattern string) []*member {
	var out []*member
	for name, m := range f.members {
		if ok, err := filepath.Match(pattern, name); err == nil && ok {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *member) int { return strings.Compare(a.name, b.name) })
	return out
}

func (f *fleet) router(i int) routerv1.RouterServiceClient {
	f.t.Helper()
	return routerv1.NewRouterServiceClient(dial(f.t, f.members[fmt.Sprintf("router-%d", i)].grpc))
}

// ready reports whether a router's HTTP API says that it is ready.
func (f *fleet) ready(i int) bool {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + f.members[fmt.Sprintf("router-%d", i)].http + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// awaitPipelines waits until each running router is ready and has n pipelines.
func (f *fleet) awaitPipelines(n int) {
	f.t.Helper()
	for i := range f.spec.routers {
		if !f.members[fmt.Sprintf("router-%d", i)].running() {
			continue
		}
		client := f.router(i)
		have := 0
		f.await(2*time.Minute, fmt.Sprintf("router %d to be ready with %d pipelines", i, n), func() bool {
			ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
			defer cancel()
			resp, err := client.Topology(ctx, &routerv1.TopologyRequest{})
			have = len(resp.GetMesh().GetPipelines())
			return err == nil && have >= n && f.ready(i)
		})
	}
}

// await polls until done returns true, and fails the test after the limit.
func (f *fleet) await(limit time.Duration, what string, done func() bool) {
	f.t.Helper()
	if !poll(20*time.Millisecond, limit, done) {
		f.t.Fatalf("waited %v for %s; router-0 says:\n%s", limit, what, f.members["router-0"].tail())
	}
}

// poll calls done again and again until it returns true. It returns false after the limit.
func poll(every, limit time.Duration, done func() bool) bool {
	tick, end := time.NewTicker(every), time.NewTimer(limit)
	defer tick.Stop()
	defer end.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-end.C:
			return false
		}
	}
	return true
}

// close stops all members, the routers first.
func (f *fleet) close() {
	stop := func(routers bool) {
		var wg sync.WaitGroup
		for _, m := range f.members {
			if (m.service == "router") != routers || m.cmd == nil || !m.running() {
				continue
			}
			if m.gate != nil {
				m.gate.wedge(false)
			}
			wg.Go(func() {
				m.thaw()
				m.stop()
			})
		}
		wg.Wait()
	}
	stop(true)
	stop(false)
	if f.t.Failed() {
		for _, m := range f.match("router-*") {
			f.t.Logf("%s: %s", m.name, m.tail())
		}
	}
	if err := f.registry.Close(); err != nil {
		f.t.Error(err)
	}
}

// startNATS runs a NATS server with JetStream in the test's process, on a port of loopback.
func startNATS(t *testing.T) string {
	t.Helper()
	return natstest.Start(t, &server.Options{}).ClientURL()
}
