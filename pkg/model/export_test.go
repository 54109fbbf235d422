package model_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// TestExportHF_EveryArchitectureReadsBackEqual trains nothing: it loads each tiny model for training,
// from every form of its files, writes it and reads it again.
func TestExportHF_EveryArchitectureReadsBackEqual(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	for _, name := range tiny {
		for form, files := range forms(t, name) {
			spec, err := files.Dense()
			if err != nil {
				t.Errorf("%s/%s: %v", name, form, err)
				continue
			}
			stage, err := model.Load(files, whole(spec), set, model.LoadOptions{Dense: true})
			if err != nil {
				t.Errorf("%s/%s: %v", name, form, err)
				continue
			}
			dir := filepath.Join(t.TempDir(), "model")
			err = model.ExportHF(dir, spec, stage.Params().Tensors, tensor.F32)
			if name == "llama3-rope" && form == "gguf" { // the file has frequencies in place of settings
				if fault.CodeOf(err) != fault.Unimplemented {
					t.Errorf("%s/%s: %v", name, form, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s/%s: %v", name, form, err)
				continue
			}
			again := open(t, dir)
			read, err := model.Load(again, whole(spec), set, model.LoadOptions{Dense: true})
			if err != nil {
				t.Errorf("%s/%s, written: %v", name, form, err)
				continue
			}
			for i, p := range stage.Params().Tensors {
				if q := read.Params().Tensors[i]; q.Name != p.Name || !slices.Equal(q.Data, p.Data) {
					t.Errorf("%s/%s: %s reads back differently, as %s", name, form, p.Name, q.Name)
				}
			}
			if form == "safetensors" && !reflect.DeepEqual(again.Spec, spec) {
				t.Errorf("%s: config comes back as %+v, want %+v", name, again.Spec, spec)
			}
		}
	}
}

// TestExportFiles_SeveralFilesReadBackTheSame splits a model over files of a few kilobytes.
func TestExportFiles_SeveralFilesReadBackTheSame(t *testing.T) {
	for _, spec := range []model.Spec{
		model.NewLlama(model.Shape{Layers: 2, Width: 16, Heads: 2, FF: 20, Vocab: 30, Context: 16}),
		model.NewGPT2(model.Shape{Layers: 2, Width: 16, Heads: 2, Vocab: 30, Context: 16}),
	} {
		set := kernel.Set[float32](ref.New[float32]())
		whole, err := model.Init(spec, model.Range{Hi: len(spec.Layers)}, set, 42)
		if err != nil {
			t.Fatal(err)
		}
		var params []model.Exported
		for _, p := range whole.Params().Tensors {
			if !p.Tied() {
				raw := little(p.Data)
				params = append(
					params,
					model.Exported{Name: p.Name, Shape: p.Shape, Open: func() (model.Values, error) {
						return values{bytes.NewReader(raw)}, nil
					}},
				)
			}
		}
		dir := t.TempDir()
		for _, limit := range []int64{2000, 0, 3000} { // over what is there
			if err := model.ExportFiles(
				dir,
				spec,
				params,
				model.ExportOptions{DType: tensor.F32, MaxBytes: limit},
			); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, "model*.safetensors"))
			if err != nil || (len(files) == 1) != (limit == 0) || limit == 2000 && len(files) < 5 {
				t.Errorf("limit %d: %d files, %v", limit, len(files), err)
			}
			read, err := model.Load(
				open(t, dir),
				model.Range{Hi: len(spec.Layers)},
				set,
				model.LoadOptions{Dense: true},
			)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range whole.Params().Tensors {
				if got := read.Params().Tensors[i]; got.Name != p.Name || !slices.Equal(got.Data, p.Data) {
					t.Errorf("%s, limit %d: %s differs", spec.Architecture, limit, p.Name)
				}
			}
		}
	}
}

// little returns the little-endian bytes of x.
func little(x []float32) []byte {
	var out []byte
	for _, v := range x {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}

type values struct{ *bytes.Reader }

func (values) Close() error { return nil }
