package checkpoint_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

var run = strings.Repeat("ab", 32)

// values returns the bytes of a tensor of a checkpoint. They depend on all of its keys.
func values(step uint64, kind, name string, n int) []byte {
	var out []byte
	for i := range n {
		v := float32(step)*100 + float32(len(kind)) + float32(name[0])*0.01 + float32(i)/8
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}

var tensors = []checkpoint.Tensor{
	{Name: "b.weight", Shape: []int{13, 15}}, {Name: "a.weight", Shape: []int{7}},
	{Name: "empty", Shape: []int{0, 4}}, {Name: "c", Shape: []int{9, 2, 20}},
}

// writeFile writes one file of a checkpoint as a stage does, in pieces of odd sizes.
func writeFile(s *checkpoint.Store, step uint64, name, kind string, list []checkpoint.Tensor) (checkpoint.File, error) {
	p, err := s.Create(step, name)
	if err != nil {
		return checkpoint.File{}, err
	}
	e, err := checkpoint.NewEncoder(p, step, name, kind, list)
	if err != nil {
		return checkpoint.File{}, errors.Join(err, p.Abort())
	}
	for _, t := range e.Tensors() {
		for piece := range slices.Chunk(values(step, kind, t.Name, int(t.Bytes()/4)), 77) {
			if _, err := e.Write(piece); err != nil {
				return checkpoint.File{}, errors.Join(err, p.Abort())
			}
		}
	}
	f, err := e.Close()
	if err != nil {
		return checkpoint.File{}, errors.Join(err, p.Abort())
	}
	size, sum, err := p.Commit()
	if err == nil && (size != f.Bytes || sum != f.SHA256) {
		err = fmt.Errorf("%s has %d bytes with digest %s, the encoder says %d and %s", name, size, sum, f.Bytes, f.SHA256)
	}
	return f, err
}

// save writes a checkpoint as two stages and a trainer do.
func save(s *checkpoint.Store, step uint64, validation *float64) (*checkpoint.Checkpoint, error) {
	if err := s.Begin(step); err != nil {
		return nil, err
	}
	m := checkpoint.Manifest{Step: step, Run: run, Stages: 2, Replicas: 1, Loss: 1.5, Validation: validation}
	for stage, list := range [][]checkpoint.Tensor{tensors[:2], tensors[2:]} {
		for _, kind := range []string{checkpoint.Weight, "moment1"} {
			f, err := writeFile(s, step, fmt.Sprintf("%s-%d.safetensors", kind, stage), kind, list)
			if err != nil {
				return nil, err
			}
			m.Files = append(m.Files, f)
		}
	}
	return s.Commit(m)
}

func mustSave(t testing.TB, s *checkpoint.Store, step uint64, validation *float64) {
	t.Helper()
	if _, err := save(s, step, validation); err != nil {
		t.Fatal(err)
	}
}

// readAll compares all tensors of a checkpoint with what was saved.
func readAll(c *checkpoint.Checkpoint) error {
	for _, kind := range []string{checkpoint.Weight, "moment1"} {
		for _, tensor := range tensors {
			var got []byte
			if err := c.Read(kind, tensor.Name, func(p []byte) error {
				got = append(got, p...)
				return nil
			}); err != nil {
				return err
			}
			if want := values(c.Step, kind, tensor.Name, len(got)/4); !bytes.Equal(got, want) ||
				int64(len(got)) != tensor.Bytes() {
				return fmt.Errorf("step %d: %s %s is torn", c.Step, kind, tensor.Name)
			}
		}
	}
	return nil
}

// newestReadable returns the step of the newest checkpoint of which all tensors can be read, or 0. It
// reports tensors that are read wrong.
func newestReadable(t testing.TB, s *checkpoint.Store) uint64 {
	t.Helper()
	upTo := uint64(math.MaxUint64)
	for {
		c, err := s.Newest(run, upTo, func(uint64, error) {})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			return 0
		}
		err = readAll(c)
		if err == nil {
			return c.Step
		}
		if fault.CodeOf(err) != fault.DataLoss {
			t.Fatal(err)
		}
		upTo = c.Step - 1
	}
}

