package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/logtest"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// keyFile writes a file of keys and returns its path and the secrets by the names of the keys.
func keyFile(t *testing.T, keys ...auth.Key) (path string, secrets map[string]string) {
	t.Helper()
	path, secrets = filepath.Join(t.TempDir(), "keys.json"), map[string]string{}
	for _, k := range keys {
		k, secret, err := auth.NewKey(k, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		secrets[k.Name] = secret
		if err := auth.UpdateKeys(
			path,
			func(all []auth.Key) ([]auth.Key, error) { return append(all, k), nil },
		); err != nil {
			t.Fatal(err)
		}
	}
	return path, secrets
}

// TestMesh_KeysOverTLS is a mesh with keys and a certificate, as lamina up serves it beyond loopback.
func TestMesh_KeysOverTLS(t *testing.T) {
	dir := t.TempDir()
	ca, err := issue.NewAuthority("lamina", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(dir, issue.ID{Service: auth.RouterService}, nil, time.Now(), time.Hour); err != nil {
		t.Fatal(err)
	}
	keys, secrets := keyFile(t,
		auth.Key{Name: "user", Tenant: "a", Roles: []auth.Role{auth.User}},
		auth.Key{Name: "elsewhere", Tenant: "b", Roles: []auth.Role{auth.User}, Models: []string{"another"}},
		auth.Key{Name: "small", Tenant: "c", Roles: []auth.Role{auth.User}, Tokens: 10},
		auth.Key{Name: "trainer", Tenant: "d", Roles: []auth.Role{auth.Trainer}},
		auth.Key{Name: "operator", Tenant: "e", Roles: []auth.Role{auth.Operator}})
	var log logtest.Buffer
	audit := filepath.Join(dir, "audit.log")
	files := rpc.Files{Cert: filepath.Join(dir, "router.pem"), Key: filepath.Join(dir, "router.key")}
	m, _ := startMesh(t, t.Context(), app.MeshConfig{
		Log:     slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1},
		Model:   shared(t, "models/stories260K/stories260K-f32.gguf"),
		Train:   true, Runs: app.TrainerConfig{Dir: filepath.Join(dir, "runs"), Data: dir},
		GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Files: files, Access: app.AccessConfig{Keys: keys, Audit: audit},
	})
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true},
	}
	defer client.CloseIdleConnections()
	ask := func(key, method, path, body string) (*http.Response, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(
			t.Context(),
			method,
			"https://"+m.HTTPAddr()+path,
			strings.NewReader(body),
		)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			q.Header.Set("Authorization", "Bearer "+secrets[key])
		}
		resp, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	const prompt = `{"prompt": "Once", "max_tokens": 6, "temperature": 0}`
	for _, c := range []struct {
		key, method, path, body string
		want                    int
		code                    string
	}{
		{"user", "POST", "/v1/completions", prompt, 200, ""},
		{"", "POST", "/v1/completions", prompt, 401, "invalid_api_key"},
		{"nobody", "GET", "/v1/models", "", 401, "invalid_api_key"},
		{"trainer", "POST", "/v1/completions", prompt, 403, "not_allowed"},
		{"elsewhere", "POST", "/v1/completions", prompt, 403, "model_not_allowed"},
		{"small", "POST", "/v1/completions", prompt, 200, ""},
		{"small", "POST", "/v1/completions", prompt, 429, "rate_limit_exceeded"},
		{"user", "GET", "/v1/nothing", "", 404, "unknown_url"},
		{"user", "PUT", "/v1/completions", "", 405, "method_not_allowed"},
		{"", "PUT", "/v1/completions", "", 401, "invalid_api_key"},
		{"user", "GET", "/metrics", "", 403, ""},
		{"operator", "GET", "/metrics", "", 200, ""},
		{"", "GET", "/healthz", "", 401, ""},
		{"operator", "GET", "/readyz", "", 200, ""},
		{"", "GET", "/", "", 401, ""},
	} {
		resp, text := ask(c.key, c.method, c.path, c.body)
		var answer struct{ Error struct{ Code string } }
		_ = json.Unmarshal([]byte(text), &answer) // not every answer is JSON
		if resp.StatusCode != c.want || answer.Error.Code != c.code || resp.ProtoMajor != 2 {
			t.Errorf("%s %s %s: %d %s", c.key, c.method, c.path, resp.StatusCode, text)
		}
		if c.want == 429 &&
			(resp.Header.Get("Retry-After") == "" || resp.Header.Get("X-Ratelimit-Limit-Tokens") != "10") {
			t.Errorf("headers of a used budget: %v", resp.Header)
		}
	}
	for path, want := range map[string]string{"/v1/messages": `"type":"authentication_error"`, "/api/chat": `{"error":"`} {
		resp, text := ask("", "POST", path, "{}")
		if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, text)
		}
	}
	for _, route := range app.Routes() {
		method, path, _ := strings.Cut(strings.NewReplacer("{$}", "", "{", "", "}", "").Replace(route), " ")
		resp, text := ask("", method, path, "")
		if resp.StatusCode != http.StatusUnauthorized || method != http.MethodHead && text == "" {
			t.Errorf("%s without a key: %d %q", route, resp.StatusCode, text)
		}
	}
	if _, text := ask("elsewhere", "GET", "/v1/models", ""); strings.Contains(text, "stories260K") {
		t.Errorf("a key sees a model that it may not use: %s", text)
	}
	certs, err := rpc.Files{CA: filepath.Join(dir, "ca.pem")}.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]codes.Code{"": codes.Unauthenticated, "user": codes.PermissionDenied,
		"trainer": codes.NotFound} {
		d := rpc.NewDialer(rpc.DialOptions{TLS: certs.Client(), Secret: secrets[key]})
		conn, err := d.Dial(m.GRPCAddr())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err = trainerv1.NewTrainerServiceClient(conn).StopRun(ctx, &trainerv1.StopRunRequest{Run: "missing"})
		if status.Code(err) != want {
			t.Errorf("key %q stops a run: %v", key, err)
		}
		_, err = routerv1.NewRouterServiceClient(conn).ListModels(ctx, &routerv1.ListModelsRequest{})
		if (err == nil) != (key != "") {
			t.Errorf("key %q lists models: %v", key, err)
		}
		cancel()
		d.Close()
	}
	lines, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"result":"not found"`, `"result":"permission denied"`, `"who":"anonymous"`,
		`"target":"missing"`, `"name":"trainer"`, `"tenant":"d"`} {
		if !strings.Contains(string(lines), want) {
			t.Errorf("the audit log lacks %s: %s", want, lines)
		}
	}
	_, metrics := ask("operator", "GET", "/metrics", "")
	for name, secret := range secrets {
		secret = strings.TrimPrefix(secret, auth.Prefix)
		for where, text := range map[string]string{"log": log.String(), "audit": string(lines), "metrics": metrics} {
			if strings.Contains(text, secret[:16]) {
				t.Errorf("the secret of %s is in the %s", name, where)
			}
		}
	}
}

// TestMesh_OpenListenersNeedTLSAndKeys starts meshes on addresses that others can reach.
func TestMesh_OpenListenersNeedTLSAndKeys(t *testing.T) {
	keys, _ := keyFile(t, auth.Key{Name: "user", Roles: []auth.Role{auth.User}})
	for _, c := range []app.MeshConfig{
		{HTTP: "0.0.0.0:0"}, {GRPC: "0.0.0.0:0"},
		{HTTP: "0.0.0.0:0", Access: app.AccessConfig{Keys: keys}}, {GRPC: "0.0.0.0:0", Access: app.AccessConfig{Keys: keys}},
	} {
		m, err := app.Start(t.Context(), c)
		if err == nil {
			m.Close()
		}
		if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "--insecure-listen") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	c := app.MeshConfig{HTTP: "0.0.0.0:0", GRPC: "0.0.0.0:0", Insecure: true}
	m, err := app.Start(t.Context(), c)
	if err != nil {
		t.Fatalf("with --insecure-listen: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// sockets returns the addresses on which this process listens, or skips the test.
func sockets(t *testing.T) map[string]bool {
	t.Helper()
	own := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("this system does not list the sockets of a process")
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(link, "socket:[") {
			own[strings.Trim(link, "socket:[]")] = true
		}
	}
	found := map[string]bool{}
	for _, family := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/self/net/" + family)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" || !own[f[9]] { // 0A is LISTEN
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			found[fmt.Sprintf("127.0.0.1:%d", n)] = true
		}
	}
	return found
}

// TestMesh_AStrangerReachesNothing knocks at every port that a mesh with keys opens.
func TestMesh_AStrangerReachesNothing(t *testing.T) {
	before := sockets(t)
	keys, secrets := keyFile(t, auth.Key{Name: "operator", Roles: []auth.Role{auth.Operator}})
	m, _ := startMesh(t, t.Context(), app.MeshConfig{
		Kernels: app.Kernels{Set: ref.New[float32](), Threads: 1},
		Model:   shared(t, "models/stories260K/stories260K-f32.gguf"), Train: true,
		Runs: app.TrainerConfig{Dir: t.TempDir(), Data: t.TempDir()},
		GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Access: app.AccessConfig{Keys: keys},
	})
	opened := sockets(t)
	for addr := range before {
		delete(opened, addr)
	}
	if len(opened) != 2 || !opened[m.GRPCAddr()] || !opened[m.HTTPAddr()] {
		t.Fatalf("a mesh listens on %v, and should on %s and %s alone", opened, m.GRPCAddr(), m.HTTPAddr())
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for addr := range opened {
		for _, path := range []string{"/", "/healthz", "/readyz", "/metrics", "/v1/models", "/api/tags",
			"/debug/pprof/", "/varz", "/connz", "/jsz", "/v1/agent/self", "/nothing"} {
			q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp, err := client.Do(q); err == nil { // the gRPC port speaks no HTTP/1.1
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s%s answers %d", addr, path, resp.StatusCode)
				}
				resp.Body.Close()
			} else if addr == m.HTTPAddr() {
				t.Errorf("%s%s: %v", addr, path, err)
			}
		}
	}
	for secret, want := range map[string]codes.Code{"": codes.Unauthenticated, secrets["operator"]: codes.OK} {
		d := rpc.NewDialer(rpc.DialOptions{Secret: secret})
		conn, err := d.Dial(m.GRPCAddr())
		if err != nil {
			t.Fatal(err)
		}
		_, err = routerv1.NewRouterServiceClient(conn).Topology(t.Context(), &routerv1.TopologyRequest{})
		if status.Code(err) != want {
			t.Errorf("the topology: %v, want %v", err, want)
		}
		d.Close()
	}
}
