package wire

import (
	"github.com/lamina-mesh/lamina/pkg/adapter"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// Modules returns the protobuf form of an adapter's outline.
func Modules(o *adapter.Outline) []*shardv1.AdapterModule {
	out := make([]*shardv1.AdapterModule, 0, len(o.Modules))
	for i := range o.Modules {
		m := &o.Modules[i]
		p := &shardv1.AdapterModule{
			Name: m.Name, Rank: uint32(m.Rank), Scale: m.Scale, Inputs: uint32(m.In), Outputs: uint32(m.Out),
			Embeds: m.Embeds, ADigest: m.A[:], BDigest: m.B[:],
		}
		if m.Magnitude != nil {
			p.MagnitudeDigest = m.Magnitude[:]
		}
		out = append(out, p)
	}
	return out
}

// Saved returns the protobuf form of what an adapter replaces.
func Saved(o *adapter.Outline) []*shardv1.AdapterSaved {
	var out []*shardv1.AdapterSaved
	for i := range o.Saved {
		v := &o.Saved[i]
		p := &shardv1.AdapterSaved{Name: v.Name, Digest: v.Sum[:]}
		for _, d := range v.Shape {
			p.Shape = append(p.Shape, uint32(d))
		}
		out = append(out, p)
	}
	return out
}

// Outline returns the outline of an adapter in protobuf form. Its Check has to follow. A digest of the wrong length
// becomes one that no values have.
func Outline(modules []*shardv1.AdapterModule, saved []*shardv1.AdapterSaved) *adapter.Outline {
	out := &adapter.Outline{}
	sum := func(digest []byte) (s adapter.Sum) {
		if len(digest) == len(s) {
			copy(s[:], digest)
		}
		return s
	}
	for _, p := range modules {
		m := adapter.ModuleOutline{
			Name: p.GetName(), Rank: int(p.GetRank()), Scale: p.GetScale(), In: int(p.GetInputs()),
			Out: int(p.GetOutputs()), Embeds: p.GetEmbeds(), A: sum(p.GetADigest()), B: sum(p.GetBDigest()),
		}
		if len(p.GetMagnitudeDigest()) > 0 {
			s := sum(p.GetMagnitudeDigest())
			m.Magnitude = &s
		}
		out.Modules = append(out.Modules, m)
	}
	for _, p := range saved {
		v := adapter.SavedOutline{Name: p.GetName(), Sum: sum(p.GetDigest())}
		for _, d := range p.GetShape() {
			v.Shape = append(v.Shape, int(d))
		}
		out.Saved = append(out.Saved, v)
	}
	return out
}
