package token

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a configuration.
const (
	maxConfig  = 1 << 20 // bytes
	maxIssuers = 64
	maxGrants  = 1024 // of an issuer
	maxSkew    = 10 * time.Minute
	maxLife    = 30 * 24 * time.Hour
	maxRefresh = 12 * time.Hour
	minRefresh = time.Minute
)

// Defaults of an issuer.
const (
	defaultSkew    = 30 * time.Second
	defaultLife    = 24 * time.Hour
	defaultRefresh = time.Hour
)

// Config lists the issuers whose tokens are accepted.
type Config struct {
	Issuers []Issuer `yaml:"issuers"`
}

// Issuer is an identity provider.
type Issuer struct {
	// Issuer is the exact value of the claim iss.
	Issuer string `yaml:"issuer"`
	// Audiences are values of the claim aud, one of which a token must have.
	Audiences []string `yaml:"audiences"`
	// Keys is the file or the URL of the key set. Empty finds it by OpenID Connect Discovery at the issuer.
	Keys string `yaml:"keys"`
	// CA is a PEM file of authorities for the server of the keys; empty for those of the system.
	CA string `yaml:"ca"`
	// Algorithms are those that tokens may be signed by; the default is RS256, ES256 and EdDSA.
	Algorithms []string `yaml:"algorithms"`
	// ClockSkew is how far clocks may differ.
	ClockSkew time.Duration `yaml:"clock_skew"`
	// MaxLifetime refuses tokens that expire later than this from now.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// Refresh is how often the keys are fetched from a URL.
	Refresh time.Duration `yaml:"refresh"`
	// Grants say what tokens allow. The first one whose conditions hold counts; without one a token allows nothing.
	Grants []Grant `yaml:"grants"`
}

// Grant maps claims to what a token allows. A claim is named by its name or, inside objects, by names with dots between
// them, such as realm_access.roles.
type Grant struct {
	// When has the conditions, all of which must hold: a claim has one of the values, or is a list that has one.
	When map[string]texts `yaml:"when"`

	Roles []auth.Role `yaml:"roles"`
	Verbs []auth.Verb `yaml:"verbs"`
	// Tenant is the tenant, or TenantClaim the claim that names it. Without either each subject is a tenant of its own.
	Tenant      string `yaml:"tenant"`
	TenantClaim string `yaml:"tenant_claim"`
	// Models are the models that the holder may use, or ModelsClaim the claim that lists them.
	Models      []string `yaml:"models"`
	ModelsClaim string   `yaml:"models_claim"`
	// Budgets a minute, or the claims that have them.
	Requests      int64  `yaml:"requests_per_minute"`
	RequestsClaim string `yaml:"requests_claim"`
	Tokens        int64  `yaml:"tokens_per_minute"`
	TokensClaim   string `yaml:"tokens_claim"`
}

// texts is a list of texts; YAML may have one without a list around it.
type texts []string

// UnmarshalYAML reads one scalar or a list of them.
func (t *texts) UnmarshalYAML(n *yaml.Node) error {
	items := n.Content
	if n.Kind == yaml.ScalarNode {
		items = []*yaml.Node{n}
	} else if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: want a value or a list of values", n.Line)
	}
	for _, item := range items {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return fmt.Errorf("line %d: want a value or a list of values", item.Line)
		}
		*t = append(*t, item.Value)
	}
	return nil
}

// ReadConfig reads a file. Relative paths in it are relative to its folder.
func ReadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fault.Wrap(fault.CodeOf(err), err, "read issuers of tokens")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fault.Wrap(fault.Unavailable, err, "read issuers of tokens")
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, fault.Wrap(fault.Invalid, err, "read issuers of %s", path)
	}
	for i := range c.Issuers {
		at := &c.Issuers[i]
		for _, name := range []*string{&at.Keys, &at.CA} {
			if *name != "" && !strings.Contains(*name, "://") && !filepath.IsAbs(*name) {
				*name = filepath.Join(filepath.Dir(path), *name)
			}
		}
	}
	return c, nil
}

