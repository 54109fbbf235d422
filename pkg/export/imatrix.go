package export

import (
	"errors"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ReadImportance reads an importance matrix that llama.cpp's llama-imatrix has written as a GGUF file: for each matrix
// NAME the tensor NAME.in_sum2 [experts,columns] with sums of squared activations, and NAME.counts [experts,1] with the
// number of rows that were added. The mean is 0 for an expert that no row went through.
func ReadImportance(path string) (_ map[string][]float32, err error) {
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	out := map[string][]float32{}
	for _, name := range g.Names() {
		base, ok := strings.CutSuffix(name, ".in_sum2")
		if !ok {
			continue
		}
		sums, err := floats(g, name)
		if err != nil {
			return nil, err
		}
		counts, err := floats(g, base+".counts")
		if err != nil {
			return nil, err
		}
		if len(counts) == 0 || len(sums)%len(counts) != 0 {
			return nil, fault.New(
				fault.DataLoss,
				"read %s: %s: %d sums for %d counts",
				path,
				base,
				len(sums),
				len(counts),
			)
		}
		columns := len(sums) / len(counts)
		for i := range sums {
			if n := counts[i/columns]; n > 0 {
				sums[i] /= n
			} else {
				sums[i] = 0
			}
			if !(sums[i] >= 0) {
				return nil, fault.New(fault.DataLoss, "read %s: %s: element %d is no mean of squares", path, name, i)
			}
		}
		out[base] = sums
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "read %s: want an importance matrix as a GGUF file", path)
	}
	return out, nil
}

func floats(g *weights.GGUF, name string) ([]float32, error) {
	info, _ := g.Info(name)
	data, err := g.Data(name)
	if err != nil {
		return nil, err
	}
	if info.DType != tensor.F32 {
		return nil, fault.New(fault.DataLoss, "read %s: want type F32, got %v", name, info.DType)
	}
	out := make([]float32, info.Elements())
	tensor.F32LE(out, data)
	return out, nil
}
