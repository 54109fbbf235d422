package integration_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// secureFleet is the fleet of docker-compose.yml with credentials, as stranger/compose.yml has it.
type secureFleet struct {
	*compose
	subnet  string
	secrets string
	secret  string // of an operator's API key
}

// host is a container of the fleet.
type host struct {
	name     string
	last     int   // byte of its addresses
	networks []int // third bytes of its addresses
	ports    []int // on which a program listens that others reach
}

const (
	control = 0
	network = 1
	edge    = 2
)

// hosts are the services that run.
func (f *secureFleet) hosts() []host {
	return []host{
		{"consul", 2, []int{control, network}, []int{8300, 8301, 8302, 8500, 8600}},
		{"nats", 3, []int{control}, []int{4222}},
		{"tokenizer", 10, []int{control, network}, []int{7071}},
		{"sampler", 11, []int{control, network}, []int{7072}},
		{"shard-a0", 20, []int{control, network}, []int{7073}},
		{"router", 12, []int{control, network, edge}, []int{7070, 8080}},
		{"trainer", 13, []int{control, network, edge}, []int{7074}},
	}
}

// addresses returns the addresses of a container.
func (f *secureFleet) addresses(h host) (out []netip.Addr) {
	for _, n := range h.networks {
		out = append(out, netip.MustParseAddr(fmt.Sprintf("%s.%d.%d", f.subnet, n, h.last)))
	}
	return out
}

// newSecureFleet makes the secrets of the fleet and starts it.
func newSecureFleet(t *testing.T, ctx context.Context) *secureFleet {
	t.Helper()
	needDocker(t)
	f := &secureFleet{subnet: "10.79", secrets: t.TempDir(), compose: &compose{project: "lamina-stranger",
		files: []string{"docker-compose.yml", "tests/integration/stranger/compose.yml"}}}
	lamina := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, need(t, "lamina"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("lamina %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	certs := []string{"certs", "init", "--dir", filepath.Join(f.secrets, "certs")}
	for _, h := range f.hosts() {
		for _, addr := range f.addresses(h) {
			certs = append(certs, "--host", addr.String())
		}
	}
	lamina(certs...)
	lamina("nkeys", "init", "--dir", filepath.Join(f.secrets, "nats"))
	for line := range strings.Lines(lamina("keys", "create", "ada", "--keys", filepath.Join(f.secrets, "keys.json"),
		"--role", "user,operator")) {
		for word := range strings.FieldsSeq(line) {
			if strings.HasPrefix(word, auth.Prefix) {
				f.secret = word
			}
		}
	}
	id, gossip := make([]byte, 16), make([]byte, 32)
	rand.Read(id) // never fails
	rand.Read(gossip)
	token := fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	config, err := json.Marshal(map[string]any{
		"acl": map[string]any{"enabled": true, "default_policy": "deny",
			"tokens": map[string]string{"initial_management": token, "agent": token}},
		"encrypt": base64.StdEncoding.EncodeToString(gossip),
		// The agent checks the services' health, which wants a certificate.
		"enable_agent_tls_for_checks": true,
		"ports":                       map[string]int{"grpc": -1, "grpc_tls": -1}, // of Consul's service mesh
		"tls": map[string]any{"defaults": map[string]any{"ca_file": "/secrets/certs/ca.pem",
			"cert_file": "/secrets/certs/monitor.pem", "key_file": "/secrets/certs/monitor.key"},
			"internal_rpc": map[string]any{"verify_incoming": true}},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(f.secrets, "consul.json"), config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.env = append(os.Environ(), "LAMINA_SUBNET="+f.subnet, "LAMINA_GRPC_PORT=17170", "LAMINA_HTTP_PORT=18180",
		"LAMINA_TRAINER_PORT=17174", "LAMINA_LAYERS_A0=0/1", "LAMINA_SECRETS="+f.secrets, "LAMINA_CONSUL_TOKEN="+token)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(f.run(context.Background(), t, f.env, "logs", "--tail=40"))
		}
		f.down(t, f.env)
	})
	up := []string{"up", "-d"}
	for _, h := range f.hosts() {
		up = append(up, h.name)
	}
	if out, err := f.try(ctx, t, f.env, up...); err != nil {
		t.Fatalf("docker-compose %q: %v\n%s", up, err, out)
	}
	return f
}

// found is what the stranger prints.
type found struct {
	Open    []string
	Refused map[string]int
	Answers []struct{ At, What, Code, Text string }
}

const strangerImage = "lamina-mesh/stranger:test"

// build makes the image of the stranger.
func (f *secureFleet) build(t *testing.T, ctx context.Context) {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "stranger"),
		"./tests/integration/stranger")
	build.Dir, build.Env = root(t), append(os.Environ(), "CGO_ENABLED=0")
	file := "FROM scratch\nCOPY stranger /stranger\nENTRYPOINT [\"/stranger\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	docker(t, ctx, "build", "-q", "-t", strangerImage, dir)
	t.Cleanup(func() { docker(t, context.Background(), "image", "rm", "-f", strangerImage) })
}

// docker runs a command of docker and returns its output.
func docker(t *testing.T, ctx context.Context, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(ctx, "docker", args...)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, problem.String())
	}
	return out
}

