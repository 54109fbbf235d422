package plan

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Document is a plan as routers share it. The one that holds the placer's lock writes it.
type Document struct {
	// Fence is the token of the lock under which it was written, and Base. A placer that has lost the lock has a lower
	// one than its successor, and cannot replace the successor's plan.
	Fence uint64
	// Base is the highest fence from before the registry lost its data, after which the tokens of its locks began anew.
	Base    uint64
	Version uint64 // grows by 1 with each change
	Plan    Plan
	// Reason says why it was last changed, and MoveLayers and MoveBytes what that change loads.
	Reason     string
	MoveLayers int
	MoveBytes  int64
	// Calibration is what the placer had learned when it wrote the plan, and Expected what it then predicted for the
	// pipelines of the plan, which may be older; empty for what the plan says.
	Calibration Calibration
	Expected    []Prediction `json:",omitempty"`
}

// ExpectedOf returns the latest prediction for pipeline k of the plan.
func (d *Document) ExpectedOf(k int) *Prediction {
	if k < len(d.Expected) {
		return &d.Expected[k]
	}
	return &d.Plan.Pipelines[k].Predicted
}

// Corrected returns the document with new predictions for its pipelines, or nil if none of them is off by more than a
// share. now has the same pipelines as the plan.
func (d *Document) Corrected(now *Plan, share float64) *Document {
	if !same(&d.Plan, now) {
		return nil
	}
	off := false
	for k := range d.Plan.Pipelines {
		was, is := d.ExpectedOf(k), &now.Pipelines[k].Predicted
		off = off || math.Abs(Off(was.TokenMS, is.TokenMS)) > share || math.Abs(Off(was.TTFTMS, is.TTFTMS)) > share
	}
	if !off {
		return nil
	}
	next := *d
	next.Expected = nil
	for k := range now.Pipelines {
		next.Expected = append(next.Expected, now.Pipelines[k].Predicted)
	}
	return &next
}

// Replace returns an Aborted error unless next may take the place of d.
func (d *Document) Replace(next *Document) error {
	if next.Fence < d.Fence {
		return fault.New(fault.Aborted, "replace plan %d: fence %d is older than %d", d.Version, next.Fence, d.Fence)
	}
	if next.Version != d.Version+1 {
		return fault.New(fault.Aborted, "replace plan %d: want version %d, got %d", d.Version, d.Version+1,
			next.Version)
	}
	return nil
}

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
	if n := len(d.Expected); n > 0 && n != len(d.Plan.Pipelines) {
		return nil, fault.Field("expected", "parse plan: want %d predictions, got %d", len(d.Plan.Pipelines), n)
	}
	if c := d.Calibration; !(c.RouterMS >= 0 && c.RouterMS <= maxMS && c.FirstMS >= 0 && c.FirstMS <= maxMS &&
		c.HopScale >= 0 && c.HopScale <= 1 && c.Tokens >= 0 && c.Firsts >= 0) {
		return nil, fault.Field("calibration", "parse plan: want times of 0 to %g ms and a scale of 0 to 1, got %v",
			float64(maxMS), c)
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
