package pull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/lamina-mesh/lamina/pkg/fault"
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

func TestPull_FromAPath(t *testing.T) {
	dir := t.TempDir()
	data := gguf(1, 10_000)
	path := filepath.Join(dir, "tiny model.gguf")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Options{})
	for round, want := range []int64{10_000, 0} {
		r, err := pull.Pull(t.Context(), s, &pull.Path{Path: path}, quick)
		if err != nil {
			t.Fatal(err)
		}
		if r.Fetched != want || r.Manifest.Name != "tiny-model" {
			t.Errorf("round %d: fetched %d bytes of %s, want %d", round, r.Fetched, r.Manifest.Name, want)
		}
	}
	if got := stored(t, s, "tiny-model", "tiny model.gguf"); !bytes.Equal(got, data) {
		t.Error("the store has other bytes")
	}

	// The folder of a store has a manifest, so it can be copied with its digests.
	m, err := s.Model("tiny-model")
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, store.Options{})
	if _, err := pull.Pull(t.Context(), other, &pull.Path{Path: m.Path}, quick); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, other, "tiny-model", "tiny model.gguf"); !bytes.Equal(got, data) {
		t.Error("the second store has other bytes")
	}
	if _, err := pull.Pull(
		t.Context(),
		s,
		&pull.Path{Path: dir + "/none"},
		quick,
	); fault.CodeOf(
		err,
	) != fault.NotFound {
		t.Errorf("pulled a path that is not there: %v", err)
	}
}

func TestPull_FromAServer(t *testing.T) {
	data := gguf(1, 3<<20+123)
	for name, c := range map[string]struct {
		files map[string][]byte
		path  string
	}{
		"a file":               {map[string][]byte{"a/model.gguf": data}, "/a/model.gguf"},
		"a folder with a list": {publish(t, map[string][]byte{"model.gguf": data}), "/"},
		"a Hugging Face folder": {map[string][]byte{"m/config.json": []byte("{}"), "m/model.safetensors": data,
			"m/tokenizer.json": []byte("{}")}, "/m"},
	} {
		t.Run(name, func(t *testing.T) {
			at := serve(t, c.files)
			s := open(t, store.Options{})
			r, err := pull.Pull(t.Context(), s, web(t, at.URL+c.path), quick)
			if err != nil {
				t.Fatal(err)
			}
			last := r.Manifest.Files[len(r.Manifest.Files)-1]
			if f, ok := r.Manifest.File("model.safetensors"); ok {
				last = f
			}
			if got := stored(t, s, r.Manifest.Name, last.Path); !bytes.Equal(got, data) {
				t.Error("the store has other bytes")
			}
			before := at.sent.Load()
			again, err := pull.Pull(t.Context(), s, web(t, at.URL+c.path), quick)
			if err != nil || again.Fetched != 0 {
				t.Errorf("pulled %d bytes again: %v", again.Fetched, err)
			}
			if n := at.sent.Load() - before; n > 2 { // probes of a byte
				t.Errorf("the server sent %d bytes again", n)
			}
		})
	}
}

// TestPull_GoesOnAfterKills ends pulls at many points. What has arrived stays.
func TestPull_GoesOnAfterKills(t *testing.T) {
	const chunks, workers = 240, 3
	data := gguf(1, chunks*chunk)
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	s := open(t, store.Options{})
	kills := 0
	for ; ; kills++ {
		if kills > 5000 {
			t.Fatal("the pull makes no progress")
		}
		ctx, kill := context.WithCancel(t.Context())
		left := atomic.Int64{}
		left.Store((workers + 1) * chunk) // so that at least one chunk arrives whole
		at.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ".gguf") {
				at.answer(&killer{w, r.Context(), &left, kill}, r)
				return true
			}
			return false
		}
		_, err := pull.Pull(ctx, s, web(t, at.URL), pull.Options{Workers: workers, Backoff: time.Millisecond})
		kill()
		if err == nil {
			break
		}
		if fault.CodeOf(err) != fault.Canceled {
			t.Fatal(err)
		}
	}
	if kills < 50 {
		t.Fatalf("only %d kills", kills)
	}
	if got := stored(t, s, "m", "model.gguf"); !bytes.Equal(got, data) {
		t.Error("the store has other bytes")
	}
	t.Logf("%d kills, the server sent %d of %d bytes", kills, at.sent.Load(), len(data))
}

