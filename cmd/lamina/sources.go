package main

import (
	"os"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// sourceFlags name where models come from that no shard has.
type sourceFlags struct {
	Source    []string `help:"With --auto: where a model comes from that no shard has: an address (https://...) of a .gguf file or folder, OWNER/NAME of a repository, which may end in @REVISION, or a path. Can be repeated. Implies --fetch." sep:"none"`
	Revision  string   `help:"Branch, tag or commit of the repositories of --source that name none. Default: main."  name:"source-revision"`
	TokenFile string   `help:"File with a token for the server of --source. It is sent to one server alone: with several sources, all have to be repositories. Default: none." name:"source-token-file"`
	Include   []string `help:"Pattern of the weight files to take, such as '*Q4_K_M*', where a repository or folder of --source has several models. Can be repeated." name:"source-include" sep:"none"`
	Endpoint  string   `help:"Server of repositories." default:"${endpoint}" env:"HF_ENDPOINT" name:"source-endpoint"`
}

// given reports whether any of the flags was given. The server of repositories has a default.
func (c *sourceFlags) given() bool {
	return len(c.Source) > 0 || c.Revision != "" || c.TokenFile != "" || len(c.Include) > 0
}

// sources opens the sources. done ends their use.
func (c *sourceFlags) sources() (out []app.OutsideSource, done func(), err error) {
	var ends []func()
	done = func() {
		for _, end := range ends {
			end()
		}
	}
	defer func() {
		if err != nil {
			done()
			out, done = nil, func() {}
		}
	}()
	if len(c.Source) == 0 && c.given() {
		return nil, done, fault.Field("source", "--source-revision, --source-token-file and --source-include are for "+
			"--source, and there is none")
	}
	token, err := readToken("source-token-file", c.TokenFile)
	if err != nil {
		return nil, done, err
	}
	for _, text := range c.Source {
		o := sourceOptions{token: token, endpoint: c.Endpoint, revision: c.Revision, include: c.Include}
		name, remote := text, strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://")
		_, missing := os.Stat(text)
		if at := strings.LastIndexByte(text, '@'); at > 0 && !remote && missing != nil {
			if name, o.revision = text[:at], text[at+1:]; o.revision == "" {
				return nil, done, fault.Field("source", "%q: want a revision behind the @", text)
			}
		}
		if remote && token != "" && len(c.Source) > 1 {
			return nil, done, fault.Field("source-token-file", "it would be sent to the server of %q and to others: give "+
				"one --source", text)
		}
		source, end, err := sourceOf(name, o)
		if err != nil {
			return nil, done, err
		}
		ends = append(ends, end)
		out = append(out, app.OutsideSource{Name: text, Source: source})
	}
	return out, done, nil
}
