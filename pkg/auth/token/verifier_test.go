package token_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/token"
	"github.com/lamina-mesh/lamina/pkg/auth/token/tokentest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// rig is a verifier of one issuer, with a clock that tests set.
type rig struct {
	*token.Verifier
	issuer, other *tokentest.Issuer // the other one is not known
	now           time.Time
	log           bytes.Buffer
}

const grants = `
    grants:
      - when: {groups: operators}
        roles: [operator]
        tenant: ops
      - roles: [user]
`

// newRig returns a rig whose issuer has the given further lines of configuration.
func newRig(t testing.TB, lines string) *rig {
	t.Helper()
	r := &rig{now: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)}
	clock := func() time.Time { return r.now }
	r.issuer = tokentest.New(t, "https://login.example.org", clock)
	r.other = tokentest.New(t, "https://login.example.org", clock)
	r.Verifier = r.verifier(t, r.issuer.Save(t, t.TempDir()), lines)
	return r
}

func (r *rig) verifier(t testing.TB, keys, lines string) *token.Verifier {
	t.Helper()
	c, err := token.ParseConfig([]byte(fmt.Sprintf(
		"issuers:\n  - issuer: %s\n    audiences: [lamina, mesh]\n    keys: %s\n%s", r.issuer.Name, keys, lines)))
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return r.now }
	v, err := token.New(c, auth.NewMeters(clock), token.Options{
		Now: clock, Log: slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const allAlgorithms = "    algorithms: [RS256, ES256, ES384, ES512, EdDSA]\n"

func TestVerifier_AcceptsEachAlgorithm(t *testing.T) {
	r := newRig(t, allAlgorithms+grants)
	for _, alg := range tokentest.Algorithms() {
		p, err := r.Authenticate(r.issuer.Sign(t, alg, r.issuer.Claims(nil), nil))
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if p.ID != "token:ada@https://login.example.org" || !p.May(auth.Rule{Verb: auth.Generate}) ||
			p.May(auth.Rule{Verb: auth.Operate}) || !strings.HasPrefix(p.Tenant, "token:") || p.Service != "" ||
			p.NamesTenants() {
			t.Errorf("%s: %+v", alg, p)
		}
		// A set in which one key fits needs no key id.
		if _, err := r.Authenticate(
			r.issuer.Sign(t, alg, r.issuer.Claims(nil), map[string]any{"kid": nil})); err != nil {
			t.Errorf("%s without a key id: %v", alg, err)
		}
	}
	for _, typ := range []any{"at+jwt", "application/at+JWT", "jwt", nil} {
		if _, err := r.Authenticate(
			r.issuer.Sign(t, "ES256", r.issuer.Claims(nil), map[string]any{"typ": typ})); err != nil {
			t.Errorf("type %v: %v", typ, err)
		}
	}
	for _, aud := range []any{"mesh", []string{"other", "lamina"}} {
		if _, err := r.Authenticate(r.issuer.Token(t, jwt.MapClaims{"aud": aud})); err != nil {
			t.Errorf("audience %v: %v", aud, err)
		}
	}
}

// encode returns a token of parts that are written by hand.
func encode(parts ...string) string {
	for i := range parts {
		parts[i] = base64.RawURLEncoding.EncodeToString([]byte(parts[i]))
	}
	return strings.Join(parts, ".")
}

// shared returns a token that is signed by a shared secret.
func shared(t testing.TB, claims jwt.MapClaims, kid string, secret []byte) string {
	t.Helper()
	made := jwt.NewWithClaims(jwt.SigningMethodHS256, claims)
	made.Header["kid"] = kid
	text, err := made.SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestVerifier_RefusesHostileTokens(t *testing.T) {
	r := newRig(t, grants) // RS256, ES256 and EdDSA
	i, good := r.issuer, r.issuer.Token(t, nil)
	claims := func(change jwt.MapClaims) string { return i.Token(t, change) }
	head := func(change map[string]any) string { return i.Sign(t, "RS256", i.Claims(nil), change) }
	parts := strings.Split(good, ".")
	body, err := json.Marshal(i.Claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	public := i.Public("RS256").(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	unix := func(d time.Duration) int64 { return r.now.Add(d).Unix() }
	cases := map[string]string{
		"empty": "", "dots": "..", "one part": parts[0], "two parts": parts[0] + "." + parts[1],
		"four parts": good + ".e30", "encrypted": good + ".e30.e30",
		"no signature":        parts[0] + "." + parts[1] + ".",
		"padding":             parts[0] + "=." + parts[1] + "." + parts[2],
		"standard base64":     parts[0] + "." + parts[1] + ".+" + parts[2][1:],
		"line break":          parts[0] + "." + parts[1] + "." + parts[2][:8] + "\n" + parts[2][8:],
		"trailing bits":       parts[0] + "." + parts[1] + "." + trailing(parts[2]),
		"space":               parts[0] + "." + parts[1] + " ." + parts[2],
		"too long":            claims(jwt.MapClaims{"x": strings.Repeat("x", 16<<10)}),
		"other claims":        parts[0] + "." + encode(strings.Replace(string(body), "ada", "eve", 1)) + "." + parts[2],
		"other signature":     parts[0] + "." + parts[1] + "." + flip(parts[2]),
		"header no object":    encode(`"RS256"`) + "." + parts[1] + "." + parts[2],
		"header null":         encode(`null`) + "." + parts[1] + "." + parts[2],
		"claims no object":    encode(`{"alg":"RS256"}`, `["a"]`, "x"),
		"claims null":         encode(`{"alg":"RS256"}`, `null`, "x"),
		"claims not JSON":     encode(`{"alg":"RS256"}`, `{`, "x"),
		"none":                encode(`{"alg":"none"}`, string(body), ""),
		"none with signature": encode(`{"alg":"none"}`, string(body), "x"),
		"None":                encode(`{"alg":"NoNe"}`, string(body), "x"),
		"no algorithm":        head(map[string]any{"alg": nil}),
		"empty algorithm":     head(map[string]any{"alg": ""}),
		"algorithm list":      head(map[string]any{"alg": []string{"RS256"}}),
		"lower case":          head(map[string]any{"alg": "rs256"}),
		"ALG":                 head(map[string]any{"alg": nil, "ALG": "RS256"}),
		"HMAC with PEM":       shared(t, i.Claims(nil), i.ID("RS256"), text),
		"HMAC with DER":       shared(t, i.Claims(nil), i.ID("RS256"), der),
		"HMAC with modulus":   shared(t, i.Claims(nil), i.ID("RS256"), public.N.Bytes()),
		"HMAC with nothing":   shared(t, i.Claims(nil), "", nil),
		"not on the list":     i.Sign(t, "ES384", i.Claims(nil), nil),
		"RSA key for ECDSA":   encode(fmt.Sprintf(`{"alg":"ES256","kid":%q}`, i.ID("RS256")), string(body), "x"),
		"PSS with its key":    encode(fmt.Sprintf(`{"alg":"PS256","kid":%q}`, i.ID("RS256")), string(body), "x"),
		"ECDSA zero": encode(fmt.Sprintf(`{"alg":"ES256","kid":%q}`, i.ID("ES256")), string(body),
			string(make([]byte, 64))),
		"ECDSA empty": encode(fmt.Sprintf(`{"alg":"ES256","kid":%q}`, i.ID("ES256")), string(body), "\x30\x00"),
		"Ed25519 zero": encode(fmt.Sprintf(`{"alg":"EdDSA","kid":%q}`, i.ID("EdDSA")), string(body),
			string(make([]byte, 64))),
		"unknown key":         head(map[string]any{"kid": "unknown"}),
		"key id a path":       head(map[string]any{"kid": "../../../dev/null"}),
		"key id a number":     head(map[string]any{"kid": 7}),
		"key id empty":        head(map[string]any{"kid": ""}),
		"key of another type": head(map[string]any{"kid": i.ID("ES256")}),
		"critical":            head(map[string]any{"crit": []string{"exp"}}),
		"critical, empty":     head(map[string]any{"crit": []string{}}),
		"logout token":        head(map[string]any{"typ": "logout+jwt"}),
		"proof token":         head(map[string]any{"typ": "dpop+jwt"}),
		"other keys":          r.other.Token(t, nil),
		"other keys, our id":  r.other.Sign(t, "RS256", i.Claims(nil), map[string]any{"kid": i.ID("RS256")}),
		"own key in header": r.other.Sign(t, "RS256", i.Claims(nil),
			map[string]any{"kid": i.ID("RS256"), "jwk": json.RawMessage(r.other.Keys()),
				"jku": "https://evil.example/k"}),
		"no issuer":          claims(jwt.MapClaims{"iss": nil}),
		"other issuer":       claims(jwt.MapClaims{"iss": "https://login.example.com"}),
		"issuer with slash":  claims(jwt.MapClaims{"iss": "https://login.example.org/"}),
		"issuer list":        claims(jwt.MapClaims{"iss": []string{i.Name}}),
		"no audience":        claims(jwt.MapClaims{"aud": nil}),
		"other audience":     claims(jwt.MapClaims{"aud": "grafana"}),
		"empty audience":     claims(jwt.MapClaims{"aud": ""}),
		"no audiences":       claims(jwt.MapClaims{"aud": []string{}}),
		"audience a number":  claims(jwt.MapClaims{"aud": 1}),
		"no expiry":          claims(jwt.MapClaims{"exp": nil}),
		"expired":            claims(jwt.MapClaims{"exp": unix(-31 * time.Second)}),
		"expiry a text":      claims(jwt.MapClaims{"exp": "tomorrow"}),
		"expiry far":         claims(jwt.MapClaims{"exp": unix(25 * time.Hour)}),
		"expiry beyond":      claims(jwt.MapClaims{"exp": json.Number("1e300")}),
		"expiry negative":    claims(jwt.MapClaims{"exp": json.Number("-1e300")}),
		"not valid yet":      claims(jwt.MapClaims{"nbf": unix(time.Minute)}),
		"issued later":       claims(jwt.MapClaims{"iat": unix(time.Minute)}),
		"no subject":         claims(jwt.MapClaims{"sub": nil}),
		"subject empty":      claims(jwt.MapClaims{"sub": ""}),
		"subject a number":   claims(jwt.MapClaims{"sub": 7}),
		"subject too long":   claims(jwt.MapClaims{"sub": strings.Repeat("s", 256)}),
		"not a token":        "lamina_" + strings.Repeat("0", 64),
		"bytes":              "\x00\xff.\x00.\x00",
		"nested":             encode(strings.Repeat(`{"a":`, 2000)+"1"+strings.Repeat("}", 2000), "{}", "x"),
		"bearer in front":    "Bearer " + good,
		"two tokens":         good + "," + good,
		"header twice":       encode(`{"alg":"RS256","alg":"none"}`, string(body), "x"),
		"unicode look-alike": head(map[string]any{"alg": "RS256\u200b"}),
	}
	var want string
	for name, text := range cases {
		p, err := r.Authenticate(text)
		if p != nil || fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %+v, %v", name, p, err)
			continue
		}
		if want == "" {
			want = err.Error()
		}
		if err.Error() != want {
			t.Errorf("%s: %q, want the one answer %q", name, err, want)
		}
	}
	t.Logf("%d tokens", len(cases))
	if _, err := r.Authenticate(good); err != nil {
		t.Errorf("a good token: %v", err)
	}
	for _, part := range strings.Split(good, ".")[1:] {
		if strings.Contains(r.log.String(), part[:16]) {
			t.Error("a part of a token is in the log")
		}
	}
	if !strings.Contains(r.log.String(), "another audience") {
		t.Error("the log has no reasons")
	}
}

// flip changes one bit in the middle of a signature.
func flip(text string) string {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	raw[len(raw)/2] ^= 1
	return base64.RawURLEncoding.EncodeToString(raw)
}

// trailing sets the bits of the last character that no byte has.
func trailing(text string) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(digits, text[len(text)-1])
	return text[:len(text)-1] + string(digits[last|1])
}

func TestVerifier_AllowsForClocksThatDiffer(t *testing.T) {
	r := newRig(t, "    clock_skew: 1m\n    max_lifetime: 1h\n"+grants)
	unix := func(d time.Duration) int64 { return r.now.Add(d).Unix() }
	for _, c := range []struct {
		change jwt.MapClaims
		ok     bool
	}{
		{jwt.MapClaims{"exp": unix(-59 * time.Second)}, true},
		{jwt.MapClaims{"exp": unix(-61 * time.Second)}, false},
		{jwt.MapClaims{"nbf": unix(59 * time.Second)}, true},
		{jwt.MapClaims{"nbf": unix(61 * time.Second)}, false},
		{jwt.MapClaims{"iat": unix(59 * time.Second)}, true},
		{jwt.MapClaims{"iat": unix(61 * time.Second)}, false},
		{jwt.MapClaims{"exp": unix(61 * time.Minute)}, true},
		{jwt.MapClaims{"exp": unix(62 * time.Minute)}, false},
	} {
		if _, err := r.Authenticate(r.issuer.Token(t, c.change)); (err == nil) != c.ok {
			t.Errorf("%v: %v", c.change, err)
		}
	}
}

func TestPrincipal_CheckEndsWithTheToken(t *testing.T) {
	r := newRig(t, grants)
	p, err := r.Authenticate(r.issuer.Token(t, nil))
	if err != nil || p.Check() != nil {
		t.Fatal(err, p.Check())
	}
	r.now = r.now.Add(10*time.Minute + 31*time.Second)
	if err := p.Check(); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("after its end: %v", err)
	}
}
