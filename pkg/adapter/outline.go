package adapter

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Outline describes an adapter without its values: what a stage checks before it takes the values of its own
// modules, and what the adapter's digest covers.
type Outline struct {
	Modules []ModuleOutline // by name, ascending
	Saved   []SavedOutline  // by name, ascending
}

// SavedOutline describes a tensor that replaces one of the base model.
type SavedOutline struct {
	Name  string
	Shape []int
	Sum   Sum
}

// ModuleOutline describes the adapter of one module.
type ModuleOutline struct {
	Name    string
	Rank    int
	Scale   float64
	In, Out int
	Embeds  bool

	A, B      Sum
	Magnitude *Sum // with DoRA, else nil
}

// Sum is the SHA-256 of a tensor's values as little-endian float32 numbers.
type Sum [sha256.Size]byte

// SumOf returns the sum of values.
func SumOf(values []float32) Sum {
	h := sha256.New()
	var piece [4096]byte
	for len(values) > 0 {
		n := min(len(values), len(piece)/4)
		tensor.PutF32LE(piece[:4*n], values[:n])
		_, _ = h.Write(piece[:4*n]) // never fails
		values = values[n:]
	}
	return Sum(h.Sum(nil))
}

// Limits of an adapter that is served beside others.
const (
	MaxModules    = 1 << 14
	MaxServedRank = 512
	maxSide       = 1 << 24 // inputs or outputs of a module
	maxModuleName = 256
)

// Outline returns the outline of an adapter whose modules are complete.
func (a *Adapter) Outline() *Outline {
	out := &Outline{}
	for i := range a.Modules {
		m := &a.Modules[i]
		o := ModuleOutline{Name: m.Name, Rank: m.Rank, Scale: m.Scale, In: m.In, Out: m.Out, Embeds: m.Embeds,
			A: SumOf(m.A), B: SumOf(m.B)}
		if m.Magnitude != nil {
			sum := SumOf(m.Magnitude)
			o.Magnitude = &sum
		}
		out.Modules = append(out.Modules, o)
	}
	for i := range a.Saved {
		v := &a.Saved[i]
		out.Saved = append(out.Saved, SavedOutline{Name: v.Name, Shape: v.Shape, Sum: SumOf(v.Data)})
	}
	return out
}

// Digest names what the adapter computes: for every module its rank, its scale and the values of its tensors. The
// element type in the file, and settings that matter in training alone, are not part of it.
func (o *Outline) Digest() Sum {
	h := sha256.New()
	var n [8]byte
	number := func(v uint64) {
		binary.LittleEndian.PutUint64(n[:], v)
		_, _ = h.Write(n[:])
	}
	text := func(s string) {
		number(uint64(len(s)))
		_, _ = h.Write([]byte(s))
	}
	_, _ = h.Write([]byte("lamina adapter 1\n"))
	number(uint64(len(o.Modules)))
	for i := range o.Modules {
		m := &o.Modules[i]
		text(m.Name)
		kind := uint64(0)
		if m.Embeds {
			kind |= 1
		}
		if m.Magnitude != nil {
			kind |= 2
		}
		for _, v := range []uint64{uint64(m.Rank), math.Float64bits(m.Scale), uint64(m.In), uint64(m.Out), kind} {
			number(v)
		}
		_, _ = h.Write(m.A[:])
		_, _ = h.Write(m.B[:])
		if m.Magnitude != nil {
			_, _ = h.Write(m.Magnitude[:])
		}
	}
	number(uint64(len(o.Saved)))
	for i := range o.Saved {
		v := &o.Saved[i]
		text(v.Name)
		number(uint64(len(v.Shape)))
		for _, d := range v.Shape {
			number(uint64(d))
		}
		_, _ = h.Write(v.Sum[:])
	}
	return Sum(h.Sum(nil))
}

// String returns the sum as digests are written: "sha256:" and 64 hexadecimal digits.
func (s Sum) String() string { return "sha256:" + hex.EncodeToString(s[:]) }

// ParseSum reads what String writes.
func ParseSum(text string) (s Sum, ok bool) {
	digits, ok := strings.CutPrefix(text, "sha256:")
	if !ok || len(digits) != 2*len(s) {
		return s, false
	}
	_, err := hex.Decode(s[:], []byte(digits))
	return s, err == nil
}

// Check reports the first module that cannot be served, whatever the model is.
func (o *Outline) Check() error {
	if n := len(o.Modules) + len(o.Saved); n < 1 || n > MaxModules {
		return wrong("modules", "want 1..%d, got %d", MaxModules, n)
	}
	for i := range o.Modules {
		m := &o.Modules[i]
		switch {
		case m.Name == "" || len(m.Name) > maxModuleName:
			return wrong("modules", "module %d has a name of %d bytes", i, len(m.Name))
		case i > 0 && m.Name <= o.Modules[i-1].Name:
			return wrong(m.Name, "comes after %s", o.Modules[i-1].Name)
		case m.In < 1 || m.In > maxSide || m.Out < 1 || m.Out > maxSide:
			return wrong(m.Name, "want 1..%d inputs and outputs, got %d and %d", maxSide, m.In, m.Out)
		case m.Rank < 1 || m.Rank > MaxServedRank:
			return wrong(m.Name, "want a rank of 1..%d to be served, got %d", MaxServedRank, m.Rank)
		case !(m.Scale > 0 && m.Scale <= 1e6):
			return wrong(m.Name, "want a positive scale, got %v", m.Scale)
		case m.Embeds && m.Magnitude != nil:
			return &UnsupportedError{WeightsFile, "tensor", Name(m.Name, Magnitude), "magnitudes of matrices"}
		}
	}
	return o.checkSaved()
}

