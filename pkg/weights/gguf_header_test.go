package weights_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

func TestOpenGGUFHeader_FileMayEndBehindTheHeader(t *testing.T) {
	text := sampleGGUF(3).b
	path := filepath.Join(t.TempDir(), "m")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	whole, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	infos := map[string]weights.Info{}
	data := map[string][]byte{}
	for _, name := range whole.Names() {
		infos[name], _ = whole.Info(name)
		view, err := whole.Data(name)
		if err != nil {
			t.Fatal(err)
		}
		data[name] = bytes.Clone(view)
	}
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}
	opened, cut := 0, 0
	for n := range len(text) {
		write(text[:n])
		g, err := weights.OpenGGUFHeader(path)
		var format *weights.FormatError
		if err != nil {
			if opened > 0 || !errors.As(err, &format) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		opened++
		for name, want := range infos {
			if got, ok := g.Info(name); !ok || !reflect.DeepEqual(got, want) {
				t.Fatalf("%d bytes: %s is %+v, want %+v", n, name, got, want)
			}
			switch view, err := g.Data(name); {
			case err == nil && !bytes.Equal(view, data[name]):
				t.Fatalf("%d bytes: the data of %s differ", n, name)
			case err != nil && !errors.As(err, &format):
				t.Fatalf("%d bytes: %s: %v", n, name, err)
			case err != nil:
				cut++
			}
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if whole, err := weights.OpenGGUF(path); err == nil {
			_ = whole.Close()
			t.Fatalf("OpenGGUF takes a file of %d of %d bytes", n, len(text))
		}
	}
	if opened < 300 || cut < opened {
		t.Errorf("%d of %d beginnings are opened, and %d tensors are not there", opened, len(text), cut)
	}
}
