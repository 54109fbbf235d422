package checkpoint

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Manifest describes a checkpoint.
type Manifest struct {
	Step       uint64   `json:"step"`                      // optimizer steps taken
	Run        string   `json:"run_manifest_sha256"`       // of the manifest of the run
	Stages     int      `json:"stages"`                    // of each chain that wrote it
	Replicas   int      `json:"replicas"`                  // chains
	Loss       float64  `json:"loss"`                      // of the training step
	Validation *float64 `json:"validation_loss,omitempty"` // if it was measured at this step
	Weights    string   `json:"weights_sha256"`            // WeightsDigest
	Trainer    string   `json:"trainer,omitempty"`         // what else the trainer needs to go on, in its own form
	Files      []File   `json:"files"`                     // sorted by name
}

// File is a safetensors file of a checkpoint.
type File struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"` // what its tensors are to their parameters
	Bytes   int64    `json:"bytes"`
	SHA256  string   `json:"sha256"`
	Tensors []Tensor `json:"tensors"` // in the order of their bytes
}

// Tensor is a float32 tensor in a file, little-endian.
type Tensor struct {
	Name   string `json:"name"`
	Shape  []int  `json:"shape"`  // outermost first
	Offset int64  `json:"offset"` // in the file
	SHA256 string `json:"sha256"`
}

// Kinds of tensors that this package knows. Others may be added: to the package a kind is a name.
const Weight = "weight"

// Bytes returns the size of the tensor.
func (t *Tensor) Bytes() int64 {
	n := int64(tensor.F32.BlockBytes())
	for _, d := range t.Shape {
		n *= int64(d)
	}
	return n
}

const (
	manifestName = "checkpoint.json"
	maxManifest  = 256 << 20 // bytes
	maxDims      = 8
)

