package gate_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/gate"
	"github.com/lamina-mesh/lamina/pkg/auth/token/tokentest"
)

// rig is a gate in front of a handler that counts.
type rig struct {
	http.Handler
	reached int
	tenant  string
	headers http.Header
	log     bytes.Buffer
	audit   bytes.Buffer
	secrets map[string]string
	tokens  map[string]string // by the role that they give
	bad     map[string]string // tokens that are wrong, by the reason
	now     time.Time
}

// newRig returns a rig with keys of every role and state.
func newRig(t testing.TB, change func(*gate.Options, *auth.Key)) *rig {
	t.Helper()
	r := &rig{
		secrets: map[string]string{"wrong": auth.NewSecret()},
		now:     time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC),
	}
	o := gate.Options{
		AnyHost: true,
		Log:     slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	var keys []auth.Key
	add := func(name string, k auth.Key) {
		k.Tenant = "own"
		if change != nil {
			change(&o, &k)
		}
		k, secret, err := auth.NewKey(k, r.now)
		if err != nil {
			t.Fatal(err)
		}
		keys, r.secrets[name] = append(keys, k), secret
	}
	for _, role := range auth.Roles() {
		add(string(role), auth.Key{Roles: []auth.Role{role}})
	}
	add("expired", auth.Key{Roles: auth.Roles(), Expires: r.now})
	add("revoked", auth.Key{Roles: auth.Roles(), Revoked: r.now})
	now := func() time.Time { return r.now }
	o.Guard = auth.NewGuard(auth.NewKeyring(keys, auth.KeyringOptions{Now: now}), "mesh")
	o.Guard.Audit = auth.NewAuditLog(&r.audit, now, nil)
	issuer := tokentest.New(t, "https://login.example.org", now, "ES256")
	o.Guard.Tokens, r.tokens, r.bad = issuer.Verifier(t), map[string]string{}, issuer.Bad(t)
	for _, role := range append(auth.Roles(), "stranger") {
		r.tokens[string(role)] = issuer.Token(t, jwt.MapClaims{"role": string(role), "sub": string(role)})
	}
	r.Handler = gate.New(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.reached++
		r.tenant, r.headers = auth.Tenant(q.Context()), q.Header
		fmt.Fprintln(w, "reached")
	}), o)
	return r
}

// ask sends a request with headers given as name, value, name, value.
func (r *rig) ask(method, path string, headers ...string) *httptest.ResponseRecorder {
	q := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, q)
	return w
}

// concrete returns a method and path for a pattern.
func concrete(pattern string) (method, path string) {
	method, path, _ = strings.Cut(pattern, " ")
	return method, strings.NewReplacer("{$}", "", "{id...}", "a/b", "{id}", "a", "{name}", "m").Replace(path)
}

func TestGate_EveryRouteTimesEveryCaller(t *testing.T) {
	r := newRig(t, nil)
	tries := 0
	for pattern, rule := range auth.Routes() {
		method, path := concrete(pattern)
		try := func(what string, want int, headers ...string) {
			t.Helper()
			tries++
			before := r.reached
			w := r.ask(method, path, headers...)
			if w.Code != want || (r.reached > before) != (want == http.StatusOK) {
				t.Errorf("%s, %s: %d, reached %v, want %d", pattern, what, w.Code, r.reached > before, want)
			}
		}
		try("nothing", http.StatusUnauthorized)
		for reason, text := range r.bad {
			try("a token "+reason, http.StatusUnauthorized, "Authorization", "Bearer "+text)
			try("a token as x-api-key "+reason, http.StatusUnauthorized, "X-Api-Key", text)
		}
		try("a token that allows nothing", http.StatusForbidden, "Authorization", "Bearer "+r.tokens["stranger"])
		for _, name := range []string{"wrong", "expired", "revoked"} {
			try(name, http.StatusUnauthorized, "Authorization", "Bearer "+r.secrets[name])
			try(name+" as x-api-key", http.StatusUnauthorized, "X-Api-Key", r.secrets[name])
		}
		for _, role := range auth.Roles() {
			secret, want := r.secrets[string(role)], http.StatusForbidden
			if slices.Contains(role.Verbs(), rule.Verb) {
				want = http.StatusOK
			}
			try(string(role), want, "Authorization", "Bearer "+secret)
			try(string(role)+" as x-api-key", want, "X-Api-Key", secret)
			try(string(role)+" by token", want, "Authorization", "Bearer "+r.tokens[string(role)])
			other := http.StatusForbidden
			if role == auth.Program {
				other = want
			}
			try(string(role)+" for another tenant", other, "Authorization", "Bearer "+secret, auth.TenantKey, "other")
		}
		for _, s := range auth.Services() {
			q := httptest.NewRequest(method, path, nil)
			q.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}},
				PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{s.SpiffeID("mesh")}}}}
			w := httptest.NewRecorder()
			before := r.reached
			r.ServeHTTP(w, q)
			tries++
			if allowed := slices.Contains(rule.Services, s); (w.Code == http.StatusOK) != allowed ||
				(r.reached > before) != allowed {
				t.Errorf("%s, service %s: %d", pattern, s, w.Code)
			}
		}
	}
	t.Logf("%d requests", tries)
	for _, path := range []string{"/nothing", "/v1/", "/v1/nothing", "/debug/pprof/", "/v1/models/../../x", "//v1/x"} {
		before := r.reached
		if w := r.ask(http.MethodGet, path); w.Code != http.StatusUnauthorized {
			t.Errorf("%s without a key: %d", path, w.Code)
		}
		w := r.ask(http.MethodGet, path, "Authorization", "Bearer "+r.secrets["operator"])
		if w.Code != http.StatusNotFound || r.reached != before {
			t.Errorf("%s: %d, reached %v", path, w.Code, r.reached > before)
		}
	}
	if r.ask(http.MethodPut, "/v1/models", "Authorization", "Bearer "+r.secrets["user"]).Code == http.StatusOK {
		t.Error("a method without a policy is served")
	}
}

