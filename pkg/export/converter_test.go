package export_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/export"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// TestToGGUF_EqualsTheConverter compares with the GGUF files of the tiny models, which llama.cpp's converter has
// made from the same folders: the same tensors with the same types, shapes and bytes, and every key with the same
// value.
func TestToGGUF_EqualsTheConverter(t *testing.T) {
	compared := 0
	for _, name := range tiny {
		folder := shared(t, "models/tiny", name)
		if _, err := os.Stat(filepath.Join(folder, "model-bf16.gguf")); err != nil {
			continue // there is none
		}
		theirs, err := weights.OpenGGUF(filepath.Join(folder, "model-bf16.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		v, err := vocab.FromHF(folder)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := export.ToGGUF(
			t.Context(),
			path,
			open(t, folder),
			v,
			export.Options{Recipe: recipe(t, "BF16")},
		); err != nil {
			t.Fatal(err)
		}
		ours, err := weights.OpenGGUF(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		for _, tensorName := range theirs.Names() {
			a, ok := ours.Info(tensorName)
			b, _ := theirs.Info(tensorName)
			if !ok || a.DType != b.DType || !slices.Equal(a.Shape, b.Shape) {
				t.Errorf(
					"%s: %s is %v %v, the converter makes it %v %v",
					name,
					tensorName,
					a.DType,
					a.Shape,
					b.DType,
					b.Shape,
				)
				continue
			}
			if !bytes.Equal(data(t, ours, tensorName), data(t, theirs, tensorName)) {
				t.Errorf("%s: %s has other bytes", name, tensorName)
			}
			compared++
		}
		if a, b := len(ours.Names()), len(theirs.Names()); a != b {
			t.Errorf("%s: %d tensors, the converter makes %d", name, a, b)
		}
		for _, key := range theirs.Meta().Keys() {
			switch key {
			case "general.name", "general.size_label", "general.file_type", "general.quantization_version":
				continue
			case "phi3.rope.scaling.original_context_length": // without LongRoPE it has no effect
				continue
			}
			want, _ := theirs.Meta().Value(key)
			if got, ok := ours.Meta().Value(key); !ok || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s is %.60v, the converter writes %.60v", name, key, got, want)
			}
		}
	}
	if compared < 300 {
		t.Errorf("only %d tensors were compared", compared)
	}
}