// checkSaved reports the first tensor of modules_to_save that cannot be served.
func (o *Outline) checkSaved() error {
	for i := range o.Saved {
		v := &o.Saved[i]
		switch {
		case v.Name == "" || len(v.Name) > maxModuleName:
			return wrong("modules_to_save", "tensor %d has a name of %d bytes", i, len(v.Name))
		case i > 0 && v.Name <= o.Saved[i-1].Name:
			return wrong(v.Name, "comes after %s", o.Saved[i-1].Name)
		case len(v.Shape) < 1 || len(v.Shape) > 2 ||
			slices.ContainsFunc(v.Shape, func(d int) bool { return d < 1 || d > maxSide }):
			return wrong(v.Name, "want one or two dimensions of 1..%d, got %v", maxSide, v.Shape)
		}
		if _, ok := o.Module(strings.TrimSuffix(v.Name, ".weight")); ok {
			return wrong(v.Name, "is replaced, and has a low-rank adapter")
		}
	}
	return nil
}

// Bytes returns the memory that the values of a tensor take as float32 numbers.
func (v *SavedOutline) Bytes() int64 {
	n := int64(4)
	for _, d := range v.Shape {
		n *= int64(d)
	}
	return n
}

// Fill returns a tensor with values, which must be those of the outline.
func (v *SavedOutline) Fill(values []float32) (Saved, error) {
	out := Saved{Name: v.Name, Shape: v.Shape, Data: values}
	if int64(4*len(values)) != v.Bytes() {
		return out, wrong(v.Name, "want shape %v, got %d values", v.Shape, len(values))
	}
	if SumOf(values) != v.Sum {
		return out, wrong(v.Name, "the values are not those of its digest")
	}
	return out, finite(v.Name, values)
}

// finite reports the first value that is no number.
func finite(name string, values []float32) error {
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return wrong(name, "element %d is %v", i, v)
		}
	}
	return nil
}

// Bytes returns the memory that the values of a module take as float32 numbers.
func (m *ModuleOutline) Bytes() int64 {
	n := int64(m.Rank) * (int64(m.In) + int64(m.Out))
	if m.Magnitude != nil {
		n += int64(m.Out)
	}
	return 4 * n
}

// Shapes returns the outline as an adapter without values, for checks against a model.
func (o *Outline) Shapes() *Adapter {
	out := &Adapter{}
	for i := range o.Modules {
		m := &o.Modules[i]
		out.Modules = append(out.Modules, Module{Name: m.Name, Rank: m.Rank, Scale: m.Scale, In: m.In, Out: m.Out,
			Embeds: m.Embeds})
		out.DoRA = out.DoRA || m.Magnitude != nil
	}
	for i := range o.Saved {
		out.Saved = append(out.Saved, Saved{Name: o.Saved[i].Name, Shape: o.Saved[i].Shape})
	}
	return out
}

// CheckServed reports why an adapter cannot be served beside others on one base.
func (a *Adapter) CheckServed() error {
	for i := range a.Modules {
		m := &a.Modules[i]
		if m.Rank > MaxServedRank {
			return wrong(Name(m.Name, A), "want a rank of at most %d to be served, got %d", MaxServedRank, m.Rank)
		}
		if a.DoRA != (m.Magnitude != nil) {
			return wrong(Name(m.Name, Magnitude), "use_dora is %v", a.DoRA)
		}
	}
	return nil
}

// Module returns the outline of a module.
func (o *Outline) Module(name string) (*ModuleOutline, bool) {
	i, ok := slices.BinarySearchFunc(o.Modules, name,
		func(m ModuleOutline, n string) int { return cmp.Compare(m.Name, n) })
	if !ok {
		return nil, false
	}
	return &o.Modules[i], true
}

// Fill returns the adapter of a module with values, which must be those of the outline.
func (m *ModuleOutline) Fill(a, b, magnitude []float32) (Module, error) {
	out := Module{Name: m.Name, Rank: m.Rank, Scale: m.Scale, In: m.In, Out: m.Out, Embeds: m.Embeds, A: a, B: b,
		Magnitude: magnitude}
	parts := []struct {
		part   Part
		values []float32
		want   int
		sum    *Sum
	}{{A, a, m.Rank * m.In, &m.A}, {B, b, m.Out * m.Rank, &m.B}, {Magnitude, magnitude, m.Out, m.Magnitude}}
	for _, p := range parts {
		name := Name(m.Name, p.part)
		switch {
		case p.sum == nil && p.values == nil:
			continue
		case p.sum == nil || len(p.values) != p.want:
			return out, wrong(name, "want %d values, got %d", p.want, len(p.values))
		case SumOf(p.values) != *p.sum:
			return out, wrong(name, "the values are not those of its digest")
		}
		if err := finite(name, p.values); err != nil {
			return out, err
		}
	}
	return out, nil
}

// Digest returns the digest of the adapter in a folder, as Outline.Digest does.
func Digest(dir string) (string, error) {
	a, err := Open(dir)
	if err != nil {
		return "", err
	}
	return a.Outline().Digest().String(), nil
}