func TestStore_ReadsBackWhatItWrites(t *testing.T) {
	dir := t.TempDir()
	s := checkpoint.New(checkpoint.Dir(dir), "run/checkpoints")
	if steps, err := s.Steps(); err != nil || steps != nil {
		t.Errorf("a store without a folder has %v, %v", steps, err)
	}
	for _, step := range []uint64{9, 10, 123456789} {
		mustSave(t, s, step, nil)
		if got := newestReadable(t, s); got != step {
			t.Errorf("step %d is read after step %d is written", got, step)
		}
	}
	c, err := s.Open(10)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := c.Verify(); err != nil || len(found) > 0 {
		t.Errorf("a new checkpoint is damaged: %v, %v", found, err)
	}
	f, err := weights.OpenSafetensors(filepath.Join(dir, "run", "checkpoints", "step-00000010", "weight-0.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := f.Data("b.weight")
	if err != nil || !bytes.Equal(data, values(10, checkpoint.Weight, "b.weight", 195)) ||
		f.Metadata()["step"] != "10" {
		t.Errorf("b.weight is %v, metadata %v: %v", data, f.Metadata(), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Newest(strings.Repeat("cd", 32), 11, nil); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("a checkpoint of another run: %v", err)
	}
}

// Of every checkpoint that is being written the power is lost at each operation, with several outcomes for
// what was not synced. Then the checkpoint is found whole, or the one before it is, and the run goes on.
func TestStore_PowerLossLeavesAWholeCheckpoint(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		powerLoss(t, func(fs checkpoint.FS) (*checkpoint.Store, error) {
			return checkpoint.New(fs, "run/checkpoints"), nil
		})
	})
	t.Run("with a claim", func(t *testing.T) {
		powerLoss(t, func(fs checkpoint.FS) (*checkpoint.Store, error) {
			return checkpoint.New(fs, "run/checkpoints").Take()
		})
	})
}

func powerLoss(t *testing.T, open func(checkpoint.FS) (*checkpoint.Store, error)) {
	calm := newCrashFS()
	s, err := open(calm)
	if err != nil {
		t.Fatal(err)
	}
	keep := checkpoint.Keep{Last: 1}
	for _, step := range []uint64{4, 5} {
		mustSave(t, s, step, nil)
	}
	if err := s.Rotate(keep); err != nil {
		t.Fatal(err)
	}
	total := calm.ops
	crashes, outcomes := 0, map[uint64]int{}
	r := rand.New(rand.NewPCG(3, 4))
	for at := 1; at <= total+1; at++ {
		for try := range 20 {
			fs := newCrashFS()
			fs.crashAt = at
			durable := uint64(0)
			s, err := open(fs)
			for _, step := range []uint64{4, 5} {
				if err == nil {
					_, err = save(s, step, nil)
				}
				if err != nil {
					break
				}
				durable = step
			}
			if err == nil {
				err = s.Rotate(keep)
			}
			if (err == nil) != (at > total) {
				t.Fatalf("operation %d of %d: %v", at, total, err)
			}
			after, err := open(fs.after(func() bool {
				switch try {
				case 0:
					return false
				case 1:
					return true
				}
				return r.IntN(2) == 0
			}))
			if err != nil {
				t.Fatal(err)
			}
			crashes++
			got := newestReadable(t, after)
			outcomes[got]++
			if got < durable {
				t.Fatalf("power lost at operation %d (%s), outcome %d: step %d is found, step %d was durable", at,
					fs.log[len(fs.log)-1], try, got, durable)
			}
			if _, err := save(after, 5, nil); err != nil {
				t.Fatal(err)
			}
			if got := newestReadable(t, after); got != 5 {
				t.Fatalf("power lost at operation %d: step %d is found after 5 is saved again", at, got)
			}
		}
	}
	t.Logf("%d operations, %d crashes; found: nothing %d times, step 4 %d times, step 5 %d times", total, crashes,
		outcomes[0], outcomes[4], outcomes[5])
	if outcomes[0] == 0 || outcomes[4] == 0 || outcomes[5] == 0 {
		t.Errorf("outcomes are %v", outcomes)
	}
}

// Any bit of any file is flipped, 5,000 times. What is read is right, or the damage is noticed.
func TestStore_FlippedBitsAreDetected(t *testing.T) {
	disk := newCrashFS()
	s := checkpoint.New(disk, "checkpoints")
	mustSave(t, s, 4, nil)
	mustSave(t, s, 5, nil)
	const at = "checkpoints/step-00000005"
	names, err := disk.List(at)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	fellBack, harmless := 0, 0
	for range 5000 {
		name := names[r.IntN(len(names))]
		f := disk.find(at + "/" + name).(*file)
		i, bit := r.IntN(len(f.now)), byte(1)<<r.IntN(8)
		f.now = slices.Clone(f.now)
		f.now[i] ^= bit
		switch got := newestReadable(t, s); got { // which reports wrong values
		case 4:
			fellBack++
		case 5:
			harmless++
		default:
			t.Fatalf("bit %d of byte %d of %s: step %d is found", bit, i, name, got)
		}
		c, err := s.Open(5)
		if err == nil && name != "checkpoint.json" { // Verify reads all bytes of the files
			found, err := c.Verify()
			if err != nil || len(found) != 1 || found[0].File != name || found[0].Offset > int64(i) {
				t.Fatalf("bit %d of byte %d of %s: verification finds %v, %v", bit, i, name, found, err)
			}
		}
		f.now[i] ^= bit
	}
	t.Logf("%d flips were detected, %d were outside of what is read", fellBack, harmless)
	if fellBack < 2000 {
		t.Errorf("only %d of 5000 flips were detected", fellBack)
	}
}

func TestStore_RotateKeepsTheLastAndTheBest(t *testing.T) {
	s := checkpoint.New(newCrashFS(), "checkpoints")
	loss := func(v float64) *float64 { return &v }
	for step, l := range map[uint64]*float64{1: loss(3), 2: loss(1), 3: nil, 4: loss(2), 5: nil, 6: loss(4)} {
		mustSave(t, s, step, l)
	}
	if err := s.Begin(7); err != nil { // one that was not completed
		t.Fatal(err)
	}
	for _, c := range []struct {
		keep checkpoint.Keep
		want []uint64
	}{
		{checkpoint.Keep{Last: 3, Best: 2}, []uint64{2, 4, 5, 6}},
		{checkpoint.Keep{Last: 1, Best: 1, Not: func(step uint64) bool { return step == 6 }}, []uint64{2, 5}},
		{checkpoint.Keep{Last: 1}, []uint64{5}},
		{checkpoint.Keep{}, nil},
	} {
		if err := s.Rotate(c.keep); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Steps(); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v: kept %v, %v, want %v", c.keep, got, err, c.want)
		}
	}
}

