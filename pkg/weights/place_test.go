package weights_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

func TestPlaced_SaysWhereTensorsAre(t *testing.T) {
	gguf, err := weights.OpenGGUF(fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer gguf.Close()
	folder, err := weights.OpenSafetensors(fixtures.Path(t, "models/tiny/llama"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for _, s := range []weights.Placed{gguf, folder} {
		if len(s.Names()) == 0 {
			t.Fatal("no tensors")
		}
		for _, name := range s.Names() {
			want, err := s.Data(name)
			if err != nil {
				t.Fatal(err)
			}
			place, ok := s.Place(name)
			if !ok || place.Bytes != int64(len(want)) {
				t.Fatalf("%s is at %+v, want %d bytes", name, place, len(want))
			}
			file, err := os.ReadFile(place.File)
			if err != nil {
				t.Fatal(err)
			}
			if got := file[place.From : place.From+place.Bytes]; !bytes.Equal(got, want) {
				t.Errorf("%s is not at %+v", name, place)
			}
		}
		if _, ok := s.Place("nothing"); ok {
			t.Error("a tensor that is not there has a place")
		}
	}
}

func TestGGUFHeader_NeedsTheWholeHeader(t *testing.T) {
	text, err := os.ReadFile(fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	end := len(text)
	for weights.GGUFHeader("x", text[:end/2]) == nil {
		end /= 2
	}
	ends := 0
	for n := end / 2; n < end; n += 97 {
		if weights.GGUFHeader("x", text[:n]) == nil {
			ends++
		} else if ends > 0 {
			t.Fatalf("the header ends before byte %d, and does not", n)
		}
	}
	if err := weights.GGUFHeader("x", text); err != nil {
		t.Error(err)
	}
}
