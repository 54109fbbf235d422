package plan

import "slices"

// Replace returns the chain with other spans in the place of the stages with the given indices: free ones of
// the same layers, model and kernel class. Shard ids decide which. It returns false if there is none for
// one of the stages.
func (c Chain) Replace(lost []int, free []Span) (Chain, bool) {
	out := slices.Clone(c)
	for _, i := range lost {
		best := -1
		for k, s := range free {
			want := c[i]
			want.Shard, want.Addr = s.Shard, s.Addr
			if s == want && !slices.Contains(out, s) && (best < 0 || s.Shard < free[best].Shard) {
				best = k
			}
		}
		if best < 0 {
			return nil, false
		}
		out[i] = free[best]
	}
	return out, true
}
