package router

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// A host that cannot load layers of a model is left out for this model, with the reason, until it changes or some time
// has passed. Without this the plan would name it, and the placer would ask it, forever.

const (
	mostRefusals  = 3                // loads in a row that a host may refuse before it is left out
	refusedFirst  = 5 * time.Minute  // for which it is then left out at first; each further time doubles it
	refusedLonger = 80 * time.Minute // the longest
)

// refusals are the loads of a model that a host has refused.
type refusals struct {
	count  int // in a row
	times  int // how often the host was left out
	until  time.Time
	shape  uint64 // of the host at that time
	reason string
}

// shapeOf returns a number that changes when a host changes in what it can load: its process, its memory, the layers
// that it was given by flag, and its model files.
func shapeOf(d *shardv1.DescribeResponse) uint64 {
	i := d.GetInventory()
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %d\n", d.GetInstance(), d.GetKernelClass(), i.GetMemoryBytes())
	for _, span := range d.GetHeld() {
		if !span.GetAssigned() {
			fmt.Fprintf(h, "%q %d %d\n", span.GetDigest(), span.GetLo(), span.GetHi())
		}
	}
	var offers []string
	for _, o := range i.GetOffers() {
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
		if err == nil { // an offer that cannot be encoded again changes nothing
			offers = append(offers, string(text))
		}
	}
	slices.Sort(offers)
	for _, o := range offers {
		fmt.Fprintf(h, "%q\n", o)
	}
	return h.Sum64()
}

// refusedBy counts the end of a load. Errors that say nothing of the host, such as that it could not be reached or
// that the placer was replaced, do not count. A host that is full and can free something is no reason either, nor is
// one that still loads what an earlier placer, or an earlier plan, has asked for. The caller holds mu of the placer.
func (h *placed) refusedBy(w part, err error, now time.Time) (left bool) {
	switch fault.CodeOf(err) {
	case fault.Unspecified:
		delete(h.refused, w.digest)
		return false
	case fault.Unavailable, fault.Aborted, fault.Canceled, fault.DeadlineExceeded:
		return false
	case fault.Exhausted:
		if h.freeable || len(h.desc.GetInventory().GetLoading()) > 0 { // it is asked again when that is gone
			return false
		}
	}
	r := h.refused[w.digest]
	if r == nil {
		if h.refused == nil {
			h.refused = map[string]*refusals{}
		}
		r = &refusals{}
		h.refused[w.digest] = r
	}
	r.count++
	r.reason = fmt.Sprintf("it could not load layers %d-%d %s: %v", w.lo, w.hi, plural.Of(r.count, "time"), err)
	if r.count < mostRefusals {
		return false
	}
	wait := min(refusedLonger, refusedFirst<<min(r.times, 10))
	r.count, r.times, r.until, r.shape = 0, r.times+1, now.Add(wait), shapeOf(h.desc)
	return true
}

// refuses reports whether a host is left out for a model, and why. The caller holds mu of the placer.
func (h *placed) refuses(digest string, now time.Time) (reason string, refused bool) {
	r := h.refused[digest]
	if r == nil || r.until.IsZero() {
		return "", false
	}
	if now.After(r.until) || shapeOf(h.desc) != r.shape {
		r.until = time.Time{}
		return "", false
	}
	return r.reason, true
}

// avoid keeps hosts that refuse a model out of its plan.
func (p *placer) avoid(m *plan.Model) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for id, h := range p.hosts {
		if !h.alive() {
			continue
		}
		if reason, refused := h.refuses(m.Digest, now); refused {
			if !slices.Contains(m.Avoid, id) {
				m.Avoid = append(m.Avoid, id)
			}
			p.refusing[id] = fmt.Sprintf("model %s: %s", m.Name, reason)
		}
	}
}
