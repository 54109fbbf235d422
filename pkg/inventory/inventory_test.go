package inventory_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/inventory"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

const digest = "sha256:model"

// shardOf describes a shard that offers a model of four layers.
func shardOf(id string, change func(*shardv1.DescribeResponse)) inventory.Shard {
	d := &shardv1.DescribeResponse{
		Instance: id, KernelClass: "cpu/7", Inventory: &shardv1.Inventory{
			Assignable: true, MemoryBytes: 1 << 30,
			Times: []*shardv1.LayerTime{{Digest: digest, LayerBytes: 1000, DecodeMs: 1, RowMs: 0.25}},
			Offers: []*shardv1.Offer{{Model: "m", Digest: digest, LayerBytes: []uint64{1000, 1000, 1000, 1000},
				EmbeddingBytes: 500, HeadBytes: 500, KvBytes: 8, HiddenBytes: 256}},
		},
	}
	if change != nil {
		change(d)
	}
	return inventory.Shard{ID: id, Description: d, HopMS: 0.1}
}

// One shard that says nonsense of itself is left out, or counts as what it can be. The others get their plan.
func TestRequest_NonsenseOfOneShardSparesThePlan(t *testing.T) {
	times := func(d *shardv1.DescribeResponse) *shardv1.LayerTime { return d.GetInventory().GetTimes()[0] }
	for name, c := range map[string]struct {
		change func(*shardv1.DescribeResponse)
		left   string // why it is left out; empty if it is not
	}{
		"fine":              {nil, ""},
		"not a number":      {func(d *shardv1.DescribeResponse) { times(d).DecodeMs = math.NaN() }, "out of bounds"},
		"infinite":          {func(d *shardv1.DescribeResponse) { times(d).DecodeMs = math.Inf(1) }, "out of bounds"},
		"negative":          {func(d *shardv1.DescribeResponse) { times(d).DecodeMs = -1 }, "out of bounds"},
		"rows of no number": {func(d *shardv1.DescribeResponse) { times(d).RowMs = math.NaN() }, "out of bounds"},
		"huge layers":       {func(d *shardv1.DescribeResponse) { times(d).LayerBytes = math.MaxUint64 }, "out of bounds"},
		"no times":          {func(d *shardv1.DescribeResponse) { d.Inventory.Times = nil }, "not measured"},
		"rows in no time":   {func(d *shardv1.DescribeResponse) { times(d).RowMs = 1e-30 }, ""},
		"all the memory":    {func(d *shardv1.DescribeResponse) { d.Inventory.MemoryBytes = math.MaxUint64 }, ""},
		"another process":   {func(d *shardv1.DescribeResponse) { d.Instance = "x" }, "another process"},
	} {
		r, left := inventory.Request([]inventory.Shard{shardOf("a", nil), shardOf("b", c.change)},
			inventory.Options{Goal: plan.Latency})
		i := slices.IndexFunc(left, func(l plan.LeftOut) bool { return l.ID == "b" })
		if (i >= 0) != (c.left != "") || i >= 0 && !strings.Contains(left[i].Reason, c.left) {
			t.Errorf("%s: left out %v, want a reason with %q", name, left, c.left)
		}
		p, err := plan.Place(r)
		if err != nil || len(p.Pipelines) != 1 {
			t.Errorf("%s: planned %v, %v", name, p, err)
		}
	}
}