// WeightsDigest returns the SHA-256 over the name, a zero byte and the SHA-256 of each weight, in the
// order of names. So the digest of all weights needs no weight in memory.
func (m *Manifest) WeightsDigest() (string, error) {
	var all []Tensor
	for _, f := range m.Files {
		if f.Kind == Weight {
			all = append(all, f.Tensors...)
		}
	}
	slices.SortFunc(all, func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, t := range all {
		sum, err := hex.DecodeString(t.SHA256)
		if err != nil {
			return "", err
		}
		h.Write(append([]byte(t.Name), 0))
		h.Write(sum)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// envelope is the content of checkpoint.json: a manifest and the digest of its bytes.
type envelope struct {
	SHA256     string          `json:"sha256"` // of the bytes of the next field, as they are in the file
	Checkpoint json.RawMessage `json:"checkpoint"`
}

// Encode returns the content of checkpoint.json.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	body, err := json.MarshalIndent(m, "  ", "  ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	var out bytes.Buffer
	out.WriteString("{\n  \"sha256\": \"" + hex.EncodeToString(sum[:]) + "\",\n  \"checkpoint\": ")
	out.Write(body)
	out.WriteString("\n}\n")
	return out.Bytes(), nil
}

// ParseManifest reads the content of checkpoint.json. What is wrong with it is a DamageError, unless it
// is of a version before this format: that is a FailedPrecondition.
func ParseManifest(text []byte) (*Manifest, error) {
	bad := func(offset int64, format string, args ...any) error {
		return damage(manifestName, "", offset, format, args...)
	}
	if len(text) > maxManifest {
		return nil, bad(0, "%d bytes are more than %d", len(text), maxManifest)
	}
	var e envelope
	if err := decode(text, &e); err != nil {
		var old struct {
			Manifest *string           `json:"manifest"`
			Files    map[string]string `json:"files"`
		}
		if json.Unmarshal(text, &old) == nil && old.Manifest != nil && len(old.Files) > 0 {
			return nil, fault.New(fault.FailedPrecondition,
				"read checkpoint.json: it is of lamina 0.1, which this version does not read: start the run again")
		}
		return nil, bad(offsetOf(err), "%.200v", err)
	}
	sum := sha256.Sum256(e.Checkpoint)
	if !strings.EqualFold(hex.EncodeToString(sum[:]), e.SHA256) {
		return nil, bad(0, "its digest is %x, want %.64q", sum, e.SHA256)
	}
	m := &Manifest{}
	if err := decode(e.Checkpoint, m); err != nil {
		return nil, bad(offsetOf(err), "%.200v", err)
	}
	return m, m.check()
}

// decode reads exactly one JSON value without unknown fields.
func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

func offsetOf(err error) int64 {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return syntax.Offset
	case errors.As(err, &mismatch):
		return mismatch.Offset
	}
	return 0
}

// check checks that the manifest is consistent in itself.
func (m *Manifest) check() error {
	bad := func(file, tensor, format string, args ...any) error {
		return damage(manifestName, cmp.Or(tensor, file), 0, format, args...)
	}
	if !isDigest(m.Run) || !isDigest(m.Weights) {
		return bad("", "", "digests %.80q and %.80q are not SHA-256", m.Run, m.Weights)
	}
	if math.IsNaN(m.Loss) || m.Stages < 1 || m.Replicas < 1 || len(m.Files) == 0 {
		return bad("", "", "loss %v, %d stages, %d replicas, %d files", m.Loss, m.Stages, m.Replicas, len(m.Files))
	}
	seen := map[[2]string]bool{}
	for i, f := range m.Files {
		if !plain(f.Name) || i > 0 && m.Files[i-1].Name >= f.Name {
			return bad(f.Name, "", "%.80q is not the next file name", f.Name)
		}
		if f.Kind == "" || f.Bytes < 8 || !isDigest(f.SHA256) {
			return bad(f.Name, "", "kind %.80q, %d bytes, digest %.80q", f.Kind, f.Bytes, f.SHA256)
		}
		end := int64(8)
		for j := range f.Tensors {
			t := &f.Tensors[j]
			if seen[[2]string{f.Kind, t.Name}] || t.Name == "" {
				return bad(f.Name, t.Name, "%s %.80q occurs twice", f.Kind, t.Name)
			}
			seen[[2]string{f.Kind, t.Name}] = true
			if err := checkShape(t.Shape); err != nil || !isDigest(t.SHA256) {
				return bad(f.Name, t.Name, "shape %v, digest %.80q", t.Shape, t.SHA256)
			}
			if t.Offset < end || t.Offset > f.Bytes || t.Bytes() > f.Bytes-t.Offset {
				return bad(f.Name, t.Name, "%d bytes at %d do not fit behind %d in a file of %d", t.Bytes(), t.Offset,
					end, f.Bytes)
			}
			end = t.Offset + t.Bytes()
		}
		if end != f.Bytes && len(f.Tensors) > 0 {
			return bad(f.Name, "", "the tensors end at %d, the file at %d", end, f.Bytes)
		}
	}
	want, err := m.WeightsDigest()
	if err != nil || want != m.Weights {
		return bad("", "", "the digest of the weights is %s, want %s", m.Weights, want)
	}
	return nil
}

func checkShape(shape []int) error {
	n := 1
	if len(shape) > maxDims {
		return fault.Field("shape", "%d dimensions", len(shape))
	}
	for _, d := range shape {
		if d < 0 || d > 0 && n > math.MaxInt/16/d {
			return fault.Field("shape", "%v is out of range", shape)
		}
		n *= d
	}
	return nil
}

func isDigest(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == sha256.Size && s == strings.ToLower(s)
}

// plain reports whether a name is that of a file in a folder. Names that begin with a dot are those of
// temporary files.
func plain(name string) bool {
	return name != "" && len(name) <= 200 && name[0] != '.' && name == path.Base(name) && name != manifestName &&
		!strings.ContainsAny(name, "\\/:\x00")
}
