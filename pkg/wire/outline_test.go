package wire_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

func outlined() *adapter.Outline {
	a := &adapter.Adapter{Modules: []adapter.Module{
		{Name: "a", Rank: 1, Scale: 2, In: 2, Out: 1, A: []float32{1, 2}, B: []float32{3}},
		{Name: "b", Rank: 2, Scale: 0.5, In: 1, Out: 1, A: []float32{1, 2}, B: []float32{3, 4},
			Magnitude: []float32{5}},
		{Name: "c", Rank: 1, Scale: 1, In: 1, Out: 1, Embeds: true, A: []float32{1}, B: []float32{3}},
	}, Saved: []adapter.Saved{
		{Name: "head.weight", Shape: []int{2, 3}, Data: []float32{1, 2, 3, 4, 5, 6}},
		{Name: "norm.weight", Shape: []int{3}, Data: []float32{1, 2, 3}},
	}}
	return a.Outline()
}

// TestOutline_RoundTrips keeps everything that the digest covers.
func TestOutline_RoundTrips(t *testing.T) {
	want := outlined()
	got := wire.Outline(wire.Modules(want), wire.Saved(want))
	if err := got.Check(); err != nil || got.Digest() != want.Digest() {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
	changes := []func(m *shardv1.AdapterModule){
		func(m *shardv1.AdapterModule) { m.Name = "B" }, func(m *shardv1.AdapterModule) { m.Rank++ },
		func(m *shardv1.AdapterModule) { m.Scale *= 2 }, func(m *shardv1.AdapterModule) { m.Inputs++ },
		func(m *shardv1.AdapterModule) { m.Outputs++ }, func(m *shardv1.AdapterModule) { m.Embeds = !m.Embeds },
		func(m *shardv1.AdapterModule) { m.ADigest[0]++ }, func(m *shardv1.AdapterModule) { m.BDigest = m.ADigest },
		func(m *shardv1.AdapterModule) { m.MagnitudeDigest = nil },
	}
	for i, change := range changes {
		modules := wire.Modules(outlined())
		change(modules[1])
		if wire.Outline(modules, wire.Saved(want)).Digest() == want.Digest() {
			t.Errorf("change %d leaves the digest as it is", i)
		}
	}
	for i, change := range []func(v *shardv1.AdapterSaved){
		func(v *shardv1.AdapterSaved) { v.Name = "b" }, func(v *shardv1.AdapterSaved) { v.Shape[0], v.Shape[1] = 3, 2 },
		func(v *shardv1.AdapterSaved) { v.Digest[0]++ }, func(v *shardv1.AdapterSaved) { v.Digest = nil },
	} {
		saved := wire.Saved(outlined())
		change(saved[0])
		if wire.Outline(wire.Modules(want), saved).Digest() == want.Digest() {
			t.Errorf("change %d of what is saved leaves the digest as it is", i)
		}
	}
}

// FuzzOutline reads what a router may send.
func FuzzOutline(f *testing.F) {
	o := outlined()
	seed, err := proto.Marshal(&shardv1.LoadAdapterOpen{Modules: wire.Modules(o), Saved: wire.Saved(o)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		open := &shardv1.LoadAdapterOpen{}
		if proto.Unmarshal(data, open) != nil {
			return
		}
		o := wire.Outline(open.GetModules(), open.GetSaved())
		_ = o.Digest()
		if o.Check() != nil {
			return
		}
		for i := range o.Modules {
			if n := o.Modules[i].Bytes(); n < 8 || n > 4*(512*2+1)<<24 {
				t.Errorf("module %d takes %d bytes", i, n)
			}
		}
		for i := range o.Saved {
			if n := o.Saved[i].Bytes(); n < 4 || n > 4<<48 {
				t.Errorf("tensor %d takes %d bytes", i, n)
			}
		}
		if o.Shapes().CheckServed() != nil {
			t.Log("magnitudes of some modules only")
		}
	})
}
