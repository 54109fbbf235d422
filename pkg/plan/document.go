package plan

import (
	"encoding/json"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a document.
const (
	maxDocument  = 512 << 10 // bytes; what Consul takes as a value
	maxPipelines = 10_000
	maxStages    = maxLayers
)

// Encode returns the document as JSON. If it is too long for the registry, it leaves out which hosts the plan does
// without.
func (d *Document) Encode() ([]byte, error) {
	text, err := json.Marshal(d)
	if err == nil && len(text) > maxDocument {
		short := *d
		short.Plan.LeftOut = nil
		text, err = json.Marshal(&short)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode plan %d", d.Version)
	}
	if len(text) > maxDocument {
		return nil, fault.New(fault.Exhausted, "encode plan %d: %d bytes are more than %d", d.Version, len(text),
			maxDocument)
	}
	return text, nil
}

// ParseDocument reads what Encode has written. The error is Invalid and names the field.
func ParseDocument(text []byte) (*Document, error) {
	if len(text) > maxDocument {
		return nil, fault.Field("plan", "parse plan: want at most %d bytes, got %d", maxDocument, len(text))
	}
	d := &Document{}
	if err := json.Unmarshal(text, d); err != nil {
		return nil, fault.Field("plan", "parse plan: %v", err)
	}
	if n := len(d.Plan.Pipelines); n > maxPipelines {
		return nil, fault.Field("plan.pipelines", "parse plan: want at most %d, got %d", maxPipelines, n)
	}
	for k, p := range d.Plan.Pipelines {
		at, field := 0, fmt.Sprintf("plan.pipelines[%d]", k)
		if p.Digest == "" || len(p.Stages) == 0 || len(p.Stages) > maxStages {
			return nil, fault.Field(field, "parse plan: want a digest and 1 to %d stages, got %.80q and %d", maxStages,
				p.Digest, len(p.Stages))
		}
		if p.KVPositions < 0 || p.KVPositions > 1<<24 {
			return nil, fault.Field(field+".kv_positions", "parse plan: want 0 to %d, got %d", 1<<24, p.KVPositions)
		}
		for i, s := range p.Stages {
			if s.Host == "" || s.Lo != at || s.Hi <= s.Lo || s.Hi > maxLayers {
				return nil, fault.Field(fmt.Sprintf("%s.stages[%d]", field, i),
					"parse plan: want a host and layers from %d to at most %d, got %.80q, %d and %d", at, maxLayers, s.Host,
					s.Lo, s.Hi)
			}
			at = s.Hi
		}
	}
	return d, nil
}
