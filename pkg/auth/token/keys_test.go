package token_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth/token"
	"github.com/lamina-mesh/lamina/pkg/auth/token/tokentest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestParseKeys_LeavesOutWhatIsNotForSignatures(t *testing.T) {
	i := tokentest.New(t, "i", nil)
	var list struct{ Keys []map[string]any }
	if err := json.Unmarshal(i.Keys(), &list); err != nil {
		t.Fatal(err)
	}
	rsa, ec, ed := list.Keys[0], list.Keys[1], list.Keys[4]
	with := func(k map[string]any, name string, value any) map[string]any {
		out := map[string]any{}
		for n, v := range k {
			out[n] = v
		}
		out[name] = value
		return out
	}
	for name, k := range map[string]any{
		"symmetric":          map[string]any{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
		"no type":            map[string]any{"n": rsa["n"], "e": rsa["e"]},
		"for encryption":     with(rsa, "use", "enc"),
		"to sign only":       with(rsa, "key_ops", []string{"sign"}),
		"of none":            with(rsa, "alg", "none"),
		"of HMAC":            with(rsa, "alg", "HS256"),
		"of another type":    with(rsa, "alg", "ES256"),
		"of another curve":   with(ec, "alg", "ES384"),
		"short modulus":      with(rsa, "n", "AQAB"),
		"even modulus":       with(rsa, "n", strings.Repeat("A", 10)+strings.Repeat("g", 340)+"A"),
		"long modulus":       with(rsa, "n", strings.Repeat("_", 4000)),
		"exponent 1":         with(rsa, "e", "AQ"),
		"exponent even":      with(rsa, "e", "Ag"),
		"exponent long":      with(rsa, "e", "AQAAAAE"),
		"padding":            with(rsa, "n", rsa["n"].(string)+"=="),
		"modulus a number":   with(rsa, "n", 12),
		"not on the curve":   with(ec, "x", ec["y"]),
		"short coordinate":   with(ec, "x", "AQAB"),
		"unknown curve":      with(ec, "crv", "secp256k1"),
		"curve of agreement": with(ed, "crv", "X25519"),
		"short key":          with(ed, "x", "AQAB"),
		"no object":          "key",
		"null":               nil,
		"long id":            with(rsa, "kid", strings.Repeat("k", 257)),
	} {
		text, err := json.Marshal(map[string]any{"keys": []any{k, ed}})
		if err != nil {
			t.Fatal(err)
		}
		set, skipped, err := token.ParseKeys(text)
		if err != nil || set.Len() != 1 || len(skipped) != 1 || !strings.Contains(skipped[0].Error(), "keys[0]") {
			t.Errorf("%s: %v, %v", name, skipped, err)
		}
		if text, err = json.Marshal(map[string]any{"keys": []any{k}}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := token.ParseKeys(text); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s alone: %v", name, err)
		}
	}
	for _, text := range []string{"", "{}", "[]", `{"keys":{}}`, `{"keys":[]}`, strings.Repeat(" ", 600<<10),
		`{"keys":[` + strings.Repeat("{},", 256) + `{}]}`} {
		if _, _, err := token.ParseKeys([]byte(text)); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	f.Add(tokentest.New(f, "i", nil).Keys())
	f.Fuzz(func(t *testing.T, text []byte) {
		set, _, err := token.ParseKeys(text)
		if (err == nil) != (set != nil && set.Len() > 0) || err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%v, %v", set, err)
		}
	})
}

// FuzzVerifier_Authenticate changes tokens: whatever is accepted must be a good token, byte for byte.
func FuzzVerifier_Authenticate(f *testing.F) {
	r := newRig(f, allAlgorithms+grants)
	good := map[string]bool{}
	for _, alg := range tokentest.Algorithms() {
		text := r.issuer.Sign(f, alg, r.issuer.Claims(nil), nil)
		good[text] = true
		f.Add(text)
	}
	f.Add(encode(`{"alg":"none"}`, `{"iss":"https://login.example.org"}`, "x"))
	f.Fuzz(func(t *testing.T, text string) {
		p, err := r.Authenticate(text)
		if (p != nil) != good[text] || p == nil && fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	})
}

