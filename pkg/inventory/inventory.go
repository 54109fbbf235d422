// Package inventory turns what shards say of themselves (shard.v1 Describe) into the input of pkg/plan. The placer
// of a router and `lamina plan --consul` use it, so that both make the same plan of the same fleet. It does no I/O.
package inventory

import (
	"cmp"
	"slices"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// Shard is a shard with its description, and the way to it.
type Shard struct {
	ID          string // of the instance in discovery; the host of a plan
	Description *shardv1.DescribeResponse
	HopMS       float64 // of a frame to it, in one direction; 0 if it is not known
	Mbps        float64 // bandwidth of the link to it; 0 for no limit
}

// Options say what is wanted of a plan.
type Options struct {
	Goal     plan.Goal
	Replicas int     // of each model, as in plan.Model
	Headroom float64 // as in plan.Request
	RouterMS float64 // as in plan.Request
	FirstMS  float64 // as in plan.Request
	// Hop returns the time of a frame over a hop whose ping takes a time; nil for the same time.
	Hop func(pingMS float64) float64
	// Each may change what is wanted of a model that some shard offers, and reports whether it is to be placed; nil for
	// all of them as they are.
	Each func(*plan.Model) bool
	// KVLeast and KVMost are the positions of the KV caches, as in plan.Model.
	KVLeast, KVMost int
}

const (
	encoderRows = 256 // of a batch of texts, as routers send it
	mostContext = 1 << 20
)

// unlimited is the memory of a host that does not know its own.
const unlimited = 1 << 44

// Bounds of what a shard may say, well within those of pkg/plan: a host with numbers out of bounds would make every
// plan fail.
const (
	mostBytes       = 1 << 48
	leastMS, mostMS = 1e-6, 1e8
)

// usable reports whether a plan can be made with a time.
func usable(t *shardv1.LayerTime) bool {
	return t.GetDecodeMs() >= leastMS && t.GetDecodeMs() <= mostMS && t.GetRowMs() >= 0 && t.GetRowMs() <= mostMS &&
		t.GetLayerBytes() <= mostBytes
}

// Request returns the request for a plan: the hosts are the shards that take assignments and have measured their
// speed, and the models those that they offer. Shards that cannot be hosts are returned with the reason.
func Request(shards []Shard, o Options) (plan.Request, []plan.LeftOut) {
	r := plan.Request{Goal: o.Goal, Headroom: o.Headroom, RouterMS: o.RouterMS,
		FirstMS: o.FirstMS}
	sorted := slices.Clone(shards)
	slices.SortFunc(sorted, func(a, b Shard) int { return cmp.Compare(a.ID, b.ID) })
	var left []plan.LeftOut
	var hosts []Shard
	models := map[string]*plan.Model{}
	offered := map[string]map[string]bool{} // by digest, then host
	var digests []string
	for _, s := range sorted {
		i := s.Description.GetInventory()
		reason := ""
		switch {
		case s.Description.GetInstance() != "" && s.Description.GetInstance() != s.ID:
			reason = "another process runs at its address"
		case !i.GetAssignable():
			reason = "it takes no assignments"
		case len(i.GetOffers()) == 0:
			reason = "it has no model files"
		case len(i.GetTimes()) == 0:
			reason = "it has not measured its speed yet"
		case !slices.ContainsFunc(i.GetTimes(), usable):
			reason = "its measured times are out of bounds"
		}
		if reason != "" {
			left = append(left, plan.LeftOut{ID: s.ID, Reason: reason})
			continue
		}
		if o.Hop != nil {
			s.HopMS = o.Hop(s.HopMS)
		}
		hosts = append(hosts, s)
		for _, e := range i.GetOffers() {
			digest := e.GetDigest()
			if models[digest] == nil {
				models[digest], offered[digest] = modelOf(e, o), map[string]bool{}
				digests = append(digests, digest)
			}
			offered[digest][s.ID] = true
			models[digest].KVBytes = max(models[digest].KVBytes, int64(e.GetKvBytes()))
		}
	}
	slices.Sort(digests)
	for _, digest := range digests {
		m := models[digest]
		for _, s := range hosts {
			if !offered[digest][s.ID] {
				m.Avoid = append(m.Avoid, s.ID)
			}
		}
		if o.Each == nil || o.Each(m) {
			r.Models = append(r.Models, *m)
		}
	}
	for _, s := range hosts {
		r.Hosts = append(r.Hosts, hostOf(s, r.Models))
	}
	return r, left
}

func modelOf(e *shardv1.Offer, o Options) *plan.Model {
	m := &plan.Model{
		Name: e.GetModel(), Digest: e.GetDigest(), Embedding: int64(e.GetEmbeddingBytes()),
		Head: int64(e.GetHeadBytes()), Tied: e.GetTied(), KVBytes: int64(e.GetKvBytes()),
		HiddenBytes: int64(e.GetHiddenBytes()), Replicas: o.Replicas, KVPositions: o.KVLeast, MaxKVPositions: o.KVMost,
	}
	if e.GetEncoder() { // nothing stays in the cache: it has the texts of one batch
		m.KVPositions = max(int(min(e.GetContext(), mostContext)), encoderRows)
		m.MaxKVPositions = m.KVPositions
	}
	for l, n := range e.GetLayerBytes() {
		m.Layers = append(m.Layers, int64(n))
		read := int64(n)
		if l < len(e.GetReadBytes()) {
			read = int64(e.GetReadBytes()[l])
		}
		m.Read = append(m.Read, read)
	}
	return m
}

// hostOf describes a shard as a host, which has a usable time. Spans that were given by flag take their memory away
// from the plan.
func hostOf(s Shard, models []plan.Model) plan.Host {
	d := s.Description
	i := d.GetInventory()
	h := plan.Host{ID: s.ID, Memory: int64(min(i.GetMemoryBytes(), mostBytes)), HopMS: s.HopMS, Mbps: s.Mbps,
		Zone: i.GetZone(), Class: d.GetKernelClass()}
	if h.Memory == 0 {
		h.Memory = unlimited
	}
	for _, span := range d.GetHeld() {
		if !span.GetAssigned() {
			h.Memory -= int64(min(span.GetWeightBytes(), mostBytes))
		}
	}
	h.Memory = max(0, h.Memory)
	// The time of the model with the largest layers says most: others are scaled by their bytes.
	var best *shardv1.LayerTime
	for _, t := range i.GetTimes() {
		wanted := slices.ContainsFunc(models, func(m plan.Model) bool { return m.Digest == t.GetDigest() })
		switch {
		case !usable(t):
		case best == nil, wanted && t.GetLayerBytes() > best.GetLayerBytes():
			best = t
		}
	}
	h.LayerMS, h.RowMS, h.LayerBytes = best.GetDecodeMs(), best.GetRowMs(), int64(best.GetLayerBytes())
	if share := best.GetQuotaShare(); share > 0 && share < 1 && best.GetQuotaMs() > 0 && best.GetQuotaMs() <= mostMS {
		h.QuotaShare, h.QuotaMS = share, best.GetQuotaMs()
	}
	if h.RowMS > 0 { // 0 stands for the default
		h.RowMS = max(leastMS, h.RowMS)
	}
	return h
}
