// Package admin serves what an operator needs to look into a process: profiles of the Go runtime, the effective
// configuration, what the program was built from, and the log level, which can be changed. It knows nothing of callers:
// its user puts the gate of pkg/auth in front of it, with the policy of auth.AdminRoutes.
package admin

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	maxProfile = 5 * time.Minute
	maxBody    = 1 << 10
)

// Options are what a process shows.
type Options struct {
	Version string
	Started time.Time
	// Level is the log level; nil if it cannot be changed.
	Level *slog.LevelVar
	// Config writes the effective configuration without secrets; nil for none.
	Config func(io.Writer) error
	Log    *slog.Logger // notes changes; nil for none
}

// Handler returns the handler of all routes.
func Handler(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", index)
	mux.HandleFunc("GET /debug/pprof/{$}", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/{profile}", profile)
	mux.HandleFunc("GET /build", o.build)
	mux.HandleFunc("GET /config", o.config)
	mux.HandleFunc("GET /loglevel", o.level)
	mux.HandleFunc("PUT /loglevel", o.setLevel)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, `GET /build          what this program was built from
GET /config         its effective configuration, without secrets
GET /loglevel       its log level; PUT {"level": "debug"} changes it
GET /debug/pprof/   profiles: go tool pprof http://ADDRESS/debug/pprof/profile?seconds=10
`)
}

// profile serves a profile. It leaves out the command line, which may have secrets in it and which /config shows
// without them, and bounds how long a profile takes.
func profile(w http.ResponseWriter, r *http.Request) {
	if text := r.URL.Query().Get("seconds"); text != "" {
		if n, err := strconv.ParseFloat(text, 64); err != nil || !(n >= 0 && n <= maxProfile.Seconds()) {
			http.Error(w, fault.Field("seconds", "want 0 to %g, got %.64q", maxProfile.Seconds(), text).Error(),
				http.StatusBadRequest)
			return
		}
	}
	switch name := r.PathValue("profile"); name {
	case "cmdline":
		http.NotFound(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Handler(name).ServeHTTP(w, r)
	}
}

func write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // fails only if the client has gone
}

// build writes what is known of the build.
func (o Options) build(w http.ResponseWriter, _ *http.Request) {
	out := struct {
		Version  string            `json:"version"`
		Go       string            `json:"go"`
		Started  time.Time         `json:"started"`
		Settings map[string]string `json:"settings"`
		Modules  map[string]string `json:"modules"`
	}{Version: o.Version, Started: o.Started.UTC(), Settings: map[string]string{}, Modules: map[string]string{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		out.Go = info.GoVersion
		for _, s := range info.Settings {
			out.Settings[s.Key] = s.Value
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			out.Modules[m.Path] = m.Version
		}
	}
	write(w, out)
}

func (o Options) config(w http.ResponseWriter, r *http.Request) {
	if o.Config == nil {
		http.NotFound(w, r)
		return
	}
	var text strings.Builder
	if err := o.Config(&text); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
	_, _ = io.WriteString(w, text.String())
}

// levelBody is the body of /loglevel both ways.
type levelBody struct {
	Level string `json:"level"` // debug, info, warn or error
}

func (o Options) level(w http.ResponseWriter, r *http.Request) {
	if o.Level == nil {
		http.NotFound(w, r)
		return
	}
	write(w, levelBody{strings.ToLower(o.Level.Level().String())})
}

func (o Options) setLevel(w http.ResponseWriter, r *http.Request) {
	if o.Level == nil {
		http.NotFound(w, r)
		return
	}
	var body levelBody
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		http.Error(w, `read body: want {"level": "debug"}`, http.StatusBadRequest)
		return
	}
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"error": slog.LevelError}
	level, ok := levels[body.Level]
	if !ok {
		http.Error(w, fault.Field("level", "want debug, info, warn or error, got %.64q", body.Level).Error(),
			http.StatusBadRequest)
		return
	}
	before := o.Level.Level()
	o.Level.Set(level)
	o.Log.LogAttrs(r.Context(), max(level, slog.LevelWarn), "the log level was changed",
		slog.String("from", before.String()), slog.String("to", level.String()))
	o.level(w, r)
}