// killer kills a pull when it has sent a number of bytes.
type killer struct {
	http.ResponseWriter
	gone context.Context // done when the pull has ended
	left *atomic.Int64
	kill func()
}

func (k *killer) Write(p []byte) (int, error) {
	const most = 1000
	for i := 0; i < len(p); i += most {
		if _, err := k.ResponseWriter.Write(p[i:min(len(p), i+most)]); err != nil {
			return i, err
		}
		if k.left.Add(-most) < 0 {
			_ = http.NewResponseController(k.ResponseWriter).Flush()
			timer := time.AfterFunc(10*time.Millisecond, k.kill) // some of what was sent arrives before
			defer timer.Stop()
			<-k.gone.Done()
			return i, errors.New("killed")
		}
	}
	return len(p), nil
}

// TestPull_TruncatedAnswers cuts answers off at many offsets.
func TestPull_TruncatedAnswers(t *testing.T) {
	data := gguf(1, 20*chunk+5)
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	for _, cut := range []int{0, 1, chunk - 1, chunk, chunk + 1, 5*chunk + 17, 20 * chunk, 20*chunk + 4} {
		s := open(t, store.Options{})
		first := atomic.Bool{}
		at.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".gguf") || first.Swap(true) {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[:cut])
			return true // the connection ends
		}
		before := at.sent.Load()
		r, err := pull.Pull(t.Context(), s, web(t, at.URL), quick)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if got := stored(t, s, "m", "model.gguf"); !bytes.Equal(got, data) || r.Fetched != int64(len(data)) {
			t.Errorf("cut at %d: the store has other bytes, fetched %d", cut, r.Fetched)
		}
		if n := at.sent.Load() - before; n > int64(len(data)-cut/chunk*chunk) {
			t.Errorf("cut at %d: the server sent %d more bytes, though %d chunks had arrived", cut, n, cut/chunk)
		}
	}
}

func TestPull_ServerThatIsGoneIsGivenUp(t *testing.T) {
	at := serve(t, publish(t, map[string][]byte{"model.gguf": gguf(1, 5*chunk)}))
	at.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".gguf") {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	if _, err := pull.Pull(t.Context(), open(t, store.Options{}), web(t, at.URL), quick); fault.CodeOf(err) !=
		fault.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestPull_FlippedBitsAreFetchedAgainOrRefused flips a bit of answers: once, and always.
func TestPull_FlippedBitsAreFetchedAgainOrRefused(t *testing.T) {
	data := gguf(1, 10*chunk)
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 40 {
		s := open(t, store.Options{})
		always, flipped := i%4 == 0, atomic.Bool{}
		bit := r.IntN(8 * len(data))
		damaged := bytes.Clone(data)
		damaged[bit/8] ^= 1 << (bit % 8)
		at.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".gguf") || flipped.Swap(true) && !always {
				return false
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(damaged))
			return true
		}
		_, err := pull.Pull(t.Context(), s, web(t, at.URL), quick)
		var refused *store.DamageError
		switch {
		case always && (!errors.As(err, &refused) || refused.File != "model.gguf"):
			t.Errorf("bit %d: a damaged file was stored: %v", bit, err)
		case !always && err != nil:
			t.Errorf("bit %d: %v", bit, err)
		case !always && !bytes.Equal(stored(t, s, "m", "model.gguf"), data):
			t.Errorf("bit %d: the store has other bytes", bit)
		}
	}
}

// TestPull_FlippedBitsCostTheirChunkAlone pulls from a server with the digests of all chunks, of which many answers
// have a flipped bit.
func TestPull_FlippedBitsCostTheirChunkAlone(t *testing.T) {
	data := gguf(1, 300*chunk)
	files := publish(t, map[string][]byte{"model.gguf": data})
	_, sums, err := store.Describe(t.Context(), bytes.NewReader(data), int64(len(data)), chunk)
	if err != nil {
		t.Fatal(err)
	}
	for _, sum := range sums {
		files[store.SumsName] = append(files[store.SumsName], sum[:]...)
	}
	at := serve(t, files)
	var mu sync.Mutex
	r, flips := rand.New(rand.NewPCG(5, 6)), 0
	at.before = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, ".gguf") {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		var from int
		_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
		damaged := data
		if flips < 1000 {
			damaged = bytes.Clone(data)
			for ; from < len(data); from += 4 * chunk {
				damaged[min(from+r.IntN(4*chunk), len(data)-1)] ^= 1 << r.IntN(8)
				flips++
			}
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(damaged))
		return true
	}
	s := open(t, store.Options{})
	for rounds := 1; ; rounds++ {
		result, err := pull.Pull(t.Context(), s, web(t, at.URL), quick)
		if err == nil {
			t.Logf("%d flips, %d rounds, %d bytes in the last one", flips, rounds, result.Fetched)
			break
		}
		var refused *store.DamageError
		if !errors.As(err, &refused) || refused.File != "model.gguf" || refused.Chunk < 0 || rounds > 1000 {
			t.Fatal(err)
		}
	}
	if got := stored(t, s, "m", "model.gguf"); !bytes.Equal(got, data) || flips < 1000 {
		t.Errorf("the store has other bytes, or there were only %d flips", flips)
	}
	files[store.SumsName][40] ^= 1
	var refused *store.DamageError
	if _, err := pull.Pull(t.Context(), open(t, store.Options{}), web(t, at.URL), quick); !errors.As(err, &refused) {
		t.Errorf("digests of chunks that are not those of the manifest are believed: %v", err)
	}
}

