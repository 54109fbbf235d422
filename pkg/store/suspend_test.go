package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// Two processes that need chunks of one file see what the other one has fetched, and a third one completes it.
func TestPartial_SuspendedFetchesShareAFile(t *testing.T) {
	dir := t.TempDir()
	data := content(1, 6*chunk)
	a, b := open(t, dir, store.Options{}), open(t, dir, store.Options{})
	begin := func(s *store.Store) *store.Partial {
		p, err := s.Begin(t.Context(), wanted("model.gguf", data))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	write := func(p *store.Partial, chunks ...int) {
		t.Helper()
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, i := range chunks {
			if fresh, err := p.WriteChunk(i, data[i*chunk:(i+1)*chunk]); err != nil || !fresh {
				t.Fatalf("chunk %d: fresh %v, %v", i, fresh, err)
			}
		}
		if err := p.Suspend(); err != nil {
			t.Fatal(err)
		}
	}
	p := begin(a)
	write(p, 0, 1)
	q := begin(b)
	if !q.Has(0) || !q.Has(1) || q.Has(2) {
		t.Fatal("the second process does not see what the first one has")
	}
	write(q, 3)
	write(p, 2)
	if !p.Has(3) {
		t.Fatal("the first process does not see what the second one has fetched")
	}
	m := &store.Manifest{Format: "lamina-model/1", Name: "m", Digest: "sha256:" + zeros}
	f, _, err := store.Describe(t.Context(), bytes.NewReader(data), int64(len(data)), chunk)
	if err != nil {
		t.Fatal(err)
	}
	f.Path = "model.gguf"
	m.Files = []store.File{f}
	lease, err := a.Scaffold(t.Context(), m, []*store.Partial{p})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(lease.Path, "model.gguf"))
	if err != nil || len(got) != len(data) || !bytes.Equal(got[:4*chunk], data[:4*chunk]) {
		t.Fatalf("the folder has %d bytes: %v", len(got), err)
	}

	// Neither a small limit nor a sweep removes it.
	old := time.Now().Add(-365 * 24 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "partial", a.Key(wanted("", data)), "log"), old, old); err != nil {
		t.Fatal(err)
	}
	small := open(t, dir, store.Options{Limit: chunk})
	if err := small.Reserve(t.Context(), chunk, ""); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("made room: %v", err)
	}
	if err := small.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPut(t, b, "whole", data)
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !p.Whole() || !p.Has(5) {
		t.Error("the first process does not see that the file is whole")
	}
	got, err = os.ReadFile(filepath.Join(lease.Path, "model.gguf"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the folder has other bytes: %v", err)
	}
	if err := lease.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(lease.Path); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}
