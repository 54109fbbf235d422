package pull_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

// entry is a file in the list of a repository.
type entry struct {
	Type string `json:"type"`
	Path string `json:"path"`
	Size int    `json:"size"`
	LFS  *lfs   `json:"lfs,omitempty"`
}

type lfs struct {
	OID  string `json:"oid"`
	Size int    `json:"size"`
}

// hub serves a repository o/n. Weights have digests. The list has a page for each file.
func hub(t *testing.T, files map[string][]byte) *site {
	at := serve(t, map[string][]byte{})
	type sibling struct {
		Name string `json:"rfilename"`
	}
	var siblings []sibling
	var paths []string
	for path := range files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for i, path := range paths {
		data := files[path]
		at.files["o/n/resolve/"+commit+"/"+path] = data
		e := entry{Type: "file", Path: path, Size: len(data)}
		if strings.HasSuffix(path, ".safetensors") || strings.HasSuffix(path, ".gguf") {
			e.LFS = &lfs{store.SumOf(data).String(), len(data)}
			e.Size = 130 // of the pointer
		}
		at.files[fmt.Sprintf("page/%d", i)], _ = json.Marshal([]entry{{Type: "directory", Path: "x"}, e})
		siblings = append(siblings, sibling{path})
	}
	at.files["api/models/o/n/revision/main"], _ = json.Marshal(map[string]any{"sha": commit, "siblings": siblings})
	at.before = func(w http.ResponseWriter, r *http.Request) bool {
		page := 0
		switch {
		case strings.HasPrefix(r.URL.Path, "/api/models/o/n/tree/"+commit):
		case strings.HasPrefix(r.URL.Path, "/page/"):
			_, _ = fmt.Sscanf(r.URL.Path, "/page/%d", &page)
		default:
			return false
		}
		if page+1 < len(paths) {
			w.Header().Set("Link", fmt.Sprintf(`<%s/page/%d>; rel="next"`, at.URL, page+1))
		}
		_, _ = w.Write(at.files[fmt.Sprintf("page/%d", page)])
		return true
	}
	return at
}

func repo(t *testing.T, at *site) *pull.Hub {
	return &pull.Hub{Client: client(t, pull.ClientOptions{}), Endpoint: at.URL, Repository: "o/n"}
}

func TestHub_PullsARepository(t *testing.T) {
	data := random(1, 50_000)
	files := map[string][]byte{"README.md": []byte("x"), "config.json": []byte("{}"), "model.safetensors": data,
		"tokenizer.json": []byte("{ }"), "pytorch_model.bin": []byte("x")}
	at := hub(t, files)
	s := open(t, store.Options{})
	r, err := pull.Pull(t.Context(), s, repo(t, at), quick)
	if err != nil {
		t.Fatal(err)
	}
	if m := r.Manifest; m.Name != "n" || m.Revision != commit || m.Source != at.URL+"/o/n" || len(m.Files) != 3 {
		t.Errorf("stored %+v", m)
	}
	if got := stored(t, s, "n", "model.safetensors"); !bytes.Equal(got, data) {
		t.Error("the store has other bytes")
	}
	for _, path := range at.requests {
		if strings.HasSuffix(path, ".bin") || strings.HasSuffix(path, ".md") {
			t.Errorf("%s was fetched", path)
		}
	}
}

func TestHub_ServerWithoutTrees(t *testing.T) {
	at := hub(t, map[string][]byte{"config.json": []byte("{}"), "model.safetensors": random(1, 50_000)})
	at.before = nil // it knows no trees
	s := open(t, store.Options{})
	if _, err := pull.Pull(t.Context(), s, repo(t, at), quick); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, s, "n", "model.safetensors"); !bytes.Equal(got, random(1, 50_000)) {
		t.Error("the store has other bytes")
	}
}

