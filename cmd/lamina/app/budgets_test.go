package app_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/pkg/auth"
)

// TestRouters_ShareBudgetsOverARegistry uses up a key's budget at one of two routers. They serve no model: requests
// count before that is found out.
func TestRouters_ShareBudgetsOverARegistry(t *testing.T) {
	registry, err := agent.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	const limit = 60 // a minute
	keys, secrets := keyFile(t, auth.Key{Name: "ada", Roles: []auth.Role{auth.User}, Requests: limit})
	var addrs []string
	for range 2 {
		addr := closedAddr(t)
		start(t, registry.Addr(), func(ctx context.Context, c app.ServiceConfig) error {
			c.Metrics, c.Access = "", app.AccessConfig{Keys: keys, OpenProbes: true}
			return app.Router(ctx, c, app.RouterConfig{HTTP: addr, Drain: time.Second, AdapterDir: t.TempDir()})
		})
		addrs = append(addrs, addr)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: time.Minute}
	ask := func(router int) (status int, remaining int, header http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			fmt.Sprintf("http://%s/v1/completions", addrs[router]), strings.NewReader(`{"model":"none","prompt":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secrets["ada"])
		resp, err := client.Do(r)
		if err != nil {
			return 0, limit, nil // it does not listen yet
		}
		defer resp.Body.Close()
		if remaining, err = strconv.Atoi(resp.Header.Get("X-Ratelimit-Remaining-Requests")); err != nil {
			t.Fatalf("%s: %q", resp.Status, resp.Header)
		}
		return resp.StatusCode, remaining, resp.Header
	}
	// The first router is kept at the end of its budget. The second one is asked so seldom that its own requests, of
	// which it gains one a second, never use much of it.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	ends := time.After(3 * time.Minute)
	for n := 1; ; n++ {
		for range 5 {
			ask(0)
		}
		if n%40 == 0 {
			if _, remaining, _ := ask(1); remaining < limit/2 {
				break
			}
		}
		select {
		case <-tick.C:
		case <-ends:
			t.Fatal("the second router does not count what the first one has let in")
		}
	}
	// Whoever asks both is limited as by one: the second one refuses, and says until when.
	for {
		for range 5 {
			ask(0)
		}
		status, _, header := ask(1)
		if status == http.StatusTooManyRequests {
			if header.Get("Retry-After") == "" || header.Get("X-Ratelimit-Limit-Requests") != strconv.Itoa(limit) {
				t.Errorf("headers are %q", header)
			}
			return
		}
		select {
		case <-ends:
			t.Fatalf("the second router goes on letting requests in: %d", status)
		default:
		}
	}
}
