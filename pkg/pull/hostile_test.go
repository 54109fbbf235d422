package pull_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

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