func TestGate_PassesOnTheTenantAndNoSecret(t *testing.T) {
	r := newRig(t, nil)
	for _, headers := range [][]string{
		{"Authorization", "Bearer " + r.secrets["user"]},
		{"Authorization", "bearer   " + r.secrets["user"]},
		{"X-Api-Key", r.secrets["user"], "Lamina-Tenant", "own"},
		{"X-Api-Key", r.secrets["user"], "Authorization", "Bearer " + r.secrets["user"]},
	} {
		if w := r.ask(http.MethodGet, "/v1/models", headers...); w.Code != http.StatusOK || r.tenant != "own" {
			t.Errorf("%q: %d, tenant %q", headers, w.Code, r.tenant)
		}
		for _, name := range []string{"Authorization", "X-Api-Key", "Lamina-Tenant"} {
			if r.headers.Get(name) != "" {
				t.Errorf("the handler sees %s", name)
			}
		}
	}
	q := httptest.NewRequest(http.MethodGet, "/", nil)
	q.SetBasicAuth("anyone", r.secrets["user"])
	w := httptest.NewRecorder()
	if r.ServeHTTP(w, q); w.Code != http.StatusOK {
		t.Errorf("a browser with the key as its password: %d", w.Code)
	}
	if h := r.ask(http.MethodGet, "/").Header().Values("WWW-Authenticate"); len(h) != 2 {
		t.Errorf("a browser is asked for %q", h)
	}
}

// TestGate_OddAuthorizationHeadersHaveOneAnswer sends headers that are nearly right, long, binary or doubled.
func TestGate_OddAuthorizationHeadersHaveOneAnswer(t *testing.T) {
	r := newRig(t, nil)
	random := rand.New(rand.NewPCG(7, 8))
	good := r.secrets["user"]
	odd := func() []string {
		b := []byte(good)
		switch random.IntN(9) {
		case 8: // a token with one wrong byte, or a wrong one
			text := []byte(r.tokens["user"])
			at := random.IntN(len(text))
			if text[at]--; random.IntN(4) == 0 {
				text = []byte(r.bad["that has expired"])
			}
			return []string{"Bearer " + string(text)}
		case 0: // one bit is wrong
			b[random.IntN(len(b))] ^= 1 << random.IntN(8)
			return []string{"Bearer " + string(b)}
		case 1: // cut or longer
			return []string{"Bearer " + strings.Repeat(good, 2)[:random.IntN(len(good))]}
		case 2:
			return []string{"Bearer " + good + strings.Repeat(good, 1+random.IntN(3))}
		case 3: // another scheme
			return []string{
				[]string{"", "Basic ", "Digest ", "Bearer\t", "Bearer:", "BearerX ", "Token "}[random.IntN(7)] + good,
			}
		case 4: // several
			return []string{"Bearer " + good, "Bearer " + good}
		case 5:
			return []string{"Bearer " + r.secrets[[]string{"expired", "revoked", "wrong"}[random.IntN(3)]]}
		case 6: // bytes
			b = make([]byte, random.IntN(200))
			for i := range b {
				b[i] = byte(random.IntN(256))
			}
			return []string{string(b)}
		}
		return []string{
			[]string{"", " ", "Bearer", "Bearer ", "Bearer null", "Bearer undefined", "Bearer  "}[random.IntN(7)],
		}
	}
	want := r.ask(http.MethodGet, "/v1/models").Body.String()
	tries := 100_000
	if testing.Short() {
		tries = 10_000
	}
	r.log.Reset()
	for range tries {
		headers := odd()
		q := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
		q.Header["Authorization"] = headers
		w := httptest.NewRecorder()
		r.ServeHTTP(w, q)
		if w.Code != http.StatusUnauthorized || w.Body.String() != want {
			t.Fatalf("%q: %d %s", headers, w.Code, w.Body)
		}
		if r.log.Len() > 1<<16 {
			canary(t, r, &r.log)
			r.log.Reset()
		}
	}
	if r.reached != 0 {
		t.Errorf("%d requests have reached the handler", r.reached)
	}
}

