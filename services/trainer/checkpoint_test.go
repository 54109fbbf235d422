package trainer

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// aState returns a small state whose values depend on its step.
func aState(step uint64) *state {
	s := &state{step: step}
	for i, name := range []string{"b.weight", "a.weight"} {
		for kind := weight; kind <= moment2; kind++ {
			values := make([]float32, 6)
			for j := range values {
				values[j] = float32(step)*100 + float32(i*10) + float32(j) + float32(kind)/8
			}
			s.tensors = append(s.tensors, stateTensor{name, kind, []int{2, 3}, values})
		}
	}
	s.sort()
	return s
}

func equalStates(a, b *state) bool {
	return a.step == b.step && slices.EqualFunc(a.tensors, b.tensors, func(x, y stateTensor) bool {
		return x.name == y.name && x.kind == y.kind && slices.Equal(x.shape, y.shape) &&
			slices.Equal(x.values, y.values)
	})
}

func save(t *testing.T, dir string, step uint64) {
	t.Helper()
	if err := saveCheckpoint(dir, aState(step), "m"); err != nil {
		t.Fatal(err)
	}
}

// load reads the newest complete checkpoint and returns how many newer ones were skipped.
func load(t *testing.T, dir string) (*state, int) {
	t.Helper()
	skipped := 0
	s, err := loadCheckpoint(dir, "m", func(string, error) { skipped++ })
	if err != nil {
		t.Fatal(err)
	}
	return s, skipped
}

func TestCheckpoint_ReadsBackTheNewestOfTwo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "checkpoints")
	if s, _ := load(t, dir); s != nil {
		t.Errorf("a run without checkpoints has a checkpoint of step %d", s.step)
	}
	for _, step := range []uint64{9, 10, 11} {
		save(t, dir, step)
		if s, skipped := load(t, dir); skipped != 0 || s == nil || !equalStates(s, aState(step)) {
			t.Errorf("step %d reads back as %+v", step, s)
		}
	}
	all, err := listCheckpoints(dir)
	if err != nil || len(all) != keepCount {
		t.Errorf("kept %v, %v", all, err)
	}
}

func TestCheckpoint_OfAnotherManifestIsRefused(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, 3)
	if _, err := loadCheckpoint(dir, "other", func(string, error) {}); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("got %v", err)
	}
}

// After a crash the run falls back to the checkpoint before. The test tries every prefix of the
// files that a save writes, in its order, and truncations of the file being written.
func TestCheckpoint_CrashAnywhereFallsBack(t *testing.T) {
	whole := t.TempDir()
	save(t, whole, 5)
	at := stepDir(whole, 5)
	entries, err := os.ReadDir(at)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != checkpointName {
			names = append(names, e.Name())
		}
	}
	names = append(names, checkpointName) // the manifest is last
	for done := range names {
		for _, share := range []float64{-1, 0, 0.5, 0.99} { // of the file being written; -1 for none of it
			dir := t.TempDir()
			save(t, dir, 4)
			torn := stepDir(dir, 5)
			if err := os.Mkdir(torn, 0o700); err != nil {
				t.Fatal(err)
			}
			for i, name := range names[:done+1] {
				raw, err := os.ReadFile(filepath.Join(at, name))
				if err != nil {
					t.Fatal(err)
				}
				if i == done {
					if share < 0 {
						continue
					}
					raw = raw[:int(share*float64(len(raw)))]
				}
				if err := os.WriteFile(filepath.Join(torn, name), raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if s, skipped := load(t, dir); s == nil || skipped != 1 || !equalStates(s, aState(4)) {
				t.Errorf("crash in file %d of %d at %v: loaded %+v, skipped %d", done, len(names), share, s,
					skipped)
			}
			save(t, dir, 5) // the run continues over the remaining files
			if s, _ := load(t, dir); s == nil || !equalStates(s, aState(5)) {
				t.Errorf("crash in file %d of %d at %v: step 5 saved again reads back as %+v", done, len(names),
					share, s)
			}
		}
	}
}

func TestCheckpoint_AnyFlippedBitIsDetected(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, 4)
	save(t, dir, 5)
	at := stepDir(dir, 5)
	entries, err := os.ReadDir(at)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		path := filepath.Join(at, entries[r.IntN(len(entries))].Name())
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		i, bit := r.IntN(len(raw)), byte(1)<<r.IntN(8)
		raw[i] ^= bit
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadCheckpoint(dir, "m", func(string, error) {})
		switch { // a damaged manifest digest may look like the digest of another manifest
		case err != nil && fault.CodeOf(err) != fault.FailedPrecondition:
			t.Fatalf("bit %d of byte %d of %s: %v", bit, i, path, err)
		case s != nil && !equalStates(s, aState(s.step)):
			t.Fatalf("bit %d of byte %d of %s was not noticed", bit, i, path)
		}
		raw[i] ^= bit
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
