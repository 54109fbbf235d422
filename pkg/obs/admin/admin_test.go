package admin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/obs/admin"
)

func ask(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}

func TestHandler_ChangesTheLogLevel(t *testing.T) {
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: &level}))
	h := admin.Handler(admin.Options{Level: &level, Log: logger})
	if w := ask(h, http.MethodGet, "/loglevel", ""); !strings.Contains(w.Body.String(), `"warn"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	logger.Debug("hidden")
	if w := ask(h, http.MethodPut, "/loglevel", `{"level":"debug"}`); w.Code != http.StatusOK ||
		!strings.Contains(w.Body.String(), `"debug"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	logger.Debug("shown")
	if text := log.String(); strings.Contains(text, "hidden") || !strings.Contains(text, "shown") ||
		!strings.Contains(text, "from=WARN to=DEBUG") {
		t.Errorf("the log: %s", text)
	}
	for _, body := range []string{"", "debug", `{"level":"loud"}`, `{"level":7}`, `{"level":"info","x":1}`,
		`{"level":"` + strings.Repeat("x", 2000) + `"}`} {
		if w := ask(h, http.MethodPut, "/loglevel", body); w.Code != http.StatusBadRequest {
			t.Errorf("%.40s: %d %s", body, w.Code, w.Body)
		}
	}
	if level.Level() != slog.LevelDebug {
		t.Error("a wrong body has changed the level")
	}
}

func TestHandler_ShowsBuildConfigurationAndProfiles(t *testing.T) {
	fail := error(nil)
	h := admin.Handler(admin.Options{Version: "v9", Started: time.Unix(7, 0), Config: func(w io.Writer) error {
		_, _ = io.WriteString(w, "router: {}\n")
		return fail
	}})
	var build struct {
		Version, Go string
		Started     time.Time
		Modules     map[string]string
	}
	w := ask(h, http.MethodGet, "/build", "")
	if err := json.Unmarshal(w.Body.Bytes(), &build); err != nil || build.Version != "v9" || build.Go == "" ||
		!build.Started.Equal(time.Unix(7, 0)) {
		t.Errorf("%v: %s", err, w.Body)
	}
	if w := ask(h, http.MethodGet, "/config", ""); w.Code != http.StatusOK || w.Body.String() != "router: {}\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	fail = errors.New("broken")
	if w := ask(h, http.MethodGet, "/config", ""); w.Code != http.StatusInternalServerError ||
		strings.Contains(w.Body.String(), "router") {
		t.Errorf("a configuration that cannot be written: %d %s", w.Code, w.Body)
	}
	for path, want := range map[string]int{
		"/": 200, "/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/goroutine?debug=1": 200,
		"/debug/pprof/profile?seconds=301": 400, "/debug/pprof/trace?seconds=-1": 400,
		"/debug/pprof/heap?seconds=NaN":  400,
		"/debug/pprof/profile?seconds=x": 400, "/debug/pprof/cmdline": 404, "/debug/pprof/nothing": 404,
		"/nothing":  404,
		"/loglevel": 404,
	} {
		if w := ask(h, http.MethodGet, path, ""); w.Code != want {
			t.Errorf("%s: %d %.100s", path, w.Code, w.Body)
		}
	}
	if w := ask(admin.Handler(admin.Options{}), http.MethodGet, "/config", ""); w.Code != http.StatusNotFound {
		t.Errorf("no configuration: %d", w.Code)
	}
}

// TestHandler_EveryRouteNeedsAnOperator compares the routes with their policy.
func TestHandler_EveryRouteNeedsAnOperator(t *testing.T) {
	h := admin.Handler(admin.Options{Level: &slog.LevelVar{}, Config: func(io.Writer) error { return nil }})
	for pattern, rule := range auth.AdminRoutes() {
		if rule.Verb != auth.Operate || len(rule.Services) > 0 {
			t.Errorf("%s: %+v", pattern, rule)
		}
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{$}", "", "{profile}", "heap").Replace(path)
		w := ask(h, method, path, `{"level":"info"}`)
		if w.Code != http.StatusOK || method != http.MethodGet != rule.Audited {
			t.Errorf("%s: %d, audited %v", pattern, w.Code, rule.Audited)
		}
	}
}
