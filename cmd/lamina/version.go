package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
)

// version is the release that this source becomes; make release names its binaries by it.
const version = "0.1.0-dev"

type versionCmd struct {
	Format string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// versionResult is what --format json prints.
type versionResult struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // the commit, if the build recorded it
	Modified bool   `json:"modified"`           // the working tree differed from the commit
	Time     string `json:"time,omitempty"`     // of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints the version and what the Go linker recorded about the build.
func (c *versionCmd) Run(e *verb.Env) error {
	r := buildVersion()
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	line := "lamina " + r.Version
	if r.Revision != "" {
		line += fmt.Sprintf(" (%.12s of %s)", r.Revision, r.Time)
	}
	_, err := fmt.Fprintf(e.Stdout, "%s, %s, %s\n", line, r.Go, r.Platform)
	return err
}

func buildVersion() versionResult {
	r := versionResult{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return r
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			r.Revision = s.Value
		case "vcs.modified":
			r.Modified = s.Value == "true"
		case "vcs.time":
			r.Time = s.Value
		}
	}
	return r
}
