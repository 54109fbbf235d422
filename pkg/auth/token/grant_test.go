package token_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/token"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const manyGrants = `
    grants:
      - when: {realm.roles: [admin, root], verified: "true"}
        roles: [operator, trainer]
        verbs: [observe, models]
        tenant: ops
      - when: {"https://example.org/team": ml}
        roles: [user]
        tenant_claim: org.id
        models_claim: models
        requests_claim: rpm
        tokens_claim: tpm
      - when: {level: "3"}
        roles: [user]
        models: [tolstoy]
        requests_per_minute: 2
        tokens_per_minute: 100
`

func TestGrant_FirstOneThatFitsCounts(t *testing.T) {
	r := newRig(t, manyGrants)
	ml := func(change jwt.MapClaims) jwt.MapClaims {
		out := jwt.MapClaims{"https://example.org/team": "ml", "org": map[string]any{"id": "acme"},
			"models": []string{"tolstoy", "m2"}, "rpm": 7, "tpm": 900}
		for name, value := range change {
			out[name] = value
		}
		return out
	}
	for _, c := range []struct {
		name     string
		claims   jwt.MapClaims
		tenant   string // empty if the token allows nothing
		roles    []auth.Role
		requests int64
	}{
		{"nothing", nil, "", nil, 0},
		{"one of two conditions", jwt.MapClaims{"realm": map[string]any{"roles": []string{"admin"}}}, "", nil, 0},
		{"both", jwt.MapClaims{"realm": map[string]any{"roles": []string{"x", "root"}}, "verified": true}, "ops",
			[]auth.Role{auth.Operator, auth.Trainer}, 0},
		{"a claim that looks like a path", jwt.MapClaims{"realm.roles": "admin", "verified": "true"}, "ops",
			[]auth.Role{auth.Operator, auth.Trainer}, 0},
		{"part of a name", jwt.MapClaims{"realm": map[string]any{"roles": "administrator"}, "verified": true}, "", nil,
			0},
		{"claims", ml(nil), "acme", []auth.Role{auth.User}, 7},
		{"number as text", jwt.MapClaims{"level": 3}, "token:", []auth.Role{auth.User}, 2},
		{"no tenant", ml(jwt.MapClaims{"org": "acme"}), "", nil, 0},
		{"tenant empty", ml(jwt.MapClaims{"org": map[string]any{"id": ""}}), "", nil, 0},
		{"tenant not printable", ml(jwt.MapClaims{"org": map[string]any{"id": "a\nb"}}), "", nil, 0},
		{"tenant too long", ml(jwt.MapClaims{"org": map[string]any{"id": strings.Repeat("t", 65)}}), "", nil, 0},
		{"no models", ml(jwt.MapClaims{"models": []string{}}), "", nil, 0},
		{"an empty model", ml(jwt.MapClaims{"models": []string{""}}), "", nil, 0},
		{"budget 0", ml(jwt.MapClaims{"rpm": 0}), "", nil, 0},
		{"budget below 0", ml(jwt.MapClaims{"tpm": -1}), "", nil, 0},
		{"budget a text", ml(jwt.MapClaims{"tpm": "900"}), "", nil, 0},
		{"budget a fraction", ml(jwt.MapClaims{"tpm": 1.5}), "", nil, 0},
		{"budget too large", ml(jwt.MapClaims{"tpm": auth.MaxBudget + 1}), "", nil, 0},
	} {
		p, err := r.Authenticate(r.issuer.Token(t, c.claims))
		if c.tenant == "" {
			if fault.CodeOf(err) != fault.PermissionDenied {
				t.Errorf("%s: %+v, %v", c.name, p, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		requests, _ := p.Meter().State()
		if !strings.HasPrefix(p.Tenant, c.tenant) || !slices.Equal(p.Roles, c.roles) || requests.Limit != c.requests {
			t.Errorf("%s: %+v, %+v", c.name, p, requests)
		}
	}
	p, err := r.Authenticate(r.issuer.Token(t, ml(nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx := auth.WithPrincipal(t.Context(), p)
	if !auth.MayUse(ctx, "m2") || auth.MayUse(ctx, "m3") {
		t.Error("the models are not those of the claim")
	}
}

func TestGrant_HoldersHaveBudgetsOfTheirOwn(t *testing.T) {
	r := newRig(t, manyGrants)
	begin := func(subject string) error {
		t.Helper()
		p, err := r.Authenticate(r.issuer.Token(t, jwt.MapClaims{"level": 3, "sub": subject}))
		if err != nil {
			t.Fatal(err)
		}
		return p.Meter().Begin()
	}
	for range 2 {
		if err := begin("ada"); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin("ada"); fault.CodeOf(err) != fault.Exhausted { // with another token
		t.Errorf("over the budget: %v", err)
	}
	if err := begin("bob"); err != nil {
		t.Errorf("another holder: %v", err)
	}
	a, err := r.Authenticate(r.issuer.Token(t, jwt.MapClaims{"level": 3, "sub": "ö\n"}))
	if err != nil || strings.ContainsAny(a.ID, "ö\n") {
		t.Errorf("a subject that is not plain: %+v, %v", a, err)
	}
}

func TestParseConfig_NamesTheField(t *testing.T) {
	const good = "issuers:\n- issuer: https://a.example\n  audiences: [x]\n  grants: [{roles: [user]}]\n"
	if _, err := token.ParseConfig([]byte(good)); err != nil {
		t.Fatal(err)
	}
	swap := func(old, text string) string { return strings.Replace(good, old, text, 1) }
	with := func(line string) string { return good + "  " + line + "\n" }
	for text, want := range map[string]string{
		"":                         "issuers",
		"issuers: []":              "issuers",
		"issuers: [":               "line 1",
		"nothing: 1":               "nothing",
		good + "---\n" + good:      "one document",
		good + good[9:]:            "issuers[1].issuer",
		with("algorithms: [none]"): "issuers[0].algorithms", with("algorithms: [HS256]"): "HS256",
		with("keys: http://keys.example/set"):                               "issuers[0].keys",
		with("keys: ftp://keys.example/set"):                                "issuers[0].keys",
		with("keys: https://u:p@keys.example"):                              "issuers[0].keys",
		with("clock_skew: 1h"):                                              "issuers[0].clock_skew",
		with("clock_skew: -1s"):                                             "issuers[0].clock_skew",
		with("max_lifetime: 9000h"):                                         "issuers[0].max_lifetime",
		with("refresh: 1s"):                                                 "issuers[0].refresh",
		with("colour: red"):                                                 "colour",
		swap("[x]", "[]"):                                                   "issuers[0].audiences",
		swap("[x]", `[""]`):                                                 "audiences",
		swap("https://a.example", "a.example"):                              "issuers[0].issuer",
		swap("https://a.example", `""`):                                     "issuers[0].issuer",
		swap("[{roles: [user]}]", "[]"):                                     "issuers[0].grants",
		swap("[user]", "[root]"):                                            "issuers[0].grants[0]",
		swap("[user]", "[]"):                                                "roles",
		swap("[user]", "[user], verbs: [all]"):                              "verb",
		swap("[user]", "[user], tenant: a, tenant_claim: b"):                "grants[0].tenant",
		swap("[user]", "[user], models: [a], models_claim: b"):              "grants[0].models",
		swap("[user]", "[user], tokens_per_minute: -1"):                     "tokens_per_minute",
		swap("[user]", "[user], when: {a: []}"):                             "grants[0].when",
		swap("[user]", "[user], when: {a: {b: c}}"):                         "line 4",
		swap("[user]", "[user], requests_per_minute: 1, requests_claim: b"): "requests_per_minute",
	} {
		_, err := token.ParseConfig([]byte(text))
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	var many strings.Builder
	many.WriteString("issuers:\n")
	for i := range 65 {
		fmt.Fprintf(&many, "- {issuer: 'https://%d.example', audiences: [x], grants: [{roles: [user]}]}\n", i)
	}
	if _, err := token.ParseConfig([]byte(many.String())); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("65 issuers: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("issuers:\n- issuer: https://a.example\n  audiences: [x]\n" + manyGrants)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := token.ParseConfig([]byte(text))
		if err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v", err)
		}
		if err == nil && (len(c.Issuers) == 0 || len(c.Issuers[0].Audiences) == 0 || len(c.Issuers[0].Grants) == 0) {
			t.Errorf("accepted: %+v", c)
		}
	})
}
