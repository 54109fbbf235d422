package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a key set.
const (
	maxKeySet  = 512 << 10 // bytes
	maxSetKeys = 256
	minRSA     = 2048 // bits
	maxRSA     = 8192
	maxKeyID   = 256
	maxTries   = 4 // keys of one id that a signature is tried with
)

// algorithms lists what tokens may be signed by. All of them have a public key.
func algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// key is a public key of an issuer.
type key struct {
	id, alg string // alg is empty for every algorithm that fits the type
	public  crypto.PublicKey
}

// fits reports whether the key may verify signatures of an algorithm.
func (k key) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return alg == map[elliptic.Curve]string{
			elliptic.P256(): "ES256", elliptic.P384(): "ES384", elliptic.P521(): "ES512",
		}[p.Curve]
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// KeySet is the set of an issuer's public keys. It is not changed after its creation.
type KeySet struct{ keys []key }

// Len returns the number of keys.
func (s *KeySet) Len() int { return len(s.keys) }

// find returns the keys that may have signed a token. A token without a key id needs a set in which only one key fits.
func (s *KeySet) find(id, alg string) []crypto.PublicKey {
	if s == nil {
		return nil
	}
	var found []crypto.PublicKey
	for _, k := range s.keys {
		if k.fits(alg) && (id == "" || k.id == id) {
			found = append(found, k.public)
		}
	}
	if id == "" && len(found) > 1 {
		return nil
	}
	return found[:min(len(found), maxTries)]
}

// jwk is a JSON Web Key (RFC 7517 and 8037), as far as it concerns signatures.
type jwk struct {
	Type       string   `json:"kty"`
	ID         string   `json:"kid"`
	Use        string   `json:"use"`
	Operations []string `json:"key_ops"`
	Algorithm  string   `json:"alg"`
	Curve      string   `json:"crv"`
	N          string   `json:"n"`
	E          string   `json:"e"`
	X          string   `json:"x"`
	Y          string   `json:"y"`
}

// ParseKeys reads a JSON Web Key Set. Keys that are not for signatures, or of types that are not supported, are left
// out, and so are damaged ones; skipped says why. A set without any key that can be used is an error.
func ParseKeys(text []byte) (set *KeySet, skipped []error, err error) {
	if len(text) > maxKeySet {
		return nil, nil, fault.New(fault.Invalid, "read key set: more than %d bytes", maxKeySet)
	}
	var list struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, nil, fault.New(fault.Invalid, "read key set: want an object with a list of keys")
	}
	if len(list.Keys) > maxSetKeys {
		return nil, nil, fault.Field("keys", "%d are more than %d", len(list.Keys), maxSetKeys)
	}
	set = &KeySet{}
	for i, raw := range list.Keys {
		var w jwk
		k := key{}
		err := json.Unmarshal(raw, &w)
		if err == nil {
			k, err = w.read()
		}
		if err != nil {
			skipped = append(skipped, fault.Field(fmt.Sprintf("keys[%d]", i), "leave it out: %v", err))
			continue
		}
		set.keys = append(set.keys, k)
	}
	if len(set.keys) == 0 {
		return nil, skipped, fault.Field("keys", "none of %d can be used to verify tokens", len(list.Keys))
	}
	return set, skipped, nil
}

func (w *jwk) read() (key, error) {
	k := key{id: w.ID, alg: w.Algorithm}
	switch {
	case len(w.ID) > maxKeyID:
		return k, fmt.Errorf("kid: more than %d bytes", maxKeyID)
	case w.Use != "" && w.Use != "sig", len(w.Operations) > 0 && !slices.Contains(w.Operations, "verify"):
		return k, fmt.Errorf("use: it is not for signatures")
	case w.Algorithm != "" && !slices.Contains(algorithms(), w.Algorithm):
		return k, fmt.Errorf("alg: %.20q is not supported", w.Algorithm)
	}
	var err error
	switch w.Type {
	case "RSA":
		k.public, err = w.rsa()
	case "EC":
		k.public, err = w.ecdsa()
	case "OKP":
		k.public, err = w.ed25519()
	default:
		return k, fmt.Errorf("kty: %.20q is no public key of a supported type", w.Type)
	}
	if err == nil && k.alg != "" && !k.fits(k.alg) {
		err = fmt.Errorf("alg: %s is for another type of key", k.alg)
	}
	return k, err
}

// octets decodes the bytes of a field.
func octets(field, text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) == 0 {
		return nil, fmt.Errorf("%s: want base64url without padding", field)
	}
	return b, nil
}

func (w *jwk) rsa() (*rsa.PublicKey, error) {
	n, err := octets("n", w.N)
	if err != nil {
		return nil, err
	}
	e, err := octets("e", w.E)
	if err != nil {
		return nil, err
	}
	p := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
	if bits := p.N.BitLen(); bits < minRSA || bits > maxRSA || p.N.Bit(0) == 0 {
		return nil, fmt.Errorf("n: want an odd number of %d to %d bits, got %d", minRSA, maxRSA, bits)
	}
	exponent := new(big.Int).SetBytes(e)
	if exponent.BitLen() > 31 || exponent.Bit(0) == 0 || exponent.Int64() < 3 {
		return nil, fmt.Errorf("e: want an odd number of 2 to 31 bits")
	}
	p.E = int(exponent.Int64())
	return p, nil
}

func (w *jwk) ecdsa() (*ecdsa.PublicKey, error) {
	curve := map[string]elliptic.Curve{
		"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(),
	}[w.Curve]
	if curve == nil {
		return nil, fmt.Errorf("crv: %.20q is not supported", w.Curve)
	}
	x, err := octets("x", w.X)
	if err != nil {
		return nil, err
	}
	y, err := octets("y", w.Y)
	if err != nil {
		return nil, err
	}
	if size := (curve.Params().BitSize + 7) / 8; len(x) != size || len(y) != size {
		return nil, fmt.Errorf("x: want %d bytes each for x and y", size)
	}
	p, err := ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, fmt.Errorf("x: the point is not on the curve")
	}
	return p, nil
}

func (w *jwk) ed25519() (ed25519.PublicKey, error) {
	if w.Curve != "Ed25519" {
		return nil, fmt.Errorf("crv: %.20q is not supported", w.Curve)
	}
	x, err := octets("x", w.X)
	if err != nil {
		return nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("x: want %d bytes, got %d", ed25519.PublicKeySize, len(x))
	}
	return ed25519.PublicKey(x), nil
}
