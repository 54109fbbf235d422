package shard

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/compress"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// These are the two parts of a tied embedding whose two uses are on different stages.
const (
	tiedEmbedding = "tied-embedding"
	tiedHead      = "tied-head"
)

// A bucket is full with bucketValues. It has tensors of one layer only, unless they are fewer than leastValues:
// a bucket goes out as soon as the gradients of its layers are final.
const (
	bucketValues = 1 << 20
	leastValues  = 1 << 18
)

// bucket is a group of tensors that follow one another in a span's gradient, and the unit of exchange. If
// that takes fewer bytes, buckets are scattered: one replica sums a bucket over all replicas and publishes
// the sum, so that nobody else reads its nodes.
type bucket struct {
	codec   compress.Codec
	params  []model.Param[float32] // in name order, without their values
	lo, hi  int                    // in the flat gradient
	nodes   parcel                 // encoded units
	tied    bool                   // one tensor, whose other part is on another stage
	scatter bool
	owner   int    // the replica that sums it, if scattered; with near the machine
	fold    parcel // the sum in float32, if scattered

	parts           map[int]bool // of the model, to which its tensors belong; see model.Spec.PartOf
	squares, errors []float64    // of each tensor of the last unit, if the wire type loses something

	// With near, the leader sums the bucket for the replicas of this machine: it takes the units of local, and passes
	// the sum over all replicas on as sum.
	leader     int
	local, sum parcel
}

// makeBuckets groups tensors, which are in name order.
func (m *reducer) makeBuckets(params []model.Param[float32]) []*bucket {
	var out []*bucket
	var open *bucket
	at := 0
	for _, p := range params {
		n := len(p.Data)
		tied := p.Name == m.tied
		of := m.span.stage.Spec.PartOf(p.Name)
		if open == nil || tied || open.tied || open.hi-open.lo+n > bucketValues ||
			!open.parts[of] && open.hi-open.lo >= leastValues {
			open = &bucket{codec: m.codec, lo: at, tied: tied, parts: map[int]bool{}}
			out = append(out, open)
		}
		open.params, open.parts[of] = append(open.params, p), true
		at += n
		open.hi = at
		open.nodes.size += m.codec.Size(n)
	}
	for i, b := range out {
		part := fmt.Sprintf("%s%s.%d", m.span.stage.Range, m.label, i)
		here := m.self // or its machine
		if b.tied {
			if part = tiedEmbedding + m.label; m.span.stage.Last() {
				part = tiedHead + m.label
			}
		} else {
			here = m.place()
			b.scatter, b.owner = m.scatters(b), i%m.places()
			from := b.owner // its place among the members
			if m.near != nil {
				from = m.leader(i, b.owner)
			}
			b.fold = parcel{part: part + ".fold", size: 4 * (b.hi - b.lo),
				publishers: map[schedule.Node]int{m.root: from}}
		}
		b.nodes.part, b.nodes.wire = part, m.codec.Wire
		b.nodes.publishers, b.nodes.ignored = map[schedule.Node]int{}, map[schedule.Node]bool{}
		for n, place := range m.published(b) {
			if place == here {
				b.nodes.ignored[n] = true
			} else {
				b.nodes.publishers[n] = m.sender(b, i, n, place)
			}
		}
		if m.near != nil && !b.tied {
			m.setLeader(b, i)
		}
	}
	return out
}

// scatters reports whether a replica reads fewer bytes of a bucket if it is scattered: it then reads the
// others' units of its own share of the buckets and the sums of the rest.
func (m *reducer) scatters(b *bucket) bool {
	units, places := len(m.published(b)), m.places()
	all := (units - units/places) * b.nodes.size
	return (all+(places-1)*4*(b.hi-b.lo))/places < all
}

// encode encodes the bucket's part of a unit, in the host's memory, and leaves in it what readers decode.
func (b *bucket) encode(m *reducer, flat, residual []float32) []byte {
	if b.codec.Exact() {
		return wire.Bytes(flat[b.lo:b.hi])
	}
	host := m.run.service.host
	out := make([]byte, 0, b.nodes.size)
	at := b.lo
	for _, p := range b.params {
		x := flat[at : at+len(p.Data)]
		b.squares = append(b.squares, host.SumSquares(x))
		var left []float32
		if b.codec.Feedback() {
			left = residual[at : at+len(x)]
			out = b.codec.Encode(out, x, left)
		} else {
			left = append(left, x...)
			out = b.codec.Encode(out, x, nil)
			for i, v := range x {
				left[i] -= v
			}
		}
		b.errors = append(b.errors, host.SumSquares(left))
		at += len(x)
	}
	return out
}

// decode decodes a bucket of a unit.
func (b *bucket) decode(dst []float32, data []byte) error {
	for _, p := range b.params {
		n := len(p.Data)
		size := b.codec.Size(n)
		if err := b.codec.Decode(dst[:n], data[:size]); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		dst, data = dst[n:], data[size:]
	}
	return nil
}
