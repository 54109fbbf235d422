package app_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/token/tokentest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// adminMesh starts a mesh without a model, with a listener for administrators, and returns a function that asks it.
func adminMesh(t *testing.T, c app.MeshConfig) (ask func(secret, method, path, body string) (int, string)) {
	t.Helper()
	bound := make(chan string, 1)
	c.Admin.Bound = func(addr string) { bound <- addr }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	m, err := app.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	addr := <-bound
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(secret, method, path, body string) (int, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if secret != "" {
			q.Header.Set("Authorization", "Bearer "+secret)
		}
		if strings.HasPrefix(path, "/build") {
			q.Host = "evil.example" // as after DNS rebinding
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
		return resp.StatusCode, string(text)
	}
}

func TestMesh_AdminListenerNeedsAnOperator(t *testing.T) {
	keys, secrets := keyFile(t, auth.Key{Name: "operator", Roles: []auth.Role{auth.Operator}},
		auth.Key{Name: "user", Roles: []auth.Role{auth.User}})
	issuer := tokentest.New(t, "https://login.example.org", nil, "ES256")
	issuers := filepath.Join(t.TempDir(), "issuers.yaml")
	text := fmt.Sprintf("issuers:\n- issuer: %s\n  audiences: [lamina]\n  keys: %s\n  grants:\n"+
		"  - {when: {groups: ops}, roles: [operator]}\n  - {roles: [user]}\n", issuer.Name, issuer.Save(t, t.TempDir()))
	if err := os.WriteFile(issuers, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var level slog.LevelVar
	audit := filepath.Join(t.TempDir(), "audit.log")
	ask := adminMesh(t, app.MeshConfig{
		Access: app.AccessConfig{Keys: keys, Tokens: issuers, Audit: audit},
		Admin: app.AdminConfig{Addr: ":0", Level: &level, Config: func(w io.Writer) error {
			_, err := io.WriteString(w, "up: {}\n")
			return err
		}},
	})
	operator := issuer.Token(t, jwt.MapClaims{"groups": []string{"ops"}})
	for _, c := range []struct {
		name, secret string
		want         int
	}{
		{"nobody", "", 401}, {"a user", secrets["user"], 403}, {"a user by token", issuer.Token(t, nil), 403},
		{"an expired token", issuer.Token(t, jwt.MapClaims{"groups": "ops", "exp": 1}), 401},
		{"an operator", secrets["operator"], 200}, {"an operator by token", operator, 200},
	} {
		for _, path := range []string{"/config", "/debug/pprof/heap", "/debug/pprof/", "/build", "/"} {
			if code, text := ask(c.secret, http.MethodGet, path, ""); code != c.want {
				t.Errorf("%s gets %s: %d %.200s", c.name, path, code, text)
			}
		}
		if code, text := ask(c.secret, http.MethodPut, "/loglevel", `{"level":"error"}`); code != c.want {
			t.Errorf("%s sets the log level: %d %s", c.name, code, text)
		}
	}
	if code, _ := ask(operator, http.MethodGet, "/metrics", ""); code != http.StatusNotFound {
		t.Errorf("a route of other listeners: %d", code)
	}
	if level.Level() != slog.LevelError {
		t.Errorf("the level is %v", level.Level())
	}
	lines, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(lines), "PUT /loglevel"); n != 6 || !strings.Contains(string(lines),
		`"who":"token:ada@https://login.example.org"`) {
		t.Errorf("%d lines of the audit log: %s", n, lines)
	}
}

func TestMesh_AdminListenerOnLoopbackServesNoWebsite(t *testing.T) {
	ask := adminMesh(t, app.MeshConfig{Admin: app.AdminConfig{Addr: "127.0.0.1:0"}})
	for path, want := range map[string]int{"/": 200, "/debug/pprof/heap": 200, "/build": 403, "/loglevel": 404} {
		if code, text := ask("", http.MethodGet, path, ""); code != want {
			t.Errorf("%s: %d %.200s", path, code, text)
		}
	}
	for addr, want := range map[string]fault.Code{"0.0.0.0:0": fault.FailedPrecondition, "host": fault.Invalid} {
		m, err := app.Start(t.Context(), app.MeshConfig{Insecure: true, Admin: app.AdminConfig{Addr: addr}})
		if err == nil {
			m.Close()
		}
		if fault.CodeOf(err) != want {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
