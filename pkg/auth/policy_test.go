package auth_test

import (
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

func TestPolicy_RulesUseKnownVerbsThatSomebodyHas(t *testing.T) {
	rules := map[string]auth.Rule{}
	for name, r := range auth.Methods() {
		rules[name] = r
	}
	for name, r := range auth.Routes() {
		rules[name] = r
	}
	for name, r := range rules {
		if r.Verb == "" && len(r.Services) == 0 {
			t.Errorf("%s is for nobody", name)
		}
		if r.Verb == "" {
			continue
		}
		if !slices.ContainsFunc(
			auth.Roles(),
			func(role auth.Role) bool { return slices.Contains(role.Verbs(), r.Verb) },
		) {
			t.Errorf("%s needs %q, which no role has", name, r.Verb)
		}
		if _, err := auth.ParseVerb(string(r.Verb)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
