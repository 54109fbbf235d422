package cuda_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/testdevice"
	"github.com/lamina-mesh/lamina/pkg/quant"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// shape is the shape of the layers of a model.
type shape struct{ Width, KV, FFN, Layers int }

// timing is how long the products of all layers take for some rows.
type timing struct {
	DType      string  `json:"dtype"`
	Rows       int     `json:"rows"`
	Bytes      int64   `json:"bytes"` // of weights
	Seconds    float64 `json:"seconds"`
	GBPerS     float64 `json:"gb_per_s"`
	TFLOPPerS  float64 `json:"tflop_per_s"`
	Repeatable bool    `json:"repeatable"` // the first row has the same bits as alone
}

// times is what is written for bench/gpu.sh.
type times struct {
	Device string   `json:"device"`
	SM     string   `json:"sm"`
	Memory int64    `json:"memory_bytes"`
	Shape  shape    `json:"shape"`
	CopyGB float64  `json:"copy_gb_per_s"` // read and written by copies on the device
	Times  []timing `json:"times"`
}

// The products of the layers of a model with random weights: of one with the shape of Llama 3 8B on a GPU, and of a
// very small one without, where the times say nothing. A row has the same bits alone and among others. If
// LAMINA_GPU_TIMES names a file, the times are written there.
func TestTimes_OfTheProductsOfAModel(t *testing.T) {
	z, batches, rounds := shape{256, 64, 512, 2}, []int{1, 3}, 1
	if testdevice.Real() {
		z, batches, rounds = shape{4096, 1024, 14336, 32}, []int{1, 32, 2048}, 5
	}
	s := open(t, 0)
	p := s.Properties()
	out := times{Device: p.Name, SM: p.SM(), Memory: p.Memory, Shape: z}
	x := s.FromHost(normal(1, slices.Max(batches)*max(z.Width, z.FFN)))
	y := s.Alloc(slices.Max(batches) * max(z.Width, z.FFN))
	// best returns the least time of some runs of f, with all that it has put on the stream.
	best := func(f func()) float64 {
		f()
		s.Host(y[:1])
		least := time.Duration(1<<63 - 1)
		for range rounds {
			start := time.Now()
			f()
			s.Host(y[:1])
			least = min(least, time.Since(start))
		}
		return least.Seconds()
	}
	took := best(func() { s.Copy(y, x) })
	out.CopyGB = 2 * 4 * float64(len(x)) / took / 1e9
	for _, dtype := range []tensor.DType{tensor.Q4_K, tensor.Q8_0, tensor.BF16} {
		layers, total := randomLayers(s, z, dtype)
		var alone []float32
		for _, rows := range batches {
			var last []float32
			run := func() {
				for _, layer := range layers {
					for i := range layer {
						w := &layer[i]
						s.MatMul(y[:rows*w.Rows], x[:rows*w.Cols], w, nil, rows)
					}
				}
			}
			took := best(run)
			last = s.Host(y[:layers[0][len(layers[0])-1].Rows])
			if alone == nil {
				alone = last
			}
			one := timing{DType: dtype.String(), Rows: rows, Bytes: total, Seconds: took,
				GBPerS: float64(total) / took / 1e9, Repeatable: slices.Equal(alone, last)}
			one.TFLOPPerS = 2 * float64(rows) * float64(elements(z)) / took / 1e12
			out.Times = append(out.Times, one)
			if !one.Repeatable {
				t.Errorf("%v: the first of %d rows has other bits than alone", dtype, rows)
			}
		}
	}
	if path := os.Getenv("LAMINA_GPU_TIMES"); path != "" {
		text, err := json.MarshalIndent(out, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Clean(path), append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// matrices returns the rows and columns of a layer's matrices, as Llama has them.
func (z shape) matrices() [][2]int {
	return [][2]int{{z.Width, z.Width}, {z.KV, z.Width}, {z.KV, z.Width}, {z.Width, z.Width}, {z.FFN, z.Width},
		{z.FFN, z.Width}, {z.Width, z.FFN}}
}

// elements returns the number of weights.
func elements(z shape) (n int64) {
	for _, m := range z.matrices() {
		n += int64(m[0]) * int64(m[1]) * int64(z.Layers)
	}
	return n
}

// randomLayers makes layers of one random pattern in memory of their own, so that no cache holds them all. It returns
// their bytes.
func randomLayers(
	s kernel.Set[float32], z shape, dtype tensor.DType,
) (layers [][]kernel.Matrix[float32], total int64) {
	r := rand.New(rand.NewPCG(5, 1))
	raw := map[[2]int][]byte{}
	for _, m := range z.matrices() {
		if raw[m] == nil {
			row := make([]float32, m[1])
			for i := range row {
				row[i] = float32(r.NormFloat64()) / 64
			}
			one := make([]byte, dtype.RowBytes(m[1]))
			quant.Quantize(one, row, dtype, nil)
			for range m[0] {
				raw[m] = append(raw[m], one...)
			}
		}
	}
	for range z.Layers {
		var layer []kernel.Matrix[float32]
		for _, m := range z.matrices() {
			w := kernel.Matrix[float32]{Rows: m[0], Cols: m[1], DType: dtype, Raw: raw[m]}
			s.Pack(&w)
			total += int64(len(w.Raw))
			layer = append(layer, w)
		}
		layers = append(layers, layer)
	}
	return layers, total
}
