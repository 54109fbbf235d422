package pull_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

const chunk = store.MinChunk

func random(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(out)
	return out
}

func gguf(seed uint64, n int) []byte { return append([]byte("GGUF"), random(seed, n-4)...) }

func open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// site is an HTTP server with files, of which it counts the bytes that it sends.
type site struct {
	*httptest.Server
	files map[string][]byte
	sent  atomic.Int64 // of files with weights
	// before may answer a request itself; it returns false if the server shall answer.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []string
}

func serve(t testing.TB, files map[string][]byte) *site {
	s := &site{files: files}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.URL.Path)
	s.mu.Unlock()
	if s.before != nil && s.before(w, r) {
		return
	}
	s.answer(w, r)
}

func (s *site) answer(w http.ResponseWriter, r *http.Request) {
	data, ok := s.files[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.HasSuffix(r.URL.Path, ".gguf") || strings.HasSuffix(r.URL.Path, ".safetensors") {
		w = &counter{w, &s.sent}
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%.16s"`, store.SumOf(data)))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// publish adds a manifest with small chunks.
func publish(t testing.TB, files map[string][]byte) map[string][]byte {
	t.Helper()
	m := store.Manifest{Format: "lamina-model/1", Name: "m"}
	for _, path := range []string{"config.json", "model.gguf", "model.safetensors"} {
		data, ok := files[path]
		if !ok {
			continue
		}
		f, _, err := store.Describe(t.Context(), bytes.NewReader(data), int64(len(data)), chunk)
		if err != nil {
			t.Fatal(err)
		}
		f.Path = path
		m.Files = append(m.Files, f)
		m.Digest = "sha256:" + f.SHA256.String()
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	files[store.ManifestName] = text
	return files
}

func client(t testing.TB, o pull.ClientOptions) *pull.Client {
	c := pull.NewClient(o)
	t.Cleanup(c.Close)
	return c
}

func web(t testing.TB, url string) *pull.Web {
	return &pull.Web{Client: client(t, pull.ClientOptions{}), URL: url}
}

var quick = pull.Options{Backoff: time.Millisecond}

// stored returns a file of a model of the store.
func stored(t testing.TB, s *store.Store, name, path string) []byte {
	t.Helper()
	m, err := s.Model(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(m.Path, path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
