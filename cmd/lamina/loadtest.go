package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// defaultPrompts are sent when no file of prompts is given.
const defaultPrompts = "The prince\nIn the evening the whole army\nNatasha looked at him and\nThe old count said that\n"

type loadtestCmd struct {
	URL         []string          `name:"url"          help:"Base URL of the server, such as http://127.0.0.1:8000/v1; without a path /v1 is added. Several servers take requests in turn."                                        default:"http://127.0.0.1:8080"`
	Endpoint    loadtest.Endpoint `                    help:"API: chat, completions, or auto for chat when a prompt has messages."                                                                                                 default:"auto"                  enum:"auto,chat,completions"`
	Model       string            `                    help:"Name of the model. Default: the first that the server lists."                                                                                                                                                                      short:"m"`
	Prompts     string            `                    help:"File of prompts: one per line, or JSON objects with prompt or messages and any other field of a request; tenant names the tenant. Default: four short ones."                                                                       short:"p"`
	Streams     int               `                    help:"Requests in flight: always in a closed loop (default 8), at most in an open one (default 512)."                                                                       default:"0"`
	Rate        float64           `                    help:"Requests per second, at the times of a Poisson process (open loop). Default: a closed loop, in which each stream sends its next request when the last one has ended." default:"0"`
	Requests    int               `                    help:"End after this number of requests. Default: 100, unless --duration is given."                                                                                         default:"0"                                                  short:"n"`
	Duration    time.Duration     `                    help:"End after this time."                                                                                                                                                 default:"0"                                                  short:"d"`
	MaxTokens   int               `                    help:"Maximum number of tokens of an answer. Default: the server's."                                                                                                        default:"64"`
	Temperature *float64          `                    help:"Temperature. Default: the server's."`
	Tenants     string            `                    help:"Tenants and their shares of the requests, such as a=4,b=1."`
	Seed        int64             `                    help:"Seed of arrival times, tenants, and sampling: a request's seed is this plus the index of its prompt."                                                                 default:"1"`
	Timeout     time.Duration     `                    help:"Deadline of each stream."                                                                                                                                             default:"2m"`
	Stall       time.Duration     `                    help:"A longer gap between two tokens counts as a stall."                                                                                                                   default:"1s"`
	TTFTLimit   time.Duration     `name:"ttft-limit"   help:"Goodput counts only streams whose first token came within this time. Default: all that ended well."                                                                   default:"0"`
	Resume      bool              `                    help:"Ask for resumable streams, as Lamina has them, and resume a stream that breaks from the next --url."`
	Record      string            `                    help:"File to write the texts of the answers to."`
	Expect      string            `                    help:"File of texts, written by --record, that the answers must equal."`
	APIKeyFile  string            `name:"api-key-file" help:"File with the API key. Default: the environment variable OPENAI_API_KEY."`
	Key         string            `                                                                                                                                                                                                                                                                       hidden:"" env:"OPENAI_API_KEY"`
	Format      string            `                    help:"Output: text or json."                                                                                                                                                default:"text"                  enum:"text,json"`
}

// Run puts the load on a server and prints what it measured, also when it is interrupted.
func (c *loadtestCmd) Run(e *verb.Env) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	report, err := loadtest.Run(e.Ctx, config)
	if err != nil {
		return err
	}
	if c.Record != "" {
		if err := writeTexts(c.Record, report.Texts); err != nil {
			return err
		}
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, report)
	}
	return report.Print(e.Stdout)
}

func (c *loadtestCmd) config() (loadtest.Config, error) {
	out := loadtest.Config{
		URLs: c.URL, Endpoint: c.Endpoint, Model: c.Model, Key: c.Key, Streams: c.Streams, Rate: c.Rate,
		Requests: c.Requests, Duration: c.Duration, MaxTokens: c.MaxTokens, Temperature: c.Temperature, Seed: c.Seed,
		Timeout: c.Timeout, Stall: c.Stall, TTFTLimit: c.TTFTLimit, Resume: c.Resume, Record: c.Record != "",
	}
	if out.Requests == 0 && out.Duration == 0 {
		out.Requests = 100
	}
	var err error
	if out.Tenants, err = loadtest.ParseTenants(c.Tenants); err != nil {
		return out, err
	}
	if out.Prompts, err = readPrompts(c.Prompts); err != nil {
		return out, err
	}
	if c.Expect != "" {
		f, err := os.Open(c.Expect)
		if err != nil {
			return out, fault.Wrap(fault.NotFound, err, "open texts")
		}
		defer f.Close()
		if out.Expect, err = loadtest.ReadTexts(f); err != nil {
			return out, fmt.Errorf("%s: %w", c.Expect, err)
		}
	}
	if c.APIKeyFile != "" {
		key, err := os.ReadFile(c.APIKeyFile)
		if err != nil {
			return out, fault.Wrap(fault.NotFound, err, "read API key")
		}
		out.Key = strings.TrimSpace(string(key))
	}
	return out, nil
}

// readPrompts reads a file of prompts, or the default ones.
func readPrompts(path string) ([]loadtest.Prompt, error) {
	if path == "" {
		return loadtest.ParsePrompts(strings.NewReader(defaultPrompts))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "open prompts")
	}
	defer f.Close()
	prompts, err := loadtest.ParsePrompts(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return prompts, nil
}

// writeTexts writes texts to a file, which appears complete or not at all.
func writeTexts(path string, texts *loadtest.Texts) error {
	part := path + ".part"
	f, err := os.Create(part)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "write texts")
	}
	err = texts.Write(f)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		_ = os.Remove(part)
		return fault.Wrap(fault.Unavailable, err, "write texts")
	}
	return nil
}