// FuzzGate_Credentials changes what callers show: only a good key or token, alone or twice the same, gets through.
func FuzzGate_Credentials(f *testing.F) {
	r := newRig(f, nil)
	good := map[string]bool{}
	for _, role := range auth.Roles() {
		good[r.secrets[string(role)]], good[r.tokens[string(role)]] = true, true
	}
	f.Add("Bearer "+r.secrets["user"], "")
	f.Add("", r.tokens["user"])
	f.Add("Bearer "+r.tokens["user"], r.tokens["user"])
	f.Add("Basic eDp5", "x")
	f.Fuzz(func(t *testing.T, bearer, key string) {
		q := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
		shown := false
		for name, text := range map[string]string{"Authorization": bearer, "X-Api-Key": key} {
			if text != "" {
				q.Header[name] = []string{text}
			}
		}
		for secret := range good {
			shown = shown || strings.Contains(bearer, secret) || strings.TrimSpace(key) == secret
		}
		if user, password, ok := q.BasicAuth(); ok {
			shown = shown || good[user] || good[password]
		}
		w := httptest.NewRecorder()
		if r.ServeHTTP(w, q); w.Code != http.StatusUnauthorized && !shown {
			t.Errorf("%q and %q: %d", bearer, key, w.Code)
		}
	})
}

// canary looks for secrets in what was written.
func canary(t *testing.T, r *rig, text fmt.Stringer) {
	t.Helper()
	secrets := maps.Clone(r.secrets)
	for role, text := range r.tokens {
		secrets["token of "+role] = text[strings.LastIndex(text, ".")+1:]
	}
	for name, secret := range secrets {
		if strings.Contains(text.String(), strings.TrimPrefix(secret, auth.Prefix)[:16]) {
			t.Fatalf("the secret %s is in the log", name)
		}
	}
}

func TestGate_NoSecretIsWrittenAnywhere(t *testing.T) {
	r := newRig(t, nil)
	for pattern := range auth.Routes() {
		method, path := concrete(pattern)
		for _, secret := range slices.Concat(slices.Collect(maps.Values(r.secrets)),
			slices.Collect(maps.Values(r.tokens)),
			slices.Collect(maps.Values(r.bad))) {
			for _, header := range []string{"Authorization", "X-Api-Key"} {
				for _, scheme := range []string{"Bearer ", "", "Basic "} {
					w := r.ask(method, path, header, scheme+secret)
					if strings.Contains(w.Body.String(), secret) || strings.Contains(fmt.Sprint(w.Header()), secret) {
						t.Errorf("%s %s answers with the secret: %s", method, path, w.Body)
					}
				}
			}
		}
	}
	if r.log.Len() == 0 || r.audit.Len() == 0 {
		t.Fatal("nothing was written")
	}
	canary(t, r, &r.log)
	canary(t, r, &r.audit)
}

func TestGate_AuditHasALineForEachAction(t *testing.T) {
	r := newRig(t, nil)
	r.ask(http.MethodPost, "/api/pull", "X-Api-Key", r.secrets["operator"])
	r.ask(http.MethodPost, "/api/pull", "X-Api-Key", r.secrets["user"])
	r.ask(http.MethodPost, "/api/pull")
	r.ask(http.MethodGet, "/v1/models", "X-Api-Key", r.secrets["operator"])
	lines := strings.Split(strings.TrimSpace(r.audit.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), r.audit.String())
	}
	for i, want := range []string{"ok", "permission denied", "unauthenticated"} {
		var a auth.Action
		if err := json.Unmarshal(
			[]byte(lines[i]),
			&a,
		); err != nil || a.Result != want || a.What != "POST /api/pull" ||
			!a.Time.Equal(r.now) || a.From == "" ||
			(a.Who == "anonymous") != (want == "unauthenticated") {
			t.Errorf("%s: %+v, %v", lines[i], a, err)
		}
	}
}

