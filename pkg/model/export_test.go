package model_test

import (
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
