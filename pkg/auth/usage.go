package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a report.
const (
	MaxReport   = 384 << 10 // bytes
	maxCallers  = 2048
	maxReporter = 64             // bytes of a router's id
	maxSpent    = int64(1) << 53 // numbers up to here are exact in every JSON parser
)

// Usage is what a router tells the others of one caller.
type Usage struct {
	Caller string `json:"caller"` // the beginning of the SHA-256 digest of its id, in base64url
	// Period is the number of the time since the caller's budgets were last full. Requests and Tokens are what the
	// router itself has let in since then, less what requests did not use of the tokens that were reserved for them.
	Period   uint64 `json:"period"`
	Requests int64  `json:"requests,omitempty"`
	Tokens   int64  `json:"tokens,omitempty"`
	// RequestsMissing and TokensMissing are what the budgets lack to be full, with all that the router knows of.
	RequestsMissing int64 `json:"requests_missing,omitempty"`
	TokensMissing   int64 `json:"tokens_missing,omitempty"`
}

// Report is the document of one router. It has no times: the clocks of routers differ.
type Report struct {
	Version int     `json:"version"`
	Router  string  `json:"router"` // another id for each process
	Callers []Usage `json:"callers"`
}

const reportVersion = 1

// callerOf returns the name of a caller in reports. It has the same length for each, and says nothing of the subjects
// of tokens.
func callerOf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

var callerLength = len(callerOf(""))

// ParseReport reads a report. An error names the field.
func ParseReport(text []byte) (*Report, error) {
	if len(text) > MaxReport {
		return nil, fault.New(fault.Invalid, "read report: %d bytes are more than %d", len(text), MaxReport)
	}
	var r Report
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fault.New(fault.Invalid, "read report at byte %d: %v", d.InputOffset(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "read report at byte %d: there is more behind the object", d.InputOffset())
	}
	if r.Version != reportVersion {
		return nil, fault.Field("version", "want %d, got %d", reportVersion, r.Version)
	}
	if r.Router == "" || len(r.Router) > maxReporter {
		return nil, fault.Field("router", "want 1 to %d bytes, got %d", maxReporter, len(r.Router))
	}
	if len(r.Callers) > maxCallers {
		return nil, fault.Field("callers", "%d are more than %d", len(r.Callers), maxCallers)
	}
	known := make(map[string]bool, len(r.Callers))
	for i, u := range r.Callers {
		if err := u.check(); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "read callers[%d]", i)
		}
		if known[u.Caller] {
			return nil, fault.Field(fmt.Sprintf("callers[%d].caller", i), "%s is there twice", u.Caller)
		}
		known[u.Caller] = true
	}
	return &r, nil
}

// check returns an error that names the first field with a value that is not allowed.
func (u Usage) check() error {
	if raw, err := base64.RawURLEncoding.DecodeString(u.Caller); err != nil || len(u.Caller) != callerLength ||
		base64.RawURLEncoding.EncodeToString(raw) != u.Caller {
		return fault.Field("caller", "want %d characters of base64url", callerLength)
	}
	if u.Period == 0 {
		return fault.Field("period", "must not be 0")
	}
	for _, f := range [...]struct {
		name    string
		n, most int64
	}{
		{"requests", u.Requests, maxSpent}, {"tokens", u.Tokens, maxSpent},
		{"requests_missing", u.RequestsMissing, MaxBudget}, {"tokens_missing", u.TokensMissing, MaxBudget},
	} {
		if f.n < 0 || f.n > f.most {
			return fault.Field(f.name, "want 0 to %d, got %d", f.most, f.n)
		}
	}
	return nil
}
