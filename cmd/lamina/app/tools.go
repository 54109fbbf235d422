package app

import (
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
	"github.com/lamina-mesh/lamina/pkg/mcptools"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/pkg/webtools"
	"github.com/lamina-mesh/lamina/services/router/agent"
)

// toolsFile is the file of the tools that a router runs for requests (docs/tools.md). What it leaves out is off.
type toolsFile struct {
	Rounds      int                  `yaml:"rounds"`       // turns of the model that may call tools
	Calls       int                  `yaml:"calls"`        // of all turns
	ResultBytes int                  `yaml:"result_bytes"` // of one result, as the model sees it
	Bytes       int                  `yaml:"bytes"`        // of all results
	CallTimeout time.Duration        `yaml:"call_timeout"` // of one call
	Timeout     time.Duration        `yaml:"timeout"`      // of all calls
	Search      *searchFile          `yaml:"web_search"`
	Page        *pageFile            `yaml:"read_page"`
	MCP         map[string]mcpServer `yaml:"mcp"`
}

type searchFile struct {
	Results   int              `yaml:"results"`
	Timeout   time.Duration    `yaml:"timeout"` // for one provider
	Providers []searchProvider `yaml:"providers"`
}

type searchProvider struct {
	Kind    string `yaml:"kind"`
	URL     string `yaml:"url"`
	KeyFile string `yaml:"key_file"`
}

type pageFile struct {
	Bytes     int64         `yaml:"bytes"`
	Timeout   time.Duration `yaml:"timeout"`
	Redirects *int          `yaml:"redirects"`
	Ports     []uint16      `yaml:"ports"`
	Allow     []string      `yaml:"allow"`       // networks that may be reached although they are not public
	Any       bool          `yaml:"any_address"` // also addresses that nobody has mentioned
}

type mcpServer struct {
	Command   []string          `yaml:"command"`
	Env       map[string]string `yaml:"env"`
	Dir       string            `yaml:"dir"`
	URL       string            `yaml:"url"`
	TokenFile string            `yaml:"token_file"`
	Tools     []string          `yaml:"tools"`
}

// readTools reads a file of tools. An error names the file and the setting.
func readTools(path string) (*toolsFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read the file of tools")
	}
	return parseTools(path, text)
}

// parseTools reads the content of a file of tools.
func parseTools(path string, text []byte) (*toolsFile, error) {
	if len(text) > maxToolsFile {
		return nil, fault.New(fault.Invalid, "read the file of tools %s: more than %d bytes", path, maxToolsFile)
	}
	out := &toolsFile{}
	if err := configfile.YAML(text, out); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read the file of tools %s", path)
	}
	return out, out.check(path)
}

const (
	maxRounds      = 100
	maxResultBytes = 1 << 20
	maxToolTime    = time.Hour
	maxPageBytes   = 64 << 20
	maxToolsFile   = 1 << 20
)

// check checks the numbers of the file.
func (f *toolsFile) check(path string) error {
	type number struct {
		name        string
		value, most int64
	}
	numbers := []number{
		{"rounds", int64(f.Rounds), maxRounds}, {"calls", int64(f.Calls), maxRounds},
		{"result_bytes", int64(f.ResultBytes), maxResultBytes}, {"bytes", int64(f.Bytes), maxResultBytes},
		{"call_timeout", int64(f.CallTimeout), int64(maxToolTime)}, {"timeout", int64(f.Timeout), int64(maxToolTime)},
	}
	if s := f.Search; s != nil {
		numbers = append(numbers, number{"web_search.results", int64(s.Results), webtools.MaxResults},
			number{"web_search.timeout", int64(s.Timeout), int64(maxToolTime)})
	}
	if p := f.Page; p != nil {
		numbers = append(numbers, number{"read_page.bytes", p.Bytes, maxPageBytes},
			number{"read_page.timeout", int64(p.Timeout), int64(maxToolTime)})
		if p.Redirects != nil {
			numbers = append(numbers, number{"read_page.redirects", int64(*p.Redirects), maxRounds})
		}
	}
	for _, n := range numbers {
		if n.value < 0 || n.value > n.most {
			return fault.Field(n.name, "%d in %s is not within 0..%d", n.value, path, n.most)
		}
	}
	return nil
}

// serverTools returns the tools that the router runs for requests; nil if none are configured.
func (p *process) serverTools(path string) (*agent.Box, error) {
	if path == "" {
		return nil, nil
	}
	f, err := readTools(path)
	if err != nil {
		return nil, err
	}
	c := agent.Config{
		Limits:   toolloop.Limits{Rounds: f.Rounds, Calls: f.Calls, ResultBytes: f.ResultBytes, Bytes: f.Bytes},
		CallTime: f.CallTimeout, Time: f.Timeout, Log: p.log,
	}
	if f.Search != nil {
		var providers []webtools.Provider
		for _, s := range f.Search.Providers {
			providers = append(providers, webtools.Provider(s))
		}
		search, err := webtools.NewSearch(providers, f.Search.Timeout)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "set up web_search of %s", path)
		}
		p.closers = append(p.closers, func() error { search.Close(); return nil })
		c.Search, c.Results = search, f.Search.Results
	}
	if f.Page != nil {
		p.own.Known(append([]string{p.set.advertise}, p.set.access.Hosts...)...)
		fetch := fetchguard.Config{Bytes: f.Page.Bytes, Timeout: f.Page.Timeout, Ports: f.Page.Ports, Own: p.own.List,
			Agent: "lamina (+https://github.com/lamina-mesh/lamina)"}
		if r := f.Page.Redirects; r != nil {
			if fetch.Redirects = *r; *r == 0 {
				fetch.Redirects = -1
			}
		}
		for _, text := range f.Page.Allow {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fault.Field("read_page.allow", "%q in %s is no network such as 10.1.0.0/16", text, path)
			}
			fetch.Allow = append(fetch.Allow, network.Masked())
		}
		c.Pages, c.AnyPage = webtools.NewReader(fetch), f.Page.Any
	}
	if len(f.MCP) > 0 {
		set := mcptools.Config{Log: p.log}
		for _, name := range slices.Sorted(maps.Keys(f.MCP)) {
			s := f.MCP[name]
			set.Servers = append(set.Servers, mcptools.Server{Name: name, Command: s.Command, Env: s.Env, Dir: s.Dir,
				URL: s.URL, TokenFile: s.TokenFile, Tools: s.Tools})
		}
		hub, err := mcptools.New(set)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "set up the MCP servers of %s", path)
		}
		p.closers = append(p.closers, hub.Close)
		c.Servers = hub
	}
	return agent.New(c), nil
}
