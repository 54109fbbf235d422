package deploy

import (
	"encoding/json"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	maxDocument = 512 << 10 // bytes of a document; what Consul takes as a value
	maxClock    = 1 << 43   // milliseconds; their difference is no time that is too long
)

// Encode returns the state as JSON.
func (s *State) Encode() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode deployments")
	}
	if len(text) > maxDocument {
		return nil, fault.New(fault.Exhausted, "encode deployments: %d bytes are more than %d", len(text), maxDocument)
	}
	return text, nil
}

// Parse reads what Encode has written. The error is Invalid and names the field.
func Parse(text []byte) (*State, error) {
	if len(text) > maxDocument {
		return nil, fault.Field("deployments", "parse deployments: want at most %d bytes, got %d", maxDocument, len(text))
	}
	s := &State{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fault.Field("deployments", "parse deployments: %v", err)
	}
	if n := len(s.Deployments); n > maxDeployments {
		return nil, fault.Field("deployments", "parse deployments: want at most %d, got %d", maxDeployments, n)
	}
	for i := range s.Deployments {
		d := &s.Deployments[i]
		at := fmt.Sprintf("deployments[%d]", i)
		if d.Name == "" || len(d.Name) > maxName {
			return nil, fault.Field(at+".name", "parse deployments: want 1 to %d bytes, got %d", maxName, len(d.Name))
		}
		if i > 0 && s.Deployments[i-1].Name >= d.Name {
			return nil, fault.Field(at+".name", "parse deployments: want them sorted by name, got %q after %q", d.Name,
				s.Deployments[i-1].Name)
		}
		if err := d.check(); err != nil {
			return nil, fault.Field(at, "parse deployments: %v", err)
		}
	}
	return s, nil
}

// check returns an error if a deployment is none that Deploy and Step make.
func (d *Deployment) check() error {
	if err := d.Spec.check(); err != nil {
		return err
	}
	if d.Rest != Awake && d.Rest != Dozing && d.Rest != Asleep {
		return fault.Field("rest", "unknown value %.20q", string(d.Rest))
	}
	if len(d.Retiring) > maxRetiring+2 || len(d.Past) > maxPast {
		return fault.Field("retiring", "want at most %d versions and %d former ones, got %d and %d", maxRetiring+2, maxPast,
			len(d.Retiring), len(d.Past))
	}
	versions := d.Retiring
	for _, v := range []*Version{d.Live, d.Next} {
		if v != nil {
			versions = append(versions[:len(versions):len(versions)], *v)
		}
	}
	for _, v := range versions {
		if v.Digest == "" || len(v.Digest) > maxName || len(v.Model) > maxName {
			return fault.Field("digest", "want digests of 1 to %d bytes, got %d", maxName, len(v.Digest))
		}
		if v.Began < 0 || v.Began > maxClock {
			return fault.Field("began", "want 0 to %d, got %d", int64(maxClock), v.Began)
		}
	}
	return nil
}
