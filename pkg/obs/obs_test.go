package obs_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestNewLogger_LevelAndFormat(t *testing.T) {
	var b bytes.Buffer
	log, level, err := obs.NewLogger(&b, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	log.Warn("seen", "step", 3)
	var line struct {
		Msg  string
		Step int
	}
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Msg != "seen" || line.Step != 3 {
		t.Errorf("got %q, %v", b.String(), err)
	}
	level.Set(slog.LevelInfo)
	b.Reset()
	if log.Info("seen now"); !strings.Contains(b.String(), "seen now") {
		t.Errorf("the level was changed, and the log is %q", b.String())
	}
	for _, bad := range [][2]string{{"loud", "text"}, {"info", "xml"}} {
		if _, _, err := obs.NewLogger(&b, bad[0], bad[1]); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestHandler_ShowsMetricsHealthAndReadiness(t *testing.T) {
	registry := obs.NewRegistry()
	scope := obs.NewScope(registry, "router")
	scope.Counter("requests_total", "Requests.", "model").WithLabelValues("tiny").Add(3)
	scope.Gauge("slots", "Slots.").WithLabelValues().Set(7)
	scope.Level("waiting", "Waiting.", func() float64 { return 5 })
	scope.Seconds("first_token_seconds", "Time to first token.").WithLabelValues().Observe(0.2)
	var notReady error
	h := obs.Handler(registry, func() error { return notReady })
	_, text := get(t, h, "/metrics")
	for _, want := range []string{
		`lamina_router_requests_total{model="tiny"} 3`, "lamina_router_slots 7", "lamina_router_waiting 5",
		"lamina_router_first_token_seconds_count 1", "go_goroutines",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if code, _ := get(t, h, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d", code)
	}
	notReady = errors.New("wait for a pipeline")
	if code, text := get(t, h, "/readyz"); code != http.StatusServiceUnavailable ||
		!strings.Contains(text, "wait for a pipeline") {
		t.Errorf("/readyz of a service that is not ready: %d %q", code, text)
	}
	if code, _ := get(t, h, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz of a service that is not ready: %d", code)
	}
	if code, _ := get(t, h, "/debug/pprof/cmdline"); code != http.StatusNotFound {
		t.Errorf("pprof: %d", code)
	}
}

func TestScope_WithoutARegistryStillCounts(t *testing.T) {
	obs.NewScope(nil, "shard").Counter("steps_total", "Steps.").WithLabelValues().Inc()
}

// serve runs a handler and sends it one request. The response is still open when serve returns.
func serve(t *testing.T, drain time.Duration, h http.HandlerFunc) (body io.ReadCloser, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- obs.ServeHTTP(ctx, l, h, drain) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp.Body, func() error {
		cancel()
		return <-done
	}
}

func TestServeHTTP_LetsAnswersFinish(t *testing.T) {
	finish := make(chan struct{})
	body, stop := serve(t, 30*time.Second, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "first\n")
		http.NewResponseController(w).Flush()
		<-finish
		io.WriteString(w, "last\n")
	})
	if line, err := bufio.NewReader(io.LimitReader(body, 6)).ReadString('\n'); err != nil || line != "first\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	close(finish)
	if rest, err := io.ReadAll(body); err != nil || string(rest) != "last\n" {
		t.Errorf("got %q, %v", rest, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestServeHTTP_CutsAnswersThatDoNotFinish(t *testing.T) {
	body, stop := serve(t, 10*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(body); err == nil {
		t.Error("a response that was cut looks complete")
	}
}