// TestPull_HostileServers tries what a server may do. Each is refused, and nothing is stored.
func TestPull_HostileServers(t *testing.T) {
	data := gguf(1, 4*chunk)
	other := serve(t, map[string][]byte{"model.gguf": data})
	partial := func(head string, body []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Range", head)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
			return true
		}
	}
	full := fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data))
	n := atomic.Int64{}
	for name, c := range map[string]struct {
		path   string
		code   fault.Code
		before func(w http.ResponseWriter, r *http.Request) bool
	}{
		"another range":    {"/", fault.DataLoss, partial("bytes 1-16383/16384", data[1:])},
		"a longer range":   {"/", fault.DataLoss, partial(fmt.Sprintf("bytes 0-%d/%d", len(data), len(data)+1), data)},
		"another size":     {"/", fault.Aborted, partial(fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)+7), data)},
		"no range":         {"/", fault.DataLoss, partial("", data)},
		"a broken range":   {"/", fault.DataLoss, partial("bytes 9-1/2", data)},
		"a huge range":     {"/", fault.DataLoss, partial("bytes 0-99999999999999999999/*", data)},
		"too few bytes":    {"/", fault.Unavailable, partial(full, data[:10])},
		"an unknown size":  {"/model.gguf", fault.FailedPrecondition, chunked(data)},
		"a size beyond":    {"/model.gguf", fault.DataLoss, partial("bytes 0-0/9000000000000000", data[:1])},
		"an encoding":      {"/", fault.FailedPrecondition, encoded},
		"redirects":        {"/", fault.FailedPrecondition, redirects(&n)},
		"another protocol": {"/", fault.FailedPrecondition, redirected("ftp://127.0.0.1/model.gguf")},
		"a status":         {"/", fault.FailedPrecondition, answered(http.StatusTeapot)},
		"no right":         {"/", fault.PermissionDenied, answered(http.StatusForbidden)},
		"no token":         {"/", fault.Unauthenticated, answered(http.StatusUnauthorized)},
		"nothing":          {"/", fault.NotFound, answered(http.StatusNotFound)},
		"a changing file":  {"/", fault.Aborted, tagged(&n, data)},
	} {
		t.Run(name, func(t *testing.T) {
			at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
			at.before = func(w http.ResponseWriter, r *http.Request) bool {
				return strings.HasSuffix(r.URL.Path, ".gguf") && c.before(w, r)
			}
			s := open(t, store.Options{})
			source := web(t, at.URL+c.path)
			if name == "a changing file" {
				source = web(t, at.URL+"/model.gguf")
			}
			_, err := pull.Pull(t.Context(), s, source, quick)
			if fault.CodeOf(err) != c.code {
				t.Errorf("got %v (%v), want %v", fault.CodeOf(err), err, c.code)
			}
			if models, err := s.Models(); err != nil || len(models) > 0 {
				t.Errorf("stored %v (%v)", models, err)
			}
		})
	}
	if n := other.sent.Load(); n > 0 {
		t.Errorf("another server was asked for %d bytes", n)
	}
}

func chunked(data []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		_ = http.NewResponseController(w).Flush() // so that there is no Content-Length
		_, _ = w.Write(data)
		return true
	}
}

func encoded(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write([]byte("bomb"))
	return true
}

func redirects(n *atomic.Int64) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, fmt.Sprintf("/%d.gguf", n.Add(1)), http.StatusFound)
		return true
	}
}

func redirected(to string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, to, http.StatusFound)
		return true
	}
}

