package trainer

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const (
	weight  = shardv1.StateKind_STATE_KIND_WEIGHT
	moment1 = shardv1.StateKind_STATE_KIND_MOMENT1
	moment2 = shardv1.StateKind_STATE_KIND_MOMENT2

	residual = shardv1.StateKind_STATE_KIND_RESIDUAL
)

// stateTensor is a weight or a moment.
type stateTensor struct {
	name   string
	kind   shardv1.StateKind
	shape  []int
	values []float32
}

// state is everything that the next step of a run depends on, except its manifest.
type state struct {
	step    uint64
	tensors []stateTensor
}

func (s *state) sort() {
	slices.SortFunc(s.tensors, func(a,
		b stateTensor) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind))
	})
}

// params returns the weights, by name.
func (s *state) params() []model.Param[float32] {
	var out []model.Param[float32]
	for _, t := range s.tensors {
		if t.kind == weight {
			out = append(out, model.Param[float32]{Name: t.name, Shape: t.shape, Data: t.values})
		}
	}
	return out
}

// digest returns the SHA-256 of names and weights in name order.
func (s *state) digest() string {
	h := sha256.New()
	for _, p := range s.params() {
		h.Write(append([]byte(p.Name), 0))
		h.Write(wire.Bytes(p.Data))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// checkpointFile is the manifest of a checkpoint. It is written last: a folder without it,
// or whose files do not match its digests, is not a checkpoint.
type checkpointFile struct {
	Step     uint64            `json:"step"`
	Manifest string            `json:"manifest"` // SHA-256 of the run's manifest
	Files    map[string]string `json:"files"`    // SHA-256 by name
}

const (
	checkpointName = "checkpoint.json"
	keepCount      = 2
)

func files() map[shardv1.StateKind]string {
	return map[shardv1.StateKind]string{weight: "weights.safetensors", moment1: "moment1.safetensors",
		moment2: "moment2.safetensors", residual: "residuals.safetensors"}
}

func stepDir(dir string, step uint64) string {
	return filepath.Join(dir, fmt.Sprintf("step-%08d", step))
}

// saveCheckpoint writes a state into a new folder under dir and removes older checkpoints.
func saveCheckpoint(dir string, s *state, manifest string) error {
	at := stepDir(dir, s.step)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	record := checkpointFile{Step: s.step, Manifest: manifest, Files: map[string]string{}}
	for kind, name := range files() {
		var named []weights.Named
		for _, t := range s.tensors {
			if t.kind == kind {
				named = append(named, weights.Named{Name: t.name, DType: tensor.F32, Shape: t.shape,
					Data: wire.Bytes(t.values)})
			}
		}
		if kind == residual && named == nil {
			continue // only some wire types have them
		}
		h := sha256.New()
		err := weights.WriteFile(filepath.Join(at, name), func(w io.Writer) error {
			return weights.EncodeSafetensors(io.MultiWriter(w, h), named, nil)
		})
		if err != nil {
			return err
		}
		record.Files[name] = hex.EncodeToString(h.Sum(nil))
	}
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	if err := weights.WriteFile(filepath.Join(at, checkpointName), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return dropOld(dir, keepCount)
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// listCheckpoints lists the folders of checkpoints, oldest first.
func listCheckpoints(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "step-") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, err
}

// dropOld removes all but the newest checkpoints.
func dropOld(dir string, keep int) error {
	all, err := listCheckpoints(dir)
	if err != nil {
		return err
	}
	for len(all) > keep {
		if err := os.RemoveAll(all[0]); err != nil {
			return err
		}
		all = all[1:]
	}
	return nil
}

// loadCheckpoint reads the newest intact checkpoint of a run, or returns nil if there is
// none. It skips damaged ones, after calling skip. A checkpoint of another manifest is an
// error.
func loadCheckpoint(dir, manifest string, skip func(path string, err error)) (*state, error) {
	all, err := listCheckpoints(dir)
	if err != nil {
		return nil, err
	}
	for _, at := range slices.Backward(all) {
		s, err := readCheckpoint(at, manifest)
		if fault.CodeOf(err) == fault.FailedPrecondition {
			return nil, err
		}
		if err == nil {
			return s, nil
		}
		skip(at, err)
	}
	return nil, nil
}

func readCheckpoint(at, manifest string) (*state, error) {
	text, err := os.ReadFile(filepath.Join(at, checkpointName))
	if err != nil {
		return nil, err
	}
	var record checkpointFile
	if err := json.Unmarshal(text, &record); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read %s", filepath.Join(at, checkpointName))
	}
	if at != stepDir(filepath.Dir(at), record.Step) {
		return nil, fault.New(fault.DataLoss, "read %s: want the step of the folder's name, got %d", at, record.Step)
	}
	out := &state{step: record.Step}
	for kind, name := range files() {
		if _, ok := record.Files[name]; !ok && kind == residual {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(at, name))
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != record.Files[name] {
			return nil, fault.New(fault.DataLoss, "read %s: its digest does not match", filepath.Join(at, name))
		}
		source, err := weights.ParseSafetensors(name, raw)
		if err != nil {
			return nil, err
		}
		for _, tensorName := range source.Names() {
			info, _ := source.Info(tensorName)
			data, err := source.Data(tensorName)
			if err != nil {
				return nil, err
			}
			values := make([]float32, info.Elements())
			tensor.Dequantize(values, data, info.DType)
			out.tensors = append(out.tensors, stateTensor{tensorName, kind, info.Shape, values})
		}
	}
	if record.Manifest != manifest {
		return nil, fault.New(fault.FailedPrecondition, "resume from %s: it belongs to another manifest", at)
	}
	out.sort()
	return out, nil
}

// finite reports the first value that is not finite.
func (s *state) finite() error {
	for _, t := range s.tensors {
		for i, v := range t.values {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return fault.New(fault.DataLoss, "check state of step %d: element %d of %s is %v", s.step, i, t.name, v)
			}
		}
	}
	return nil
}
