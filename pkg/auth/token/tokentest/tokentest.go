// Package tokentest plays an identity provider for tests: it has keys, publishes their set, and signs tokens, good ones
// and such that nobody should accept.
package tokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/token"
)

// Issuer is an identity provider with one key of each type.
type Issuer struct {
	Name string // the claim iss
	Now  func() time.Time
	algs []string
	keys map[string]crypto.Signer // by algorithm
}

// Algorithms lists the algorithms that an issuer signs by. Their keys have the same ids.
func Algorithms() []string { return []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"} }

// New returns an issuer with new keys for some algorithms, or without any for all. A nil now is time.Now.
func New(t testing.TB, name string, now func() time.Time, algs ...string) *Issuer {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	if len(algs) == 0 {
		algs = Algorithms()
	}
	i := &Issuer{Name: name, Now: now, algs: algs}
	i.Rotate(t)
	return i
}

// Rotate replaces all keys.
func (i *Issuer) Rotate(t testing.TB) {
	t.Helper()
	i.keys = map[string]crypto.Signer{}
	curves := map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}
	for _, alg := range i.algs {
		var made crypto.Signer
		var err error
		switch alg {
		case "RS256":
			made, err = rsa.GenerateKey(rand.Reader, 2048)
		case "EdDSA":
			_, made, err = ed25519.GenerateKey(rand.Reader)
		default:
			made, err = ecdsa.GenerateKey(curves[alg], rand.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		i.keys[alg] = made
	}
}

// Public returns the public key of an algorithm.
func (i *Issuer) Public(alg string) crypto.PublicKey { return i.keys[alg].Public() }

// ID returns the id of the key of an algorithm. It changes with each rotation.
func (i *Issuer) ID(alg string) string {
	set := i.keySet()
	for _, k := range set {
		if k["alg"] == alg {
			return k["kid"]
		}
	}
	return ""
}

func (i *Issuer) keySet() []map[string]string {
	text := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	var out []map[string]string
	for _, alg := range i.algs {
		k := map[string]string{"use": "sig", "alg": alg}
		switch p := i.keys[alg].Public().(type) {
		case *rsa.PublicKey:
			k["kty"], k["n"], k["e"] = "RSA", text(p.N.Bytes()), text(big.NewInt(int64(p.E)).Bytes())
			k["kid"] = "rsa-" + k["n"][:8]
		case *ecdsa.PublicKey:
			point, err := p.Bytes()
			if err != nil {
				panic(err) // the key was made by this package
			}
			half := len(point[1:]) / 2
			k["kty"], k["crv"], k["x"], k["y"] = "EC", p.Params().Name, text(point[1:1+half]), text(point[1+half:])
			k["kid"] = "ec-" + k["x"][:8]
		case ed25519.PublicKey:
			k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", text(p)
			k["kid"] = "ed-" + k["x"][:8]
		}
		out = append(out, k)
	}
	return out
}

// Keys returns the key set.
func (i *Issuer) Keys() []byte {
	text, err := json.Marshal(map[string]any{"keys": i.keySet()})
	if err != nil {
		panic(err) // the keys were made by this package
	}
	return text
}

// Save writes the key set to a file in a folder and returns its path. The file is replaced at once.
func (i *Issuer) Save(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "keys.json")
	if err := os.WriteFile(path+".tmp", i.Keys(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Claims returns good claims for the audience lamina, changed by change; a nil value removes a claim.
func (i *Issuer) Claims(change jwt.MapClaims) jwt.MapClaims {
	now := i.Now()
	claims := jwt.MapClaims{
		"iss": i.Name, "sub": "ada", "aud": "lamina", "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Token returns a token that is signed by the first algorithm of the issuer.
func (i *Issuer) Token(t testing.TB, change jwt.MapClaims) string {
	t.Helper()
	return i.Sign(t, i.algs[0], i.Claims(change), nil)
}

// Sign returns a token with the claims, and fields of its header changed; a nil value removes a field.
func (i *Issuer) Sign(t testing.TB, alg string, claims jwt.MapClaims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(alg), claims)
	token.Header["kid"] = i.ID(alg)
	maps.Copy(token.Header, header)
	maps.DeleteFunc(token.Header, func(_ string, v any) bool { return v == nil })
	text, err := token.SignedString(i.keys[alg])
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Verifier returns a verifier of the issuer's tokens for the audience lamina, which the claim role gives the role of
// its name in the tenant own.
func (i *Issuer) Verifier(t testing.TB) *token.Verifier {
	t.Helper()
	text := fmt.Sprintf("issuers:\n- issuer: %s\n  audiences: [lamina]\n  keys: %s\n  grants:\n", i.Name,
		i.Save(t, t.TempDir()))
	for _, role := range auth.Roles() {
		text += fmt.Sprintf("  - {when: {role: %s}, roles: [%s], tenant: own}\n", role, role)
	}
	c, err := token.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v, err := token.New(c, auth.NewMeters(i.Now), token.Options{Now: i.Now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Bad returns tokens that nobody may accept, by what is wrong with them.
func (i *Issuer) Bad(t testing.TB) map[string]string {
	t.Helper()
	role := jwt.MapClaims{"role": string(auth.Operator)}
	with := func(name string, value any) jwt.MapClaims {
		out := maps.Clone(role)
		out[name] = value
		return out
	}
	good := i.Token(t, role)
	other := New(t, i.Name, i.Now, i.algs...)
	return map[string]string{
		"of other keys":        other.Token(t, role),
		"with our key's id":    other.Sign(t, i.algs[0], other.Claims(role), map[string]any{"kid": i.ID(i.algs[0])}),
		"that has expired":     i.Token(t, with("exp", i.Now().Add(-time.Hour).Unix())),
		"that is not valid":    i.Token(t, with("nbf", i.Now().Add(time.Hour).Unix())),
		"of another issuer":    i.Token(t, with("iss", "https://evil.example")),
		"for another audience": i.Token(t, with("aud", "grafana")),
		"without signature":    good[:strings.LastIndex(good, ".")+1],
		"of no algorithm": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) +
			good[strings.Index(good, "."):],
	}
}