func answered(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(code)
		return true
	}
}

// tagged answers with another ETag each time.
func tagged(n *atomic.Int64, data []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("ETag", fmt.Sprintf(`"v%d"`, n.Add(1)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return true
	}
}

func TestPull_ServerWithoutRanges(t *testing.T) {
	data := gguf(1, 3<<20)
	at := serve(t, map[string][]byte{"model.gguf": data})
	cut := atomic.Bool{}
	at.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if r.Header.Get("Range") != "bytes=0-0" && !cut.Swap(true) {
			_, _ = w.Write(data[:2<<20])
			return true
		}
		_, _ = w.Write(data)
		return true
	}
	s := open(t, store.Options{})
	if _, err := pull.Pull(t.Context(), s, web(t, at.URL+"/model.gguf"), quick); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, s, "model", "model.gguf"); !bytes.Equal(got, data) {
		t.Error("the store has other bytes")
	}
}

func TestPull_SilentServerIsCutOff(t *testing.T) {
	data := gguf(1, 4*chunk)
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	release := make(chan struct{})
	defer close(release)
	first := atomic.Bool{}
	at.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".gguf") || first.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:10])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	s := open(t, store.Options{})
	source := &pull.Web{Client: client(t, pull.ClientOptions{Idle: 2 * time.Second}), URL: at.URL}
	if _, err := pull.Pull(t.Context(), s, source, quick); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, s, "m", "model.gguf"); !bytes.Equal(got, data) {
		t.Error("the store has other bytes")
	}
}

func TestPull_LimitsComeFirst(t *testing.T) {
	at := serve(t, publish(t, map[string][]byte{"model.gguf": gguf(1, 8*chunk)}))
	for name, c := range map[string]struct {
		limit, most int64
		name        string
		code        fault.Code
	}{
		"a large model": {0, 7 * chunk, "", fault.Exhausted},
		"a small store": {7 * chunk, 0, "", fault.Exhausted},
		"a bad name":    {0, 0, "../x", fault.Invalid},
	} {
		s := open(t, store.Options{Limit: c.limit})
		_, err := pull.Pull(t.Context(), s, web(t, at.URL), pull.Options{Name: c.name, MaxSize: c.most})
		if fault.CodeOf(err) != c.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := at.sent.Load(); n > 0 {
		t.Errorf("%d bytes were fetched", n)
	}
}

func TestPull_TokensStayWithTheirServer(t *testing.T) {
	data := gguf(1, 2*chunk)
	seen := atomic.Value{}
	seen.Store("")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.Header.Get("Authorization"))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer elsewhere.Close()
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	at.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s was asked for without the token", r.URL)
		}
		if strings.HasSuffix(r.URL.Path, ".gguf") {
			http.Redirect(w, r, elsewhere.URL+"/x", http.StatusFound)
			return true
		}
		return false
	}
	source := &pull.Web{Client: client(t, pull.ClientOptions{Token: "secret"}), URL: at.URL}
	if _, err := pull.Pull(t.Context(), open(t, store.Options{}), source, quick); err != nil {
		t.Fatal(err)
	}
	if got := seen.Load(); got != "" {
		t.Errorf("another server was sent %q", got)
	}
	plain := &pull.Web{Client: client(t, pull.ClientOptions{Token: "secret"}), URL: "http://192.0.2.1/x.gguf"}
	if _, err := plain.List(t.Context()); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a token would be sent without TLS: %v", err)
	}
}

// countSource fails a test if it is read.
type countSource struct {
	pull.Source
	reads atomic.Int64
}

func (c *countSource) Read(ctx context.Context, f pull.File, from, to int64) (io.ReadCloser, error) {
	c.reads.Add(1)
	return c.Source.Read(ctx, f, from, to)
}

func TestPull_FilesThatTheStoreHasAreNotRead(t *testing.T) {
	data := gguf(1, 8*chunk)
	at := serve(t, publish(t, map[string][]byte{"model.gguf": data}))
	s := open(t, store.Options{})
	if _, err := pull.Pull(t.Context(), s, web(t, at.URL), quick); err != nil {
		t.Fatal(err)
	}
	source := &countSource{Source: web(t, at.URL)}
	r, err := pull.Pull(t.Context(), s, source, pull.Options{Name: "other"})
	if err != nil || r.Fetched != 0 || source.reads.Load() != 0 {
		t.Errorf("the same file was read %d times under another name: %v", source.reads.Load(), err)
	}
}