func TestStore_OldFormatIsNamed(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "checkpoints", "step-00000003")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	old := `{"step": 3, "manifest": "00", "files": {"weights.safetensors": "00"}}`
	if err := os.WriteFile(filepath.Join(at, "checkpoint.json"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := checkpoint.New(checkpoint.Dir(dir), "checkpoints").Newest(run, 9, func(uint64, error) {})
	if fault.CodeOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "lamina 0.1") {
		t.Errorf("got %v", err)
	}
}

// full is a file system on which every write fails.
type full struct{ checkpoint.FS }

func (f full) Create(name string) (checkpoint.WriteFile, error) {
	w, err := f.FS.Create(name)
	return fullFile{w}, err
}

type fullFile struct{ checkpoint.WriteFile }

func (fullFile) Write([]byte) (int, error) { return 0, &os.PathError{Op: "write", Err: syscall.ENOSPC} }

func TestPending_FullDiskLeavesNothing(t *testing.T) {
	fs := newCrashFS()
	s := checkpoint.New(full{fs}, "checkpoints")
	if err := s.Begin(1); err != nil {
		t.Fatal(err)
	}
	if _, err := writeFile(s, 1, "x.safetensors", "weight", tensors); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("got %v", err)
	}
	if names, err := fs.List("checkpoints/step-00000001"); err != nil || len(names) > 0 {
		t.Errorf("left %v, %v", names, err)
	}
}

func TestDir_NamesStayInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Skip(err)
	}
	d := checkpoint.Dir(dir)
	for _, name := range []string{"../x", "link/x", "/etc/x", "a/../../x"} {
		if f, err := d.Create(name); err == nil {
			t.Errorf("%s was created: %v", name, f.Close())
		}
		if d.MakeDir(name) == nil || d.Rename(name, "y") == nil {
			t.Errorf("%s was made or renamed", name)
		}
	}
}

func TestEncoder_RefusesOtherNumbersOfBytes(t *testing.T) {
	e, err := checkpoint.NewEncoder(&bytes.Buffer{}, 1, "x", "weight", tensors[:1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Close(); err == nil {
		t.Error("a file without its tensors is complete")
	}
	if _, err := e.Write(make([]byte, 4*195+1)); err == nil {
		t.Error("more bytes than the tensors have are accepted")
	}
	for _, name := range []string{"", ".x", "a/b", "..", "checkpoint.json", `a\b`} {
		if _, err := checkpoint.NewEncoder(&bytes.Buffer{}, 1, name, "weight", tensors); err == nil {
			t.Errorf("a file named %q is accepted", name)
		}
	}
}

// FuzzManifest parses arbitrary files. What is accepted is written back the same.
func FuzzManifest(f *testing.F) {
	s := checkpoint.New(newCrashFS(), "c")
	c, err := save(s, 7, nil)
	if err != nil {
		f.Fatal(err)
	}
	text, err := c.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, true)
	f.Add(text, false)
	f.Add([]byte(`{"step":1,"manifest":"","files":{"a":"b"}}`), false)
	f.Fuzz(func(t *testing.T, text []byte, sign bool) {
		if sign { // else no change would get past the digest
			text = resign(text)
		}
		m, err := checkpoint.ParseManifest(text)
		if err != nil {
			if code := fault.CodeOf(err); code != fault.DataLoss && code != fault.FailedPrecondition {
				t.Fatalf("code %v: %v", code, err)
			}
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := checkpoint.ParseManifest(again); err != nil || fmt.Sprint(back) != fmt.Sprint(m) {
			t.Fatalf("%+v is read back as %+v: %v", m, back, err)
		}
	})
}

// resign gives a manifest the digest that belongs to it.
func resign(text []byte) []byte {
	_, body, ok := bytes.Cut(text, []byte(`"checkpoint": `))
	end := bytes.LastIndexByte(body, '\n')
	if !ok || end < 1 {
		return text
	}
	end = bytes.LastIndexByte(body[:end], '\n')
	if end < 0 {
		return text
	}
	sum := sha256.Sum256(body[:end])
	return fmt.Appendf(nil, `{"sha256": "%x", "checkpoint": %s}`, sum, body[:end])
}
