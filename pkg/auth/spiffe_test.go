package auth_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestPrincipalOf_OneKnownIDOfTheDomain(t *testing.T) {
	for _, s := range auth.Services() {
		p, err := auth.PrincipalOf([]*url.URL{s.SpiffeID("mesh")}, "mesh")
		if err != nil || p.Service != s || len(p.Roles) != 0 {
			t.Errorf("%s: %+v, %v", s, p, err)
		}
	}
	for _, r := range auth.Roles() {
		p, err := auth.PrincipalOf([]*url.URL{r.SpiffeID("mesh")}, "")
		if err != nil || p.Service != "" || len(p.Roles) != 1 || p.Roles[0] != r {
			t.Errorf("%s: %+v, %v", r, p, err)
		}
	}
	for _, ids := range []string{
		"", "https://mesh/service/shard", "spiffe://other/service/shard", "spiffe:///service/shard",
		"spiffe://mesh/service/root", "spiffe://mesh/role/shard", "spiffe://mesh/service/shard/x", "spiffe://mesh/",
		"spiffe://mesh/service", "spiffe://mesh/service/shard?x=1", "spiffe://mesh/service/shard#x",
		"spiffe://u@mesh/service/shard", "spiffe://mesh/service/shard spiffe://mesh/role/user",
		"spiffe://mesh//service/shard", "spiffe://mesh/SERVICE/shard",
	} {
		var uris []*url.URL
		for _, id := range strings.Fields(ids) {
			u, err := url.Parse(id)
			if err != nil {
				t.Fatal(err)
			}
			uris = append(uris, u)
		}
		if p, err := auth.PrincipalOf(uris, "mesh"); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%q: %+v, %v", ids, p, err)
		}
	}
}

func FuzzPrincipalOf(f *testing.F) {
	f.Add("spiffe://mesh/service/shard", "mesh")
	f.Add("spiffe://mesh/role/user?x", "")
	f.Fuzz(func(t *testing.T, id, domain string) {
		u, err := url.Parse(id)
		if err != nil {
			return
		}
		p, err := auth.PrincipalOf([]*url.URL{u}, domain)
		if err != nil {
			return
		}
		if domain != "" && u.Host != domain || (p.Service == "") == (len(p.Roles) == 0) {
			t.Errorf("%q of %q: %+v", id, domain, p)
		}
	})
}
