package export

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Stat says how tensors of one kind differ from their source.
type Stat struct {
	Kind     string         // the tensor's name without the number of its layer
	Tensors  int            //
	Elements int64          //
	Bytes    int64          // in the file that was written
	Types    map[string]int // number of tensors of each type

	RMSE     float64 // root of the mean squared difference
	Relative float64 // RMSE divided by the root mean square of the source
	Largest  float64 // largest absolute difference
}

// sums are the sums that a Stat is made of.
type sums struct{ off, all, largest float64 }

func (s *sums) add(o sums) {
	s.off, s.all, s.largest = s.off+o.off, s.all+o.all, max(s.largest, o.largest)
}

// compare adds the difference of x and its quantised form.
func (s *sums) compare(x, back []float32) {
	for i, v := range x {
		d := float64(v) - float64(back[i])
		s.off += d * d
		s.all += float64(v) * float64(v)
		s.largest = max(s.largest, math.Abs(d))
	}
}

// report gathers statistics by kind.
type report struct {
	stats map[string]*Stat
	sums  map[string]*sums
}

func newReport() *report { return &report{map[string]*Stat{}, map[string]*sums{}} }

// add counts a tensor with its sums.
func (r *report) add(name string, d tensor.DType, elements, bytes int64, s sums) {
	kind, _ := kindOf(name)
	if r.stats[kind] == nil {
		r.stats[kind], r.sums[kind] = &Stat{Kind: kind, Types: map[string]int{}}, &sums{}
	}
	st := r.stats[kind]
	st.Tensors, st.Elements, st.Bytes = st.Tensors+1, st.Elements+elements, st.Bytes+bytes
	st.Types[d.String()]++
	r.sums[kind].add(s)
}

// list returns the statistics, sorted by kind, and those of all tensors together.
func (r *report) list() (kinds []Stat, total Stat) {
	var all sums
	total = Stat{Kind: "all", Types: map[string]int{}}
	for _, kind := range slices.SortedFunc(maps.Keys(r.stats), cmp.Compare) {
		st, s := *r.stats[kind], *r.sums[kind]
		st.set(s)
		kinds = append(kinds, st)
		all.add(s)
		total.Tensors, total.Elements, total.Bytes = total.Tensors+st.Tensors, total.Elements+st.Elements,
			total.Bytes+st.Bytes
		for name, n := range st.Types {
			total.Types[name] += n
		}
	}
	total.set(all)
	return kinds, total
}

func (s *Stat) set(from sums) {
	s.Largest = from.largest
	if s.Elements > 0 {
		s.RMSE = math.Sqrt(from.off / float64(s.Elements))
	}
	if from.all > 0 {
		s.Relative = math.Sqrt(from.off / from.all)
	}
}