// TestGate_APanicIsInTheAuditLog has the handler of an audited route panic.
func TestGate_APanicIsInTheAuditLog(t *testing.T) {
	r := newRig(t, nil)
	k, secret, err := auth.NewKey(auth.Key{Roles: []auth.Role{auth.Operator}}, r.now)
	if err != nil {
		t.Fatal(err)
	}
	guard := auth.NewGuard(auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{}), "")
	guard.Audit = auth.NewAuditLog(&r.audit, time.Now, nil)
	h := gate.New(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }),
		gate.Options{AnyHost: true, Guard: guard})
	q := httptest.NewRequest(http.MethodPost, "/api/pull", nil)
	q.Header.Set("X-Api-Key", secret)
	func() {
		defer func() {
			if recover() != "broken" {
				t.Error("the panic was held back")
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), q)
	}()
	var a auth.Action
	if err := json.Unmarshal(r.audit.Bytes(), &a); err != nil || a.Result != "internal" || a.What != "POST /api/pull" {
		t.Errorf("%q: %+v, %v", r.audit.String(), a, err)
	}
}

// TestGate_ARevokedCertificateIsNone shows a certificate that was revoked after its connection was made.
func TestGate_ARevokedCertificateIsNone(t *testing.T) {
	revoked := false
	guard := auth.NewGuard(nil, "mesh")
	guard.Revoked = func([][]*x509.Certificate) bool { return revoked }
	h := gate.New(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		gate.Options{AnyHost: true, Guard: guard})
	for _, want := range []int{http.StatusOK, http.StatusUnauthorized} {
		q := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		q.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}},
			PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{auth.MonitorService.SpiffeID("mesh")}}}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, q); w.Code != want {
			t.Errorf("revoked %v: %d", revoked, w.Code)
		}
		revoked = true
	}
}

func TestGate_BudgetHeadersAndRetryAfter(t *testing.T) {
	r := newRig(t, func(_ *gate.Options, k *auth.Key) { k.Requests, k.Tokens = 2, 500 })
	ask := func() *httptest.ResponseRecorder {
		return r.ask(http.MethodPost, "/v1/completions", "Authorization", "Bearer "+r.secrets["user"])
	}
	for i, remaining := range []string{"1", "0"} {
		w := ask()
		h := w.Header()
		if w.Code != http.StatusOK || h.Get("X-Ratelimit-Limit-Requests") != "2" ||
			h.Get("X-Ratelimit-Remaining-Requests") != remaining || h.Get("X-Ratelimit-Limit-Tokens") != "500" ||
			h.Get("X-Ratelimit-Remaining-Tokens") != "500" || h.Get("X-Ratelimit-Reset-Tokens") != "0s" {
			t.Errorf("request %d: %d %v", i, w.Code, h)
		}
	}
	r.now = r.now.Add(500 * time.Millisecond)
	w := ask()
	if h := w.Header(); w.Code != http.StatusTooManyRequests || h.Get("Retry-After") != "30" ||
		h.Get("Retry-After-Ms") != "29500" || h.Get("X-Ratelimit-Reset-Requests") != "59.5s" {
		t.Errorf("over the budget: %d %v", w.Code, h)
	}
	r.now = r.now.Add(29500*time.Millisecond - 1)
	if w := ask(); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("a nanosecond too early: %d %v", w.Code, w.Header())
	}
	r.now = r.now.Add(1)
	if w := ask(); w.Code != http.StatusOK {
		t.Errorf("after Retry-After: %d", w.Code)
	}
	if w := r.ask(
		http.MethodGet,
		"/v1/models",
		"Authorization",
		"Bearer "+r.secrets["user"],
	); w.Code != http.StatusOK {
		t.Errorf("a route that is not metered: %d", w.Code)
	}
}

func TestGate_StreamsKeepTheirConnection(t *testing.T) {
	k, secret, err := auth.NewKey(auth.Key{Roles: []auth.Role{auth.User}, Tokens: 10}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	h := gate.New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, "first")
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
		<-release
	}), gate.Options{AnyHost: true, Guard: auth.NewGuard(auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{}), "")})
	s := httptest.NewServer(h)
	defer s.Close()
	defer close(release)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/completions", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("X-Api-Key", secret)
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first" ||
		resp.Header.Get("X-Ratelimit-Limit-Tokens") != "10" {
		t.Errorf("%q, %v, %v", first, err, resp.Header)
	}
}