func TestHub_SeveralModelsNeedAPattern(t *testing.T) {
	at := hub(t, map[string][]byte{"a-Q4_0.gguf": gguf(1, 9000), "a-Q8_0.gguf": gguf(2, 9000)})
	s := open(t, store.Options{})
	var several *pull.AmbiguousError
	if _, err := pull.Pull(t.Context(), s, repo(t, at), quick); !errors.As(err, &several) {
		t.Fatalf("pulled one of two models: %v", err)
	}
	source := repo(t, at)
	source.Include = []string{"*Q8*"}
	if _, err := pull.Pull(t.Context(), s, source, quick); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, s, "n", "a-Q8_0.gguf"); !bytes.Equal(got, gguf(2, 9000)) {
		t.Error("the store has other bytes")
	}
}

func TestHub_RefusesOtherBytesThanPromised(t *testing.T) {
	at := hub(t, map[string][]byte{"config.json": []byte("{}"), "model.safetensors": random(1, 50_000)})
	at.files["o/n/resolve/"+commit+"/model.safetensors"] = random(2, 50_000)
	s := open(t, store.Options{})
	var damaged *store.DamageError
	if _, err := pull.Pull(t.Context(), s, repo(t, at), quick); !errors.As(err, &damaged) ||
		damaged.File != "model.safetensors" {
		t.Errorf("stored other bytes: %v", err)
	}
}

func TestHub_HostileLists(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	list := func(entries ...entry) []byte {
		text, _ := json.Marshal(entries)
		return text
	}
	for name, c := range map[string]struct {
		code fault.Code
		page []byte
		link string
	}{
		"no JSON":        {fault.DataLoss, []byte("<html>"), ""},
		"a path outside": {fault.NotFound, list(entry{"file", "../../x.gguf/../model.safetensors", 5, nil}), ""},
		"a name outside": {fault.DataLoss, list(entry{"file", `..\model.gguf`, 5, nil}), ""},
		"a size below 0": {fault.DataLoss, list(entry{"file", "a.gguf", -5, nil}), ""},
		"a huge size":    {fault.DataLoss, list(entry{"file", "a.gguf", 1 << 60, nil}), ""},
		"a bad digest":   {fault.DataLoss, list(entry{"file", "a.gguf", 5, &lfs{"xyz", 5}}), ""},
		"another server": {fault.DataLoss, list(), `<http://192.0.2.1/x>; rel="next"`},
		"endless pages":  {fault.DataLoss, list(), `</api/models/o/n/tree/` + commit + `>; rel="next"`},
		"a file twice": {fault.DataLoss, list(entry{"file", "config.json", 5, nil},
			entry{"file", "config.json", 5, nil}, entry{"file", "a.safetensors", 5, &lfs{zeros, 5}}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			at := hub(t, map[string][]byte{"config.json": []byte("12345"), "model.safetensors": random(1, 5),
				"a.gguf": []byte("GGUF5"), "a.safetensors": []byte("12345"), `..\model.gguf`: []byte("GGUF5")})
			at.before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/api/models/o/n/tree/") {
					return false
				}
				if c.link != "" {
					w.Header().Set("Link", c.link)
				}
				_, _ = w.Write(c.page)
				return true
			}
			s := open(t, store.Options{})
			if _, err := pull.Pull(t.Context(), s, repo(t, at), quick); fault.CodeOf(err) != c.code {
				t.Errorf("got %v (%v), want %v", fault.CodeOf(err), err, c.code)
			}
			if models, _ := s.Models(); len(models) > 0 {
				t.Errorf("stored %v", models)
			}
		})
	}
}

func TestHub_RefusesWhatIsNoRepository(t *testing.T) {
	for _, name := range []string{"", "x", "a/b/c", "../b", "a/..", "a b/c"} {
		if pull.IsRepository(name) {
			t.Errorf("%q counts as a repository", name)
		}
	}
	at := hub(t, map[string][]byte{"config.json": []byte("{}")})
	source := repo(t, at)
	source.Revision = "a b"
	if _, err := source.List(t.Context()); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("got %v", err)
	}
	source.Revision = "v2"
	if _, err := source.List(t.Context()); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}
