package model

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

// stacked shows the experts of a source that holds a layer's in two tensors, gates and ups
// [E,2F,C] and downs [E,C,F], one by one: transformers writes files so when told to keep
// its own form.
type stacked struct{ weights.Source }

// Info describes a tensor.
func (s stacked) Info(name string) (weights.Info, bool) {
	if info, ok := s.Source.Info(name); ok {
		return info, true
	}
	info, _, ok := s.find(name)
	return info, ok
}

// Data is a tensor's bytes.
func (s stacked) Data(name string) ([]byte, error) {
	if _, ok := s.Source.Info(name); ok {
		return s.Source.Data(name)
	}
	info, from, ok := s.find(name)
	if !ok {
		return s.Source.Data(name) // its own words for it
	}
	data, err := s.Source.Data(info.Name)
	if err != nil {
		return nil, err
	}
	return data[from : from+info.Bytes], nil
}

// find describes an expert's matrix, by its stack's name, and says where it begins there.
func (s stacked) find(name string) (info weights.Info, from int64, ok bool) {
	layer, expert, part, ok := expertPart(name)
	if !ok || !strings.HasSuffix(part, ".weight") {
		return info, 0, false
	}
	file, parts, which := fusedPart(layer, part)
	info, ok = s.Source.Info(file)
	if !ok || len(info.Shape) != 3 || expert < 0 || expert >= info.Shape[0] || info.Shape[1]%parts != 0 {
		return info, 0, false
	}
	info.Shape = []int{info.Shape[1] / parts, info.Shape[2]}
	info.Bytes = int64(info.Shape[0] * info.DType.RowBytes(info.Shape[1]))
	return info, int64(expert*parts+which) * info.Bytes, true
}
