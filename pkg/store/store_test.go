package store_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

const chunk = store.MinChunk

// random returns bytes that depend on a seed.
func random(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(out)
	return out
}

func open(t testing.TB, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// wanted describes a file with small chunks.
func wanted(path string, data []byte) store.Want {
	sum := store.SumOf(data)
	return store.Want{Path: path, Size: int64(len(data)), SHA256: &sum, ChunkSize: chunk}
}

// fill writes the chunks that are missing, and returns their number.
func fill(t testing.TB, p *store.Partial, data []byte) int {
	t.Helper()
	n := 0
	for _, span := range p.Missing(1) {
		from := span.Lo * chunk
		if _, err := p.WriteChunk(span.Lo, data[from:min(len(data), from+chunk)]); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// put stores a model of one GGUF file.
func put(t testing.TB, s *store.Store, name string, data []byte) error {
	t.Helper()
	if err := s.Reserve(t.Context(), int64(len(data)), name); err != nil {
		return err
	}
	p, err := s.Begin(t.Context(), wanted("model.gguf", data))
	if err != nil {
		return err
	}
	defer p.Close()
	fill(t, p, data)
	if _, err := p.Finish(t.Context()); err != nil {
		return err
	}
	_, err = s.Commit(t.Context(), store.Draft{Name: name, Source: "test", Replace: true,
		Files: []store.DraftFile{{Path: "model.gguf", File: p}}})
	return err
}

func mustPut(t testing.TB, s *store.Store, name string, data []byte) {
	t.Helper()
	if err := put(t, s, name, data); err != nil {
		t.Fatal(err)
	}
}

// content returns the bytes of a GGUF file with a header that is no model.
func content(seed uint64, n int) []byte { return append([]byte("GGUF"), random(seed, n-4)...) }

func names(t testing.TB, s *store.Store) []string {
	t.Helper()
	models, err := s.Models()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range models {
		out = append(out, m.Name)
	}
	return out
}

func equal[T comparable](a []T, b ...T) bool { return slices.Equal(a, b) }

func TestStore_KeepsAModelUnderItsName(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	data := content(1, 3*chunk+100)
	mustPut(t, s, "a", data)
	mustPut(t, s, "b", data)
	if got := names(t, s); !equal(got, "a", "b") {
		t.Fatalf("the store lists %v", got)
	}
	if used, err := s.Usage(); err != nil || used != int64(len(data)) {
		t.Errorf("two models of the same file take %d bytes (%v), want %d", used, err, len(data))
	}
	other := open(t, dir, store.Options{}) // as another process does
	lease, err := other.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	if name := weights.ModelName(lease.Path); name != "a" {
		t.Errorf("the folder is of model %q", name)
	}
	digest, err := weights.Digest(lease.Path)
	if err != nil || digest != lease.Digest || digest != "sha256:"+store.SumOf(data).String() {
		t.Errorf("digest %s, want %s (%v)", digest, lease.Digest, err)
	}
	got, err := os.ReadFile(filepath.Join(lease.Path, "model.gguf"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes back: %v", len(got), err)
	}
	if _, err := os.ReadFile(filepath.Join(lease.Path, store.ManifestName)); err != nil {
		t.Error(err)
	}
	if _, err := s.Acquire(t.Context(), "c"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("acquired a model that is not there: %v", err)
	}
}

func TestStore_RemoveKeepsWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir, store.Options{}), open(t, dir, store.Options{})
	data := content(1, 2*chunk)
	mustPut(t, s, "a", data)
	lease, err := other.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	var used *store.InUseError
	if _, err := s.Remove(t.Context(), "a"); !errors.As(err, &used) {
		t.Fatalf("removed a model in use: %v", err)
	}
	if _, err := os.Stat(filepath.Join(lease.Path, "model.gguf")); err != nil {
		t.Fatal(err)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	freed, err := s.Remove(t.Context(), "a")
	if err != nil || freed != int64(len(data)) {
		t.Errorf("freed %d bytes, want %d: %v", freed, len(data), err)
	}
	if got := names(t, s); len(got) > 0 {
		t.Errorf("the store lists %v", got)
	}
	for _, part := range []string{"files", "sums", "trees", "uses", "locks", "partial"} {
		left, err := os.ReadDir(filepath.Join(dir, part))
		if err != nil || len(left) > 0 {
			t.Errorf("%s still has %v (%v)", part, left, err)
		}
	}
}

func TestStore_LimitEvictsTheLeastRecentlyUsed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{Limit: 10 * chunk})
	mustPut(t, s, "a", content(1, 3*chunk))
	mustPut(t, s, "b", content(2, 3*chunk))
	mustPut(t, s, "c", content(3, 3*chunk))
	uses := func(name string, at time.Time) { // the models were used in this order
		m, err := s.Model(name)
		if err != nil {
			t.Fatal(err)
		}
		key := filepath.Base(filepath.Dir(m.Path))
		if err := os.Chtimes(filepath.Join(dir, "uses", key), at, at); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	uses("b", now.Add(-3*time.Hour))
	uses("a", now.Add(-2*time.Hour))
	uses("c", now.Add(-1*time.Hour))
	mustPut(t, s, "d", content(4, 3*chunk))
	if got := names(t, s); !equal(got, "a", "c", "d") {
		t.Fatalf("the store keeps %v, want a, c and d", got)
	}
	lease, err := s.Acquire(t.Context(), "a") // the oldest, but in use
	if err != nil {
		t.Fatal(err)
	}
	uses("a", now.Add(-5*time.Hour))
	mustPut(t, s, "e", content(5, 3*chunk))
	if got := names(t, s); !equal(got, "a", "d", "e") {
		t.Fatalf("the store keeps %v, want a, d and e", got)
	}
	if err := put(t, s, "f", content(6, 8*chunk)); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("stored a model beside one in use: %v", err)
	}
	if got := names(t, s); !equal(got, "a", "d", "e") {
		t.Errorf("a model that does not fit has removed others: %v are left", got)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "f", content(6, 8*chunk))
	if got := names(t, s); !equal(got, "f") {
		t.Errorf("the store keeps %v, want f", got)
	}
}

func TestStore_ReplacingKeepsTheOldFolderWhileItIsUsed(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	old, now := content(1, 2*chunk), content(2, 2*chunk)
	mustPut(t, s, "a", old)
	lease, err := s.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "a", now)
	got, err := os.ReadFile(filepath.Join(lease.Path, "model.gguf"))
	if err != nil || !bytes.Equal(got, old) {
		t.Errorf("the old model has changed while it was used: %v", err)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lease.Path); !os.IsNotExist(err) {
		t.Errorf("the old folder is still there: %v", err)
	}
	again, err := s.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, err := os.ReadFile(filepath.Join(again.Path, "model.gguf")); err != nil || !bytes.Equal(got, now) {
		t.Errorf("the new model is not there: %v", err)
	}
}

