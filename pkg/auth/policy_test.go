package auth_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestMethods_WhatServicesMayCallIsDocumented compares the table of docs/identity.md with the policy.
func TestMethods_WhatServicesMayCallIsDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "identity.md"))
	if err != nil {
		t.Fatal(err)
	}
	callees := []string{"router", "shard", "sampler", "tokenizer", "trainer", "weights"}
	for _, caller := range []auth.Service{auth.RouterService, auth.ShardService, auth.TrainerService} {
		var parts []string
		for _, callee := range callees {
			var may, not []string
			for name, rule := range auth.Methods() {
				if method, ok := strings.CutPrefix(name, "/lamina."+callee+".v1."); ok {
					_, method, _ = strings.Cut(method, "/")
					if slices.Contains(rule.Services, caller) {
						may = append(may, method)
					} else {
						not = append(not, method)
					}
				}
			}
			slices.Sort(may)
			switch {
			case len(may) == 0:
			case len(not) == 1 && len(may) > 2:
				parts = append(parts, callee+": all but "+not[0])
			default:
				parts = append(parts, callee+": "+strings.Join(may, ", "))
			}
		}
		row := "| " + string(caller) + " | " + strings.Join(parts, "; ") + " |\n"
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/identity.md lacks the row %s", row)
		}
	}
}