// ParseConfig reads a configuration in YAML, completes it with the defaults and checks it.
func ParseConfig(text []byte) (Config, error) {
	if len(text) > maxConfig {
		return Config{}, fault.New(fault.Invalid, "read issuers: more than %d bytes", maxConfig)
	}
	var c Config
	if err := configfile.YAML(text, &c); err != nil {
		return Config{}, fault.Wrap(fault.Invalid, err, "read issuers")
	}
	return c, c.complete()
}

// complete sets defaults and returns an error that names the first field that is wrong.
func (c *Config) complete() error {
	if len(c.Issuers) == 0 || len(c.Issuers) > maxIssuers {
		return fault.Field("issuers", "want 1 to %d, got %d", maxIssuers, len(c.Issuers))
	}
	seen := map[string]bool{}
	for i := range c.Issuers {
		at := &c.Issuers[i]
		field := fmt.Sprintf("issuers[%d]", i)
		if seen[at.Issuer] {
			return fault.Field(field+".issuer", "%q is there twice", at.Issuer)
		}
		seen[at.Issuer] = true
		if err := at.complete(field); err != nil {
			return err
		}
	}
	return nil
}

func (c *Issuer) complete(field string) error {
	if c.Issuer == "" || len(c.Issuer) > 512 || strings.Contains(c.Issuer, "@") {
		return fault.Field(field+".issuer", "want 1 to 512 bytes without @, got %q", c.Issuer)
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		return fault.Field(field+".audiences",
			"want one or more, none of them empty: a token for another service must "+
				"not be good here")
	}
	switch {
	case c.Keys == "":
		if err := secureURL(c.Issuer); err != nil {
			return fault.Field(field+".issuer", "its keys cannot be found there: %v: name them by keys", err)
		}
	case strings.Contains(c.Keys, "://"):
		if err := secureURL(c.Keys); err != nil {
			return fault.Field(field+".keys", "%v", err)
		}
	}
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{"RS256", "ES256", "EdDSA"}
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(algorithms(), a) {
			return fault.Field(field+".algorithms", "unknown algorithm %q: want %s", a,
				strings.Join(algorithms(), ", "))
		}
	}
	for _, d := range []struct {
		name                   string
		value                  *time.Duration
		otherwise, least, most time.Duration
	}{
		{"clock_skew", &c.ClockSkew, defaultSkew, 0, maxSkew},
		{"max_lifetime", &c.MaxLifetime, defaultLife, time.Second, maxLife},
		{"refresh", &c.Refresh, defaultRefresh, minRefresh, maxRefresh},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < d.least || *d.value > d.most {
			return fault.Field(field+"."+d.name, "want %v to %v, got %v", d.least, d.most, *d.value)
		}
	}
	if len(c.Grants) == 0 || len(c.Grants) > maxGrants {
		return fault.Field(field+".grants", "want 1 to %d, got %d", maxGrants, len(c.Grants))
	}
	for i := range c.Grants {
		if err := c.Grants[i].check(fmt.Sprintf("%s.grants[%d]", field, i)); err != nil {
			return err
		}
	}
	return nil
}

// secureURL returns an error unless a URL can be fetched without anyone changing the answer: https, or http within
// this machine.
func secureURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("want a URL such as https://login.example.org/keys")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()):
		return nil
	}
	return errors.New("want https, since whoever can change the keys can be anyone")
}

func (g *Grant) check(field string) error {
	for _, name := range slices.Sorted(maps.Keys(g.When)) {
		if name == "" || len(g.When[name]) == 0 {
			return fault.Field(field+".when", "claim %q: want one or more values", name)
		}
	}
	for _, both := range []struct {
		name, claim string
		given       bool
	}{
		{"tenant", g.TenantClaim, g.Tenant != ""}, {"models", g.ModelsClaim, len(g.Models) > 0},
		{"requests_per_minute", g.RequestsClaim, g.Requests != 0}, {"tokens_per_minute", g.TokensClaim, g.Tokens != 0},
	} {
		if both.given && both.claim != "" {
			return fault.Field(field+"."+both.name, "give a value or a claim, and not both")
		}
	}
	fixed := auth.Grant{Tenant: g.Tenant, Roles: g.Roles, Verbs: g.Verbs, Models: g.Models, Requests: g.Requests,
		Tokens: g.Tokens}
	if err := fixed.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "%s", field)
	}
	return nil
}
