package pull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

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

// A server that nobody reaches is another thing than a caller who has given up: it is named, and may be tried again.
func TestPull_ServerThatIsNotThereIsNamed(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	source := &pull.Web{Client: client(t, pull.ClientOptions{}), URL: server.URL + "/tiny.gguf"}
	s := open(t, store.Options{})
	if _, err := pull.Pull(t.Context(), s, source, quick); fault.CodeOf(err) != fault.Unavailable ||
		!strings.Contains(err.Error(), server.URL) {
		t.Errorf("a server that is gone: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pull.Pull(ctx, s, source, quick); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a caller who has given up: %v", err)
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