// run runs a verifier until the test ends.
func run(t *testing.T, v *token.Verifier) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := v.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// eventually waits until a token is accepted, or with the code of a refusal until it is refused so.
func eventually(t *testing.T, v *token.Verifier, text string, code fault.Code) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		_, err := v.Authenticate(text)
		if fault.CodeOf(err) == code {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after a minute: %v, want %v", err, code)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// realTime is a rig with the real clock.
func realTime(t *testing.T) *rig {
	t.Helper()
	r := &rig{}
	r.issuer = tokentest.New(t, "https://login.example.org", time.Now)
	return r
}

func (r *rig) live(t *testing.T, keys string, retry time.Duration) *token.Verifier {
	t.Helper()
	c, err := token.ParseConfig([]byte(fmt.Sprintf(
		"issuers:\n  - issuer: %s\n    audiences: [lamina]\n    keys: %s\n%s", r.issuer.Name, keys, grants)))
	if err != nil {
		t.Fatal(err)
	}
	v, err := token.New(c, nil, token.Options{Retry: retry})
	if err != nil {
		t.Fatal(err)
	}
	run(t, v)
	return v
}

func TestVerifier_ReadsAFileOfKeysAgain(t *testing.T) {
	r, dir := realTime(t), t.TempDir()
	path := r.issuer.Save(t, dir)
	v := r.live(t, path, 0)
	old := r.issuer.Token(t, nil)
	eventually(t, v, old, fault.Unspecified)
	r.issuer.Rotate(t)
	r.issuer.Save(t, dir)
	eventually(t, v, r.issuer.Token(t, nil), fault.Unspecified)
	eventually(t, v, old, fault.Unauthenticated)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil { // damaged: the keys from before stay
		t.Fatal(err)
	}
	eventually(t, v, r.issuer.Token(t, nil), fault.Unspecified)
	if _, err := token.ReadConfig(filepath.Join(dir, "nothing.yaml")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a missing file: %v", err)
	}
}

func TestVerifier_FetchesKeysThatItDoesNotKnow(t *testing.T) {
	r := realTime(t)
	var keys atomic.Pointer[[]byte]
	set := func() {
		text := r.issuer.Keys()
		keys.Store(&text)
	}
	set()
	var asked atomic.Int64
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	r.issuer.Name = s.URL
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s.URL, s.URL+"/keys")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(*keys.Load())
	})
	v := r.live(t, `""`, 0)
	eventually(t, v, r.issuer.Token(t, nil), fault.Unspecified)
	before := asked.Load()
	for range 1000 { // tokens with made-up keys do not make us ask each time
		_, err := v.Authenticate(r.issuer.Sign(t, "EdDSA", r.issuer.Claims(nil), map[string]any{"kid": "made up"}))
		if fault.CodeOf(err) != fault.Unauthenticated {
			t.Fatal(err)
		}
	}
	if n := asked.Load() - before; n > 100 { // one in ten seconds, however slow the machine
		t.Errorf("asked %d times for 1000 tokens", n)
	}
	v = r.live(t, `""`, 10*time.Millisecond)
	eventually(t, v, r.issuer.Token(t, nil), fault.Unspecified)
	r.issuer.Rotate(t)
	set()
	eventually(t, v, r.issuer.Token(t, nil), fault.Unspecified) // long before the next refresh
}

func TestVerifier_RefusesBadServersOfKeys(t *testing.T) {
	r := realTime(t)
	keys := r.issuer.Keys()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys) }))
	t.Cleanup(good.Close)
	for name, handler := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, good.URL, http.StatusFound) },
		"error":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"no keys":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"keys":[]}`) },
		"too large": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Repeat(" ", 600<<10), string(keys))
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9999")
			_, _ = w.Write(keys)
		},
	} {
		asked := make(chan struct{}, 100)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			handler(w, q)
			select {
			case asked <- struct{}{}:
			default:
			}
		}))
		t.Cleanup(s.Close)
		v := r.live(t, s.URL, 0)
		<-asked
		if _, err := v.Authenticate(r.issuer.Token(t, nil)); fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":"https://evil.example","jwks_uri":%q}`, good.URL)
	}))
	t.Cleanup(s.Close)
	r.issuer.Name = s.URL
	if _, err := r.live(t, `""`, 0).Authenticate(r.issuer.Token(t, nil)); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a provider that calls itself something else: %v", err)
	}
}

func BenchmarkVerifier_Authenticate(b *testing.B) {
	r := newRig(b, allAlgorithms+grants)
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		text := r.issuer.Sign(b, alg, r.issuer.Claims(jwt.MapClaims{"groups": []string{"a", "b"}}), nil)
		b.Run(alg, func(b *testing.B) {
			for b.Loop() {
				if _, err := r.Authenticate(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
