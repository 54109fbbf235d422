package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// operation is the time that one kind of operation took in a phase, over all runs.
type operation struct {
	Phase   string  `json:"phase"` // "prefill" or "decode"; in training "forward", "backward" or "update"
	Name    string  `json:"name"`
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	Share   float64 `json:"share"` // of the time of all operations of the phase
}

// profile is a kernel set that measures the time of each operation. Only one goroutine may use it.
type profile struct {
	kernel.Set[float32]
	phase string
	times map[[2]string]*operation
}

func newProfile(set kernel.Set[float32]) *profile {
	return &profile{Set: set, times: map[[2]string]*operation{}}
}

// begin starts a phase: the operations that follow count towards it. A nil profile does nothing.
func (p *profile) begin(phase string) {
	if p != nil {
		p.phase = phase
	}
}

func (p *profile) add(name string, began time.Time) {
	key := [2]string{p.phase, name}
	o := p.times[key]
	if o == nil {
		o = &operation{Phase: p.phase, Name: name}
		p.times[key] = o
	}
	o.Calls++
	o.Seconds += time.Since(began).Seconds()
}

// operations returns the times, with the longest first in each phase.
func (p *profile) operations() []operation {
	sums := map[string]float64{}
	var out []operation
	for _, o := range p.times {
		sums[o.Phase] += o.Seconds
		out = append(out, *o)
	}
	for i := range out {
		out[i].Share = out[i].Seconds / sums[out[i].Phase]
	}
	slices.SortFunc(out, func(a, b operation) int {
		return cmp.Or(cmp.Compare(b.Phase, a.Phase), cmp.Compare(b.Seconds, a.Seconds), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func (p *profile) MatMul(y, x kernel.Buffer[float32], w *kernel.Matrix[float32], bias kernel.Buffer[float32], t int) {
	defer p.add(productName(w.Cols, w.Rows, w), time.Now())
	p.Set.MatMul(y, x, w, bias, t)
}

func (p *profile) MatMuls(x kernel.Buffer[float32], t int, products ...kernel.Product[float32]) {
	rows := 0
	for _, q := range products {
		rows += q.W.Rows
	}
	defer p.add(productName(products[0].W.Cols, rows, products[0].W), time.Now())
	p.Set.MatMuls(x, t, products...)
}

func productName(cols, rows int, w *kernel.Matrix[float32]) string {
	d := w.DType
	if w.Dense != nil {
		d = tensor.F32
	}
	return fmt.Sprintf("product %d to %d, %v", cols, rows, d)
}

func (p *profile) Embed(y kernel.Buffer[float32], w *kernel.Matrix[float32], ids []int32) {
	defer p.add("embed", time.Now())
	p.Set.Embed(y, w, ids)
}

func (p *profile) RMSNorm(y, x, g kernel.Buffer[float32], eps float64, t, c int) {
	defer p.add("norm", time.Now())
	p.Set.RMSNorm(y, x, g, eps, t, c)
}

func (p *profile) LayerNorm(y, x, g, b kernel.Buffer[float32], eps float64, t, c int) {
	defer p.add("norm", time.Now())
	p.Set.LayerNorm(y, x, g, b, eps, t, c)
}

func (p *profile) Rotate(x kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
	defer p.add("rotate", time.Now())
	p.Set.Rotate(x, r, pos, h, d)
}

func (p *profile) Store(kv kernel.KV[float32], pos int, k, v kernel.Buffer[float32], heads, d int) {
	defer p.add("store", time.Now())
	p.Set.Store(kv, pos, k, v, heads, d)
}

func (p *profile) Attend(y, q kernel.Buffer[float32], spans []kernel.Span[float32], a kernel.Heads) {
	defer p.add("attend", time.Now())
	p.Set.Attend(y, q, spans, a)
}

func (p *profile) GLU(y, gate, up kernel.Buffer[float32], act kernel.Act) {
	defer p.add("activate", time.Now())
	p.Set.GLU(y, gate, up, act)
}

func (p *profile) Activate(y, x kernel.Buffer[float32], act kernel.Act) {
	defer p.add("activate", time.Now())
	p.Set.Activate(y, x, act)
}

func (p *profile) Add(y, x kernel.Buffer[float32]) {
	defer p.add("add", time.Now())
	p.Set.Add(y, x)
}

// printProfile writes a table of operations, if there are any.
func printProfile(out io.Writer, operations []operation) error {
	if len(operations) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nPHASE\tOPERATION\tCALLS\tEACH\tSHARE")
	for _, o := range operations {
		fmt.Fprintf(w, "%s\t%s\t%d\t%.1f us\t%.1f %%\n", o.Phase, o.Name, o.Calls, 1e6*o.Seconds/float64(o.Calls),
			100*o.Share)
	}
	return w.Flush()
}

// layerFlops returns the operations of the matrices of the layers for a token: two for each weight.
func layerFlops(f *model.Files) float64 {
	var n float64
	for _, name := range layerMatrices(f) {
		info, _ := f.Source.Info(name)
		n += 2 * float64(info.Elements())
	}
	return n
}

// layerMatrices returns the names of the two-dimensional weights of the layers.
func layerMatrices(f *model.Files) []string {
	var out []string
	for _, name := range f.Source.Names() {
		info, ok := f.Source.Info(name)
		layer := strings.HasPrefix(name, "blk.") || strings.Contains(name, "layers.") ||
			strings.Contains(name, ".h.") || strings.HasPrefix(name, "h.")
		if ok && layer && len(info.Shape) == 2 {
			out = append(out, name)
		}
	}
	return out
}

// typePeak returns the peak for the element type that most weights of the layers have.
func typePeak(f *model.Files, p cpu.Peaks) float64 {
	var sizes [3]int // float32, bfloat16, int8
	for _, name := range layerMatrices(f) {
		info, _ := f.Source.Info(name)
		switch info.DType {
		case tensor.F32, tensor.F64:
			sizes[0] += info.Elements()
		case tensor.F16, tensor.BF16:
			sizes[1] += info.Elements()
		default:
			sizes[2] += info.Elements()
		}
	}
	switch {
	case sizes[2] > sizes[1] && sizes[2] > sizes[0]:
		return p.Int8
	case sizes[1] > sizes[0]:
		return max(p.BFloat16, p.Float32)
	}
	return p.Float32
}

// write writes the result to a file in a folder. The name of the file has the date and the settings.
func (r *benchResult) write(folder string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%s-%s-t%d-b%d-s%d.json", time.Now().Format(time.DateOnly),
		strings.TrimSuffix(filepath.Base(r.Model), ".gguf"), cmp.Or(r.Quant, "file"), r.Threads, r.Batch, r.Stages)
	return os.WriteFile(filepath.Join(folder, name), append(text, '\n'), 0o644)
}
