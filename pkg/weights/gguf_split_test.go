package weights_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/weights/filetest"
)

// writeParts splits the sample file into a new folder and returns the parts' paths.
func writeParts(t *testing.T, parts int) []string {
	t.Helper()
	split, err := filetest.Split(sampleGGUF(3).b, parts)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var paths []string
	for i, data := range split {
		path := filepath.Join(dir, fmt.Sprintf("sample-%05d-of-%05d.gguf", i+1, parts))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestOpenGGUF_SplitFileOpensByAnyPart(t *testing.T) {
	whole, err := weights.ParseGGUF("sample", sampleGGUF(3).b)
	if err != nil {
		t.Fatal(err)
	}
	for parts := 1; parts <= 5; parts++ {
		paths := writeParts(t, parts)
		digest := ""
		for _, path := range append(paths, filepath.Dir(paths[0])) {
			g, err := weights.OpenGGUF(path)
			if err != nil {
				t.Fatal(err)
			}
			if g.Parts() != parts || !slices.Equal(g.Names(), whole.Names()) {
				t.Errorf("%s: %d parts with %v", path, g.Parts(), g.Names())
			}
			if v, _ := g.Meta().String("general.architecture"); v != "llama" {
				t.Errorf("%s: architecture %q", path, v)
			}
			for _, name := range whole.Names() {
				got, err1 := g.Data(name)
				want, err2 := whole.Data(name)
				gotInfo, _ := g.Info(name)
				wantInfo, _ := whole.Info(name)
				same := bytes.Equal(got, want) && fmt.Sprint(gotInfo) == fmt.Sprint(wantInfo)
				if err1 != nil || err2 != nil || !same {
					t.Errorf("%s: tensor %s differs: %v %v", path, name, err1, err2)
				}
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			d, err := weights.Digest(path)
			if err != nil || digest != "" && d != digest {
				t.Errorf("%s: digest %s, %v; want %s", path, d, err, digest)
			}
			digest = d
			if name := weights.ModelName(path); path != filepath.Dir(paths[0]) && name != "sample" {
				t.Errorf("%s: name %q", path, name)
			}
			files, err := weights.Files(path)
			if err != nil || !slices.Equal(files, paths) {
				t.Errorf("%s: files %v, %v", path, files, err)
			}
		}
	}
}

func TestOpenGGUF_NamesTheMissingPart(t *testing.T) {
	for missing := range 3 {
		paths := writeParts(t, 3)
		if err := os.Remove(paths[missing]); err != nil {
			t.Fatal(err)
		}
		for i, path := range append(paths, filepath.Dir(paths[0])) {
			if i == missing {
				continue
			}
			_, err := weights.OpenGGUF(path)
			var part *weights.PartError
			if !errors.As(err, &part) || part.Part != missing+1 || !strings.Contains(err.Error(), paths[missing]) {
				t.Errorf("open %s without part %d: %v", filepath.Base(path), missing+1, err)
			}
			if fault.CodeOf(err) != fault.NotFound || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("code %v", fault.CodeOf(err))
			}
		}
	}
}

func TestOpenGGUF_RefusesPartsThatDisagree(t *testing.T) {
	rewrite := func(path string, change func(data []byte) []byte) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	number := func(key string, v byte) func([]byte) []byte {
		return func(data []byte) []byte {
			data[bytes.Index(data, []byte(key))+len(key)+4] = v
			return data
		}
	}
	for _, c := range []struct {
		field  string
		change func(data []byte) []byte
	}{
		{"split.no", number("split.no", 7)},
		{"split.count", number("split.count", 3)},
		{"split.tensors.count", number("split.tensors.count", 9)},
		{"split.no", func(data []byte) []byte {
			return bytes.Replace(data, []byte("split.no"), []byte("split_no"),
				1)
		}},
		{"b", func(data []byte) []byte { // the second part's tensor "k" takes a name of the first part
			at := bytes.LastIndex(data, []byte("\x01\x00\x00\x00\x00\x00\x00\x00k"))
			data[at+8] = 'b'
			return data
		}},
	} {
		paths := writeParts(t, 2)
		part := paths[1]
		rewrite(part, c.change)
		_, err := weights.OpenGGUF(paths[0])
		var format *weights.FormatError
		if !errors.As(err, &format) || format.Field != c.field || format.File != part {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	paths := writeParts(t, 2)
	renamed := filepath.Join(filepath.Dir(paths[0]), "renamed.gguf")
	if err := os.Rename(paths[0], renamed); err != nil {
		t.Fatal(err)
	}
	var format *weights.FormatError
	if _, err := weights.OpenGGUF(renamed); !errors.As(err, &format) || format.Field != "split.count" {
		t.Errorf("a part of another name: %v", err)
	}
}

func TestLocate_Folders(t *testing.T) {
	folder := func(names ...string) string {
		dir := t.TempDir()
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(dir, name), sampleGGUF(3).b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, c := range []struct {
		files  []string
		format weights.Format
		file   string
	}{
		{nil, weights.FormatSafetensors, ""},
		{[]string{"config.json", "tokenizer.json"}, weights.FormatSafetensors, ""},
		{[]string{"config.json", "model.gguf"}, weights.FormatGGUF, "model.gguf"},
		{[]string{"model.gguf", "model.safetensors"}, weights.FormatSafetensors, ""},
		{[]string{"mmproj-model-f16.gguf", "model.gguf", "README.md"}, weights.FormatGGUF, "model.gguf"},
		{[]string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}, weights.FormatGGUF, "m-00001-of-00002.gguf"},
	} {
		dir := folder(c.files...)
		at, err := weights.Locate(dir)
		if err != nil || at.Format != c.format || at.Path != filepath.Join(dir, c.file) {
			t.Errorf("%v: %+v, %v", c.files, at, err)
		}
	}
	dir := folder("a.Q4_0.gguf", "b.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
	_, err := weights.OpenGGUF(dir)
	var several *weights.AmbiguousError
	if !errors.As(err, &several) ||
		!slices.Equal(several.Models, []string{"a.Q4_0.gguf", "b.gguf", "m-00001-of-00002.gguf"}) ||
		fault.CodeOf(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "a.Q4_0.gguf, b.gguf, m-00001-of-00002.gguf") {
		t.Errorf("several models: %v", err)
	}
	if _, err := weights.Digest(dir); !errors.As(err, &several) {
		t.Errorf("digest of several models: %v", err)
	}
	whole := folder("only.gguf")
	ofFolder, err1 := weights.Digest(whole)
	ofFile, err2 := weights.Digest(filepath.Join(whole, "only.gguf"))
	if err1 != nil || err2 != nil || ofFolder != ofFile {
		t.Errorf("digests of a folder and its file: %s %v, %s %v", ofFolder, err1, ofFile, err2)
	}
}
