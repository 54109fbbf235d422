package auth

import (
	"net/url"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// SpiffeID returns the SPIFFE id of a service: spiffe://DOMAIN/service/NAME.
func (s Service) SpiffeID(domain string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: "/service/" + string(s)}
}

// SpiffeID returns the SPIFFE id of people and programs with a role: spiffe://DOMAIN/role/NAME.
func (r Role) SpiffeID(domain string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: "/role/" + string(r)}
}

// PrincipalOf reads the SPIFFE id among the URIs of a verified certificate. There must be one, of the given trust
// domain; an empty domain means any.
func PrincipalOf(uris []*url.URL, domain string) (*Principal, error) {
	var id *url.URL
	for _, u := range uris {
		if u.Scheme != "spiffe" {
			continue
		}
		if id != nil {
			return nil, refused("the certificate has several SPIFFE ids")
		}
		id = u
	}
	switch {
	case id == nil:
		return nil, refused("the certificate has no SPIFFE id, such as spiffe://lamina/service/shard")
	case id.Host == "" || domain != "" && id.Host != domain:
		return nil, refused("the SPIFFE id of the certificate belongs to trust domain %q", id.Host)
	case id.RawQuery != "" || id.Fragment != "" || id.User != nil || id.Opaque != "":
		return nil, refused("the SPIFFE id of the certificate is malformed")
	}
	kind, name, _ := strings.Cut(strings.TrimPrefix(id.Path, "/"), "/")
	p := &Principal{ID: id.String()}
	switch {
	case kind == "service" && slices.Contains(Services(), Service(name)):
		p.Service = Service(name)
	case kind == "role" && slices.Contains(Roles(), Role(name)):
		p.Roles = []Role{Role(name)}
	default:
		return nil, refused("the SPIFFE id %q names no service and no role", id.Path)
	}
	return p, nil
}

// Domain returns the trust domain of the SPIFFE id among the URIs of a certificate, or "".
func Domain(uris []*url.URL) string {
	for _, u := range uris {
		if u.Scheme == "spiffe" {
			return u.Host
		}
	}
	return ""
}

func refused(format string, args ...any) error {
	return fault.New(fault.Unauthenticated, "authenticate: "+format, args...)
}
