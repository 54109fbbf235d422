package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/store"
)

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// file returns a file of a manifest, as JSON.
func file(path string) string {
	return fmt.Sprintf(`{"path":%q,"size":10,"sha256":%q,"chunk_size":4096,"chunks":%q}`, path, zeros, zeros)
}

func manifest(files ...string) string {
	return `{"format":"lamina-model/1","name":"m","digest":"sha256:` + zeros + `","files":[` +
		strings.Join(files, ",") + `]}`
}

func TestParseManifest_ReadsBackWhatItWrites(t *testing.T) {
	m, err := store.ParseManifest([]byte(manifest(file("1_Pooling/config.json"), file("model.gguf"))))
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := store.ParseManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(*m), fmt.Sprint(*again); a != b {
		t.Errorf("read %s back as %s", a, b)
	}
	if m.Content() != again.Content() || m.Size() != 20 {
		t.Errorf("content %s and %s, %d bytes", m.Content(), again.Content(), m.Size())
	}
}

func TestParseManifest_RefusesHostileOnes(t *testing.T) {
	good := manifest(file("model.gguf"))
	replace := func(old, now string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the manifest has no %s", old)
		}
		return strings.Replace(good, old, now, 1)
	}
	many := make([]string, store.MaxFiles+1)
	for i := range many {
		many[i] = file(fmt.Sprintf("f%06d", i))
	}
	for name, c := range map[string]struct{ field, text string }{
		"nothing":           {"text", ""},
		"another format":    {"format", replace("lamina-model/1", "lamina-model/2")},
		"more behind it":    {"text", good + "{}"},
		"not UTF-8":         {"text", good + "\xff"},
		"too long":          {"text", good + strings.Repeat(" ", store.MaxManifest)},
		"a link":            {"text", replace(`"size":10`, `"size":10,"link":"/etc/passwd"`)},
		"no files":          {"files", manifest()},
		"too many files":    {"files", manifest(many...)},
		"a name as a path":  {"name", replace(`"name":"m"`, `"name":"../m"`)},
		"an empty name":     {"name", replace(`"name":"m"`, `"name":""`)},
		"no digest":         {"digest", replace("sha256:", "md5:")},
		"a short digest":    {"text", replace(`"sha256":"00`, `"sha256":"`)},
		"upper case":        {"text", replace(`"sha256":"00`, `"sha256":"0A`)},
		"a negative size":   {"files[0].size", replace(`"size":10`, `"size":-1`)},
		"a huge size":       {"files[0].size", replace(`"size":10`, `"size":9000000000000000000`)},
		"beyond 64 bits":    {"text", replace(`"size":10`, `"size":99999999999999999999`)},
		"no chunks":         {"files[0].chunk_size", replace(`"chunk_size":4096`, `"chunk_size":0`)},
		"odd chunks":        {"files[0].chunk_size", replace(`"chunk_size":4096`, `"chunk_size":5000`)},
		"too many chunks":   {"files[0].chunk_size", replace(`"size":10`, `"size":1099511627776`)},
		"a control in text": {"source", replace(`"files"`, `"source":"a\u001b[2J","files"`)},
		"the same twice":    {"files[1].path", manifest(file("a.gguf"), file("a.gguf"))},
		"twice but for case": {
			"files[1].path", manifest(file("A.gguf"), file("a.gguf")),
		},
		"unsorted":              {"files[1].path", manifest(file("b.gguf"), file("a.gguf"))},
		"a file and a folder":   {"files[0].path", manifest(file("a"), file("a/b"))},
		"its own name":          {"files[0].path", manifest(file("lamina.json"))},
		"a folder above":        {"files[0].path", manifest(file("../model.gguf"))},
		"a folder above inside": {"files[0].path", manifest(file("a/../../model.gguf"))},
		"from the root":         {"files[0].path", manifest(file("/etc/passwd"))},
		"of Windows":            {"files[0].path", manifest(file(`C:\model.gguf`))},
		"with a backslash":      {"files[0].path", manifest(file(`..\model.gguf`))},
		"a device":              {"files[0].path", manifest(file("nul.gguf"))},
		"a zero byte":           {"files[0].path", manifest(`{"path":"a\u0000b"}`)},
		"an empty part":         {"files[0].path", manifest(file("a//b"))},
		"a dot":                 {"files[0].path", manifest(file("."))},
		"an empty path":         {"files[0].path", manifest(file(""))},
		"too deep":              {"files[0].path", manifest(file(strings.Repeat("a/", 9) + "b"))},
		"too long a path":       {"files[0].path", manifest(file(strings.Repeat("a", 300)))},
	} {
		_, err := store.ParseManifest([]byte(c.text))
		var refused *store.ManifestError
		if !errors.As(err, &refused) || refused.Field != c.field {
			t.Errorf("%s: got %v, want a fault in %s", name, err, c.field)
		}
	}
	if _, err := store.ParseManifest([]byte(good)); err != nil {
		t.Error(err)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(manifest(file("model.gguf"))))
	f.Add([]byte(manifest(file("1_Pooling/config.json"), file("a.safetensors"))))
	f.Add([]byte(manifest(file("../a"))))
	f.Add([]byte(`{"format":"lamina-model/1"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := store.ParseManifest(text)
		if err != nil {
			var refused *store.ManifestError
			if !errors.As(err, &refused) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, file := range m.Files {
			low := strings.ToLower(file.Path)
			if seen[low] || strings.Contains(file.Path, "..") && strings.Contains("/"+file.Path+"/", "/../") ||
				strings.HasPrefix(file.Path, "/") || file.Size < 0 || file.NumChunks() > store.MaxChunks {
				t.Fatalf("accepted %+v", file)
			}
			seen[low] = true
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := store.ParseManifest(again)
		if err != nil {
			t.Fatalf("read back %s: %v", again, err)
		}
		if a, _ := json.Marshal(m); string(a) == "" || back.Content() != m.Content() {
			t.Fatalf("read %s back differently", again)
		}
	})
}
