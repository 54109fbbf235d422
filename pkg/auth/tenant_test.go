package auth_test

import (
	"context"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestReadTenant_TakesOnePrintableNameOrNone(t *testing.T) {
	for _, c := range []struct {
		values []string
		ok     bool
	}{
		{nil, true}, {[]string{""}, true}, {[]string{"team-7 / ~"}, true}, {[]string{strings.Repeat("x", 64)}, true},
		{[]string{strings.Repeat("x", 65)}, false}, {[]string{"a", "a"}, false}, {[]string{"a\n"}, false},
		{[]string{"ä"}, false}, {[]string{"\x7f"}, false},
	} {
		name, err := auth.ReadTenant(c.values)
		if (err == nil) != c.ok || c.ok && name != strings.Join(c.values, "") {
			t.Errorf("%q: %q, %v", c.values, name, err)
		}
		if err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: code %v", c.values, fault.CodeOf(err))
		}
	}
}

func TestTenant_IsPartOfTheContext(t *testing.T) {
	if got := auth.Tenant(context.Background()); got != "" {
		t.Errorf("a context without a tenant has %q", got)
	}
	if got := auth.Tenant(auth.WithTenant(context.Background(), "a")); got != "a" {
		t.Errorf("got %q, want a", got)
	}
}