func TestPartial_GoesOnAfterAKill(t *testing.T) {
	data := content(1, 7*chunk+11)
	for _, known := range []bool{true, false} {
		for written := range 9 {
			dir := t.TempDir()
			want := wanted("model.gguf", data)
			if !known {
				want.SHA256, want.Origin = nil, "http://example.org/model.gguf v1"
			}
			s := open(t, dir, store.Options{})
			p, err := s.Begin(t.Context(), want)
			if err != nil {
				t.Fatal(err)
			}
			for i := range min(written, 8) {
				if _, err := p.WriteChunk(i, data[i*chunk:min(len(data), i*chunk+chunk)]); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(); err != nil { // a kill ends the lock as well
				t.Fatal(err)
			}
			again, err := open(t, dir, store.Options{}).Begin(t.Context(), want)
			if err != nil {
				t.Fatal(err)
			}
			if got := fill(t, again, data); got != 8-min(written, 8) {
				t.Errorf("%d chunks were there, and %d were fetched again", written, got)
			}
			if f, err := again.Finish(t.Context()); err != nil || f.SHA256 != store.SumOf(data) {
				t.Errorf("finish: %v", err)
			}
			_ = again.Close()
		}
	}
}

// TestPartial_SurvivesADamagedLog cuts the log off at every length and flips its bits: what it says may be lost, but
// the file is never wrong.
func TestPartial_SurvivesADamagedLog(t *testing.T) {
	data := content(1, 4*chunk)
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	want := wanted("model.gguf", data)
	p, err := s.Begin(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, p, data)
	_ = p.Close()
	log := filepath.Join(dir, "partial", s.Key(want), "log")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, at int, damaged []byte, flipped bool) {
		if err := os.WriteFile(log, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := s.Begin(t.Context(), want)
		if err != nil {
			t.Fatalf("%s at %d: %v", what, at, err)
		}
		defer p.Close()
		again := fill(t, p, data)
		if flipped && again == 0 {
			t.Errorf("%s at %d was not noticed", what, at)
		}
		if _, err := p.Finish(t.Context()); err != nil {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for n := range len(text) {
		check("cut", n, text[:n], true)
	}
	for n := range len(text) {
		damaged := bytes.Clone(text)
		damaged[n] ^= 1 << (n % 8)
		check("flip", n, damaged, true)
	}
}

// TestStore_FlippedBitsAreFoundAndMended flips 1,000 bits of a whole file, ten at a time.
func TestStore_FlippedBitsAreFoundAndMended(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	data := content(1, 16*chunk+77)
	mustPut(t, s, "a", data)
	m, err := s.Model("a")
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 100 {
		broken := map[int]bool{}
		for len(broken) < 10 {
			at := r.IntN(len(data))
			if !broken[at/chunk] {
				broken[at/chunk] = true
				flip(t, filepath.Join(dir, "files", m.Files[0].SHA256.String()), at, byte(1)<<r.IntN(8))
			}
		}
		bad, err := s.Check(t.Context(), m.Files[0])
		if err != nil || !equal(bad, slices.Sorted(maps.Keys(broken))...) {
			t.Fatalf("round %d: found chunks %v (%v), want those of %v", round, bad, err, broken)
		}
		want := wanted("model.gguf", data)
		want.Check = true
		p, err := s.Begin(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if got := fill(t, p, data); got != len(broken) {
			t.Fatalf("round %d: %d chunks are fetched again, want %d", round, got, len(broken))
		}
		if _, err := p.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = s.Commit(t.Context(), store.Draft{Name: "a", Source: "test",
			Files: []store.DraftFile{{Path: "model.gguf", File: p}}})
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Close()
		if got, err := os.ReadFile(filepath.Join(m.Path, "model.gguf")); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("round %d: the model's folder is not mended: %v", round, err)
		}
	}
}

func TestPartial_FlippedBitsAreFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	data := content(1, 8*chunk)
	want := wanted("model.gguf", data)
	for at := 100; at < len(data); at += chunk + 37 {
		p, err := s.Begin(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, p, data)
		_ = p.Close()
		flip(t, filepath.Join(dir, "partial", s.Key(want), "data"), at, 4)
		if p, err = s.Begin(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if missing := p.Missing(1); len(missing) != 1 || missing[0].Lo != at/chunk {
			t.Errorf("byte %d: %v are fetched again, want chunk %d", at, missing, at/chunk)
		}
		_ = p.Close()
	}
}

func flip(t testing.TB, path string, at int, bit byte) {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], int64(at)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= bit
	if _, err := f.WriteAt(b[:], int64(at)); err != nil {
		t.Fatal(err)
	}
}

func TestPartial_RefusesWrongBytes(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	data := content(1, 3*chunk)
	_, sums, err := store.Describe(t.Context(), bytes.NewReader(data), int64(len(data)), chunk)
	if err != nil {
		t.Fatal(err)
	}
	want := wanted("model.gguf", data)
	want.Sums = sums
	p, err := s.Begin(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var damaged *store.DamageError
	if _, err := p.WriteChunk(1, data[:chunk]); !errors.As(err, &damaged) || damaged.Chunk != 1 {
		t.Errorf("stored another chunk: %v", err)
	}
	if _, err := p.WriteChunk(1, data[:chunk-1]); !errors.As(err, &damaged) {
		t.Errorf("stored half a chunk: %v", err)
	}
	if _, err := p.WriteChunk(3, data[:chunk]); !errors.As(err, &damaged) {
		t.Errorf("stored a chunk beyond the end: %v", err)
	}
	if _, err := p.Finish(t.Context()); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("finished a file with holes: %v", err)
	}

	// Without digests of chunks, the digest of the file finds them.
	other := wanted("other.gguf", content(2, 3*chunk))
	q, err := s.Begin(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	fill(t, q, data)
	if _, err := q.Finish(t.Context()); !errors.As(err, &damaged) {
		t.Errorf("finished another file: %v", err)
	}
	if q.Have() != 0 {
		t.Errorf("%d bytes of another file are kept", q.Have())
	}
}

// TestStore_TheSameFileIsFetchedOnce opens a file in two places at once: the second one waits and finds it whole.
func TestStore_TheSameFileIsFetchedOnce(t *testing.T) {
	dir := t.TempDir()
	data := content(1, 5*chunk)
	const fetchers = 4
	fetched := make(chan int, fetchers)
	for range fetchers {
		s := open(t, dir, store.Options{})
		go func() {
			p, err := s.Begin(t.Context(), wanted("model.gguf", data))
			if err != nil {
				t.Error(err)
				fetched <- 0
				return
			}
			defer p.Close()
			n := 0
			if !p.Whole() {
				n = fill(t, p, data)
			}
			if _, err := p.Finish(t.Context()); err != nil {
				t.Error(err)
			}
			_, err = s.Commit(t.Context(), store.Draft{Name: "a", Source: "test",
				Files: []store.DraftFile{{Path: "model.gguf", File: p}}})
			if err != nil {
				t.Error(err)
			}
			fetched <- n
		}()
	}
	total := 0
	for range fetchers {
		total += <-fetched
	}
	if total != 5 {
		t.Errorf("%d chunks were fetched, want 5", total)
	}
}

func TestStore_BeginWaitsNoLongerThanItsContext(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	p, err := s.Begin(t.Context(), wanted("model.gguf", content(1, chunk)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Begin(ctx, wanted("model.gguf", content(1, chunk))); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestStore_CommitRefusesATakenName(t *testing.T) {
	s := open(t, t.TempDir(), store.Options{})
	mustPut(t, s, "a", content(1, chunk))
	p, err := s.Begin(t.Context(), wanted("model.gguf", content(2, chunk)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	fill(t, p, content(2, chunk))
	if _, err := p.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	draft := store.Draft{Name: "a", Files: []store.DraftFile{{Path: "model.gguf", File: p}}}
	var taken *store.TakenError
	if _, err := s.Commit(t.Context(), draft); !errors.As(err, &taken) || taken.Source != "test" {
		t.Errorf("replaced a model: %v", err)
	}
	draft.Name = "../a"
	if _, err := s.Commit(t.Context(), draft); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("stored a model outside: %v", err)
	}
	draft.Name, draft.Digest = "b", "sha256:"+zeros
	var damaged *store.DamageError
	if _, err := s.Commit(t.Context(), draft); !errors.As(err, &damaged) {
		t.Errorf("stored another model than was promised: %v", err)
	}
}