// listening returns the addresses that a container's programs listen on, as seen from within.
func (f *secureFleet) listening(t *testing.T, ctx context.Context, h host) (out []netip.AddrPort) {
	t.Helper()
	found, err := f.try(ctx, t, f.env, "ps", "-q", h.name) // versions of docker-compose name containers differently
	words := strings.Fields(found)
	if err != nil || len(words) == 0 {
		t.Fatalf("find the container of %s: %v\n%s", h.name, err, found)
	}
	beside := "container:" + words[len(words)-1]
	text := docker(t, ctx, "run", "--rm", "--network", beside, strangerImage, "listeners")
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("%s: %v: %s", h.name, err, text)
	}
	return out
}

// stranger runs a container without credentials on all networks of the fleet, and returns what it is told at some
// ports.
func (f *secureFleet) stranger(t *testing.T, ctx context.Context, ports []string) (out found) {
	t.Helper()
	name := f.project + "-stranger"
	t.Cleanup(func() { docker(t, context.Background(), "rm", "-f", name) })
	// Engines before version 25 take one network when they make a container.
	docker(t, ctx, append([]string{"create", "--name", name, "--network", f.project + "_control", strangerImage},
		ports...)...)
	docker(t, ctx, "network", "connect", f.project+"_mesh", name)
	docker(t, ctx, "network", "connect", f.project+"_edge", name)
	text := docker(t, ctx, "start", "-a", name)
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("the stranger: %v: %s", err, text)
	}
	return out
}

// TestCompose_AStrangerReachesNothing puts a container without credentials on the networks of a fleet that has
// certificates and keys. It tries every TCP port on which a program listens, at every address, and every method and
// route there. No program listens that is not known, and every call to a service of Lamina is refused. Consul and NATS
// tell it nothing of the fleet, and let it change nothing.
func TestCompose_AStrangerReachesNothing(t *testing.T) {
	if *runnerName != "compose" {
		t.Skip("needs docker: make compose-test runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	f := newSecureFleet(t, ctx)
	certs, err := (rpc.Files{CA: filepath.Join(f.secrets, "certs", "ca.pem")}).Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	dialer := rpc.NewDialer(rpc.DialOptions{TLS: certs.Client(), Secret: f.secret})
	t.Cleanup(func() { _ = dialer.Close() })
	conn, err := dialer.Dial("127.0.0.1:17170")
	if err != nil {
		t.Fatal(err)
	}
	mesh := &Mesh{Router: routerv1.NewRouterServiceClient(conn)}
	waitTopology(ctx, t, mesh, Layout{1, 1})
	serves := func(when string) {
		t.Helper()
		if a, err := generate(ctx, mesh, greedy("The prince", 4)); err != nil || len(a.ids) != 4 {
			t.Errorf("%s the fleet answers its user with %d tokens, %v", when, len(a.ids), err)
		}
	}
	serves("before")
	f.build(t, ctx)
	owner, ports := map[string]string{}, []string{} // by address and port
	for _, h := range f.hosts() {
		listening := map[int]bool{}
		for _, socket := range f.listening(t, ctx, h) {
			port := int(socket.Port())
			if listening[port] = true; !slices.Contains(h.ports, port) {
				t.Errorf("%s listens on %s", h.name, socket)
			}
		}
		for _, port := range h.ports {
			if !listening[port] {
				t.Errorf("%s does not listen on port %d: the test has lost its way", h.name, port)
			}
		}
		for _, addr := range f.addresses(h) {
			for port := range listening {
				at := netip.AddrPortFrom(addr, uint16(port)).String()
				owner[at], ports = h.name, append(ports, at)
			}
		}
	}
	slices.Sort(ports)
	told := f.stranger(t, ctx, ports)
	serves("afterwards")

	calls, reached := 0, map[string]bool{}
	for _, at := range told.Open {
		calls += told.Refused[at]
		reached[owner[at]] = true
		if told.Refused[at] == 0 {
			t.Errorf("%s of %s: no call was refused", at, owner[at])
		}
	}
	for _, h := range f.hosts() {
		if !reached[h.name] {
			t.Errorf("the stranger does not reach %s: the test has lost its way", h.name)
		}
	}
	for _, a := range told.Answers {
		if owner[a.At] != "consul" {
			t.Errorf("%s answers a stranger at %s: %s: %s %q", owner[a.At], a.At, a.What, a.Code, a.Text)
			continue
		}
		// Consul answers with lists from which it has left out everything, and with what has no policy.
		writes := strings.HasPrefix(a.What, "PUT ") || strings.HasPrefix(a.What, "DELETE ")
		if strings.Contains(a.Text, f.subnet) || strings.Contains(a.Text, "lamina-") || writes && a.Code == "200" {
			t.Errorf("Consul tells a stranger: %s: %s %q", a.What, a.Code, a.Text)
		}
	}
	if logs := f.run(ctx, t, f.env, "logs"); strings.Contains(logs, "panic") {
		t.Errorf("a service has panicked:\n%s", logs)
	}
	t.Logf("%d calls were refused at %d open ports: %v", calls, len(told.Open), told.Open)
	f.nothingLeft(t, ctx)
}

// nothingLeft checks that the stranger has put nothing into Consul.
func (f *secureFleet) nothingLeft(t *testing.T, ctx context.Context) {
	t.Helper()
	out, err := f.try(ctx, t, f.env, "exec", "-T", "-e", "CONSUL_HTTP_TOKEN="+strings.TrimPrefix(
		f.env[len(f.env)-1], "LAMINA_CONSUL_TOKEN="), "consul", "/bin/consul", "kv", "get", "-keys", "lamina/")
	if err != nil || strings.Contains(out, "stranger") {
		t.Errorf("the keys of Consul: %v\n%s", err, out)
	}
}
