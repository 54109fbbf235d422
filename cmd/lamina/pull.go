package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

type pullCmd struct {
	Source     string   `arg:"" help:"Path of a GGUF file or model folder; address (https://...) of a .gguf file or of a folder; or OWNER/NAME of a repository with Hugging Face's layout."`
	Name       string   `       help:"Name of the model in the store. Default: that of the file, folder or repository."`
	Include    []string `       help:"Pattern of the weight files to take, such as '*Q4_K_M*', where a source has several models. Can be repeated."                                         sep:"none"`
	Revision   string   `       help:"Branch, tag or commit of a repository. Default: main."`
	Endpoint   string   `       help:"Server of repositories."                                                                                                                                         default:"${endpoint}" env:"HF_ENDPOINT"`
	TokenFile  string   `       help:"File with a token for the server. Default: none."`
	Replace    bool     `       help:"Replace a model of the same name that came from elsewhere."`
	MaxSize    string   `       help:"Size above which a model is refused, such as 20GB. Default: 4TiB."`
	StoreLimit string   `       help:"Size of the store, such as 200GB: the models that were used least recently make room, but none in use. Default: no limit."                                                             env:"LAMINA_STORE_LIMIT"`
	Workers    int      `       help:"Reads at the same time."                                                                                                                                         default:"4"`
	Format     string   `       help:"Output: text or json."                                                                                                                                           default:"text"                                 enum:"text,json"`
}

// pulled is what lamina pull prints, as JSON.
type pulled struct {
	Name     string `json:"name"`
	Digest   string `json:"digest"`
	Bytes    int64  `json:"bytes"`
	Files    int    `json:"files"`
	Fetched  int64  `json:"fetched_bytes"`
	Source   string `json:"source"`
	Revision string `json:"revision,omitempty"`
}

const maxWorkers = 32

// Run fetches a model into the store.
func (c *pullCmd) Run(e *verb.Env) error {
	if c.Workers < 1 || c.Workers > maxWorkers {
		return fault.Field("workers", "want 1 to %d, got %d", maxWorkers, c.Workers)
	}
	most, err := parseMemory("max-size", c.MaxSize)
	if err != nil {
		return err
	}
	limit, err := parseMemory("store-limit", c.StoreLimit)
	if err != nil {
		return err
	}
	source, done, err := c.source()
	if err != nil {
		return err
	}
	defer done()
	s, err := openStore(e.Store, false, store.Options{Limit: limit})
	if err != nil {
		return err
	}
	defer s.Close()
	bar := newPullBar(e.Stderr)
	r, err := pull.Pull(e.Ctx, s, source, pull.Options{Name: c.Name, Replace: c.Replace, MaxSize: most,
		Workers: c.Workers, Progress: bar.show})
	bar.end()
	if err != nil {
		return err
	}
	m := r.Manifest
	if c.Format == "json" {
		return verb.PrintJSON(e, pulled{m.Name, m.Digest, m.Size(), len(m.Files), r.Fetched, m.Source, m.Revision})
	}
	_, err = fmt.Fprintf(e.Stdout, "%s: %s in %s, %s fetched, %s\nuse it as -m %s\n", m.Name, bytesText(m.Size()),
		plural.Of(len(m.Files), "file"), bytesText(r.Fetched), m.Digest, m.Name)
	return err
}

// source finds out what kind of source was named.
func (c *pullCmd) source() (pull.Source, func(), error) {
	token, err := readToken("token-file", c.TokenFile)
	if err != nil {
		return nil, nil, err
	}
	return sourceOf(c.Source,
		sourceOptions{token: token, endpoint: c.Endpoint, revision: c.Revision, include: c.Include})
}

// readToken reads the token of a file that a flag names; none if it names none.
func readToken(flag, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fault.Wrap(fault.CodeOf(err), err, "read the token of --%s", flag)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \r\n\t") {
		return "", fault.Field(flag, "%s: want one token", path)
	}
	return token, nil
}

// sourceOptions are the settings of a source of models.
type sourceOptions struct {
	token, endpoint, revision string
	include                   []string
}

// sourceOf finds out what kind of source a text names. done ends its use.
func sourceOf(text string, o sourceOptions) (source pull.Source, done func(), err error) {
	remote := strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://")
	_, err = os.Stat(text)
	switch {
	case remote && len(o.include) > 0:
		return nil, nil, fault.Field("include", "it is for folders and repositories: name the file in the address")
	case remote:
		client := pull.NewClient(pull.ClientOptions{Token: o.token})
		return &pull.Web{Client: client, URL: text}, client.Close, nil
	case err == nil:
		return &pull.Path{Path: text, Include: o.include}, func() {}, nil
	case pull.IsRepository(text):
		client := pull.NewClient(pull.ClientOptions{Token: o.token})
		return &pull.Hub{Client: client, Endpoint: o.endpoint, Repository: text, Revision: o.revision,
			Include: o.include}, client.Close, nil
	}
	return nil, nil, fault.New(
		fault.NotFound,
		"pull %.200s: it is no file or folder here, no address that begins with "+
			"https://, and no repository OWNER/NAME",
		text,
	)
}

// pullBar shows the progress of a pull: on a terminal a bar that is drawn again and again, elsewhere plain lines.
type pullBar struct {
	out      io.Writer
	terminal bool
	drawn    bool
	began    time.Time
	told     time.Time // of the last plain line
}

// pullLines is the time between two plain lines.
const pullLines = 10 * time.Second

func newPullBar(out io.Writer) *pullBar {
	b := &pullBar{out: out, began: time.Now()}
	b.told = b.began
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		b.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return b
}

// show shows the progress.
func (b *pullBar) show(p pull.Progress) {
	now := time.Now()
	line := pullLine(p, now.Sub(b.began))
	switch {
	case b.terminal:
		fmt.Fprintf(b.out, "\r%s\x1b[K", line) // and erase what is left of a longer line
		b.drawn = true
	case now.Sub(b.told) >= pullLines:
		b.told = now
		fmt.Fprintln(b.out, line)
	}
}

// end ends the line of the bar.
func (b *pullBar) end() {
	if b.drawn {
		fmt.Fprintln(b.out)
	}
}

// pullLine returns one line: a bar, bytes, speed and the remaining time.
func pullLine(p pull.Progress, took time.Duration) string {
	const width = 20
	filled := int(width * p.Done / max(1, p.Total))
	out := fmt.Sprintf("%s [%s%s] %3d%%  %s of %s", p.Name, strings.Repeat("#", filled),
		strings.Repeat("-", width-filled), 100*p.Done/max(1, p.Total), bytesText(p.Done), bytesText(p.Total))
	fetched, seconds := p.Done-p.Had, took.Seconds()
	if fetched <= 0 || seconds <= 0 {
		return out
	}
	rate := float64(fetched) / seconds
	out += fmt.Sprintf("  %s/s", bytesText(int64(rate)))
	if left := time.Duration(float64(p.Total-p.Done) / rate * float64(time.Second)); p.Done < p.Total {
		out += fmt.Sprintf("  %s left", left.Round(time.Second))
	}
	return out + "  " + p.File
}
