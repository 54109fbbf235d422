package loadtest

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a Config, and its defaults.
const (
	MaxStreams     = 10000
	DefaultStreams = 8   // of a closed loop
	OpenStreams    = 512 // in flight of an open loop
	DefaultTimeout = 2 * time.Minute
	DefaultStall   = time.Second
	maxTenant      = 64 // bytes of a tenant's id
	pathOfAPI      = "/v1"
)

// Endpoint selects the API that requests use.
type Endpoint string

// The endpoints. Auto uses chat completions for prompts with messages, and completions for others.
const (
	Auto        Endpoint = "auto"
	Chat        Endpoint = "chat"
	Completions Endpoint = "completions"
)

// Config describes a load.
type Config struct {
	// URLs are base URLs of servers, such as "http://127.0.0.1:8080/v1"; without a path "/v1" is
	// added. Requests are sent to them in turn.
	URLs     []string
	Endpoint Endpoint
	Model    string // empty for the first model that the server lists
	Key      string // sent as a bearer token; empty for none
	Prompts  []Prompt

	Streams int     // requests in flight: of a closed loop all the time, of an open loop at most
	Rate    float64 // requests per second of an open loop; 0 for a closed loop
	// The load ends after Requests requests or when Duration has passed, whichever is first. Zero
	// is no limit; one of them is needed.
	Requests int
	Duration time.Duration

	MaxTokens   int      // of prompts that set no other number; 0 for the server's default
	Temperature *float64 // of prompts that set no other temperature; nil for the server's default
	Tenants     []Tenant // of prompts without a tenant
	Seed        int64

	Timeout   time.Duration // deadline of one stream
	Stall     time.Duration // a longer gap between two tokens counts as a stall
	TTFTLimit time.Duration // goodput counts streams whose first token came within it; 0 for all

	// Resume asks Lamina for resumable streams. A stream that breaks is resumed from the next of URLs.
	// Requests for several choices cannot be resumed.
	Resume bool
	// Expect holds the texts that requests must get; nil compares repeated requests only.
	Expect *Texts
	// Record makes Run keep the text of every different request for Report.Texts.
	Record bool
	// Transport sends requests; nil for HTTP over TCP.
	Transport http.RoundTripper
	// Observe, if not nil, is called for each stream that has ended, one call at a time.
	Observe func(Sample)
}

// Tenant is a tenant and its share of the requests.
type Tenant struct {
	Name   string
	Weight int
}

// ParseTenants parses "a=4,b=1". A tenant without a weight has weight 1.
func ParseTenants(text string) ([]Tenant, error) {
	var out []Tenant
	if text == "" {
		return nil, nil
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		name, weight, weighted := strings.Cut(strings.TrimSpace(part), "=")
		t := Tenant{Name: name, Weight: 1}
		if err := checkTenant(name); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "parse tenants %q", text)
		}
		if weighted {
			n, err := strconv.Atoi(weight)
			if err != nil || n < 1 || n > 1e6 {
				return nil, fault.Field("tenants", "parse %q: want a weight of 1 to 1000000, got %q", text, weight)
			}
			t.Weight = n
		}
		if seen[name] {
			return nil, fault.Field("tenants", "parse %q: tenant %q is named twice", text, name)
		}
		seen[name] = true
		out = append(out, t)
	}
	return out, nil
}

// checkTenant checks that a tenant's id is 1 to 64 printable ASCII bytes, as Lamina demands.
func checkTenant(name string) error {
	if name == "" || len(name) > maxTenant {
		return fault.Field("tenant", "want 1 to %d bytes, got %d", maxTenant, len(name))
	}
	for _, b := range []byte(name) {
		if b <= ' ' || b > '~' {
			return fault.Field("tenant", "want printable ASCII without spaces, got byte 0x%02x", b)
		}
	}
	return nil
}

// check fills in defaults and returns an error for the first field that cannot be used.
func (c *Config) check() error {
	if len(c.URLs) == 0 {
		return fault.Field("url", "give the base URL of a server")
	}
	bases := make([]string, len(c.URLs))
	for i, text := range c.URLs {
		base, err := baseURL(text)
		if err != nil {
			return err
		}
		bases[i] = base
	}
	c.URLs = bases
	if len(c.Prompts) == 0 {
		return fault.Field("prompts", "give at least one prompt")
	}
	if !(c.Rate >= 0 && c.Rate <= 1e6) {
		return fault.Field("rate", "want 0 (closed loop) to 1000000 requests per second, got %v", c.Rate)
	}
	if c.Streams == 0 {
		if c.Streams = DefaultStreams; c.Rate > 0 {
			c.Streams = OpenStreams
		}
	}
	if c.Streams < 1 || c.Streams > MaxStreams {
		return fault.Field("streams", "want 1 to %d, got %d", MaxStreams, c.Streams)
	}
	if c.Requests < 0 || c.Duration < 0 || c.Requests == 0 && c.Duration == 0 {
		return fault.Field("requests", "want a positive number of requests or a positive duration")
	}
	if c.MaxTokens < 0 {
		return fault.Field("max-tokens", "want 0 (the server's default) or more, got %d", c.MaxTokens)
	}
	for _, d := range []struct {
		field string
		value *time.Duration
		or    time.Duration
	}{{"timeout", &c.Timeout, DefaultTimeout}, {"stall", &c.Stall, DefaultStall}} {
		if *d.value == 0 {
			*d.value = d.or
		}
		if *d.value < 0 {
			return fault.Field(d.field, "want a positive duration, got %v", *d.value)
		}
	}
	if c.TTFTLimit < 0 {
		return fault.Field("ttft-limit", "want a positive duration, or 0 for none, got %v", c.TTFTLimit)
	}
	switch c.Endpoint {
	case "":
		c.Endpoint = Auto
	case Auto, Chat, Completions:
	default:
		return fault.Field("endpoint", "unknown endpoint %q: want auto, chat or completions", c.Endpoint)
	}
	if c.Endpoint == Completions {
		for _, p := range c.Prompts {
			if p.Messages != nil {
				return fault.Field("endpoint", "prompt of line %d has messages: completions takes a text", p.Line)
			}
		}
	}
	return nil
}

// baseURL checks a base URL and adds "/v1" if it has no path.
func baseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fault.Field("url", "want http://HOST:PORT or https://HOST/v1, got %q", text)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fault.Field("url", "want a URL without user, query and fragment")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if u.Path == "" {
		u.Path = pathOfAPI
	}
	return u.String(), nil
}
