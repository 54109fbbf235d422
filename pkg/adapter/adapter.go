package adapter

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// WeightsFile is the name of the file of an adapter's tensors.
const WeightsFile = "adapter_model.safetensors"

// prefix is what PEFT puts in front of the names of modules.
const prefix = "base_model.model."

// Part is one of the tensors of a module's adapter: the ending of the tensor's name.
type Part string

// The parts of an adapter.
const (
	A         Part = "lora_A.weight"         // [r,I]
	B         Part = "lora_B.weight"         // [N,r]
	Magnitude Part = "lora_magnitude_vector" // [N], with DoRA
	EmbedA    Part = "lora_embedding_A"      // [r,V]; as a parameter in training it is [V,r]
	EmbedB    Part = "lora_embedding_B"      // [C,r]
)

// Name returns the name of a part of a module's adapter.
func Name(module string, p Part) string { return module + "." + string(p) }

// Split splits the name of an adapter's tensor. ok is false for the name of another tensor.
func Split(name string) (module string, p Part, ok bool) {
	for _, p := range []Part{A, B, Magnitude, EmbedA, EmbedB} {
		if module, ok := strings.CutSuffix(name, "."+string(p)); ok && module != "" {
			return module, p, true
		}
	}
	return name, "", false
}

// Module is the adapter of one module.
type Module struct {
	Name    string
	Rank    int     // r
	Scale   float64 // factor of the product
	In, Out int     // I and N; of an embedding V and C
	Embeds  bool    // the module is a lookup: A has a column for each token

	A         []float32 // [r,In]
	B         []float32 // [Out,r]
	Magnitude []float32 // [Out] with DoRA, else nil
}

// Saved is a tensor that replaces one of the base model.
type Saved struct {
	Name  string // of the parameter, such as "lm_head.weight"
	Shape []int
	Data  []float32
}

// Adapter is an adapter in memory.
type Adapter struct {
	Config
	Modules []Module // by name
	Saved   []Saved  // by name

	// BaseDigest is the digest of the base model that it was trained on, "sha256:…"; empty if that is not known.
	BaseDigest string
}

// baseKey is the key of BaseDigest in the metadata of the file of tensors, which PEFT does not look at.
const baseKey = "lamina.base"

// CheckBase reports an adapter that was trained on another base than the model with a digest. Shapes do not tell:
// models of one architecture have the same. An adapter that does not say what its base is passes.
func (a *Adapter) CheckBase(model string) error {
	if a.BaseDigest == "" || a.BaseDigest == model {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "it was trained on the base %.19s…, and this model is %.19s…", a.BaseDigest,
		model)
}

var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// CheckName reports a name for an adapter that cannot stand behind a colon in a model's name.
func CheckName(name string) error {
	if !names.MatchString(name) {
		return fault.Field("name", "want 1 to 64 letters, digits and -_., got %.80q", name)
	}
	return nil
}

// Module returns the adapter of a module.
func (a *Adapter) Module(name string) (*Module, bool) {
	i, ok := slices.BinarySearchFunc(a.Modules, name, func(m Module, n string) int { return cmp.Compare(m.Name, n) })
	if !ok {
		return nil, false
	}
	return &a.Modules[i], true
}

// Replaced returns the values that replace a parameter of the base model.
func (a *Adapter) Replaced(param string) (*Saved, bool) {
	i, ok := slices.BinarySearchFunc(a.Saved, param, func(s Saved, n string) int { return cmp.Compare(s.Name, n) })
	if !ok {
		return nil, false
	}
	return &a.Saved[i], true
}

// Is reports whether a folder holds an adapter.
func Is(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, ConfigFile))
	return err == nil
}

// Open reads the adapter in a folder. It is read to memory, since adapters are small.
func Open(dir string) (a *Adapter, err error) {
	text, err := readConfig(filepath.Join(dir, ConfigFile))
	if inside := filepath.Join(dir, "adapter"); errors.Is(err, fs.ErrNotExist) && Is(inside) {
		return nil, fault.Wrap(fault.NotFound, err, "open adapter: %s is a run, and its adapter is %s", dir, inside)
	}
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("open adapter %s: %w", dir, err)
	}
	path := filepath.Join(dir, WeightsFile)
	f, err := weights.OpenSafetensors(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(filepath.Join(dir, "adapter_model.bin")); statErr == nil {
			return nil, fmt.Errorf("open adapter %s: %w", dir,
				&UnsupportedError{"adapter_model.bin", "format", "pickle", WeightsFile})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open adapter %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if a, err = Parse(c, f); err == nil {
		a.BaseDigest, err = parseBase(f.Metadata())
	}
	if err != nil {
		return nil, fmt.Errorf("open adapter %s: %w", dir, err)
	}
	return a, nil
}

// parseBase returns the digest of the base that a file's metadata has, or an empty string.
func parseBase(metadata map[string]string) (string, error) {
	text, ok := metadata[baseKey]
	if !ok {
		return "", nil
	}
	digest, ok := ParseSum(text)
	if !ok {
		return "", wrong(baseKey, "want sha256: and 64 hexadecimal digits, got %.80q", text)
	}
	return digest.String(), nil
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	return text, errors.Join(err, f.Close())
}

// Source has the tensors of an adapter's file.
type Source interface {
	// Names lists the tensors.
	Names() []string
	// Info returns the type and shape of a tensor; false if there is none of that name.
	Info(name string) (weights.Info, bool)
	// Data returns the elements of a tensor as the file has them.
	Data(name string) ([]byte, error)
}

// wrong reports a tensor that does not fit.
func wrong(name, format string, args ...any) error {
	return &FieldError{WeightsFile, name, fmt.Sprintf(format, args...)}
}

// Parse reads the tensors of an adapter.
func Parse(c *Config, src Source) (*Adapter, error) {
	out := &Adapter{Config: *c}
	modules := map[string]*Module{}
	shapes := map[string][]int{}
	from := map[string]string{} // the tensors of the file, by what they are
	for _, name := range src.Names() {
		info, _ := src.Info(name)
		module, part, saved, err := classify(c, name)
		if err != nil {
			return nil, err
		}
		if module == "" && saved == "" {
			continue
		}
		what := saved
		if saved == "" {
			what = Name(module, part)
		}
		if first, ok := from[what]; ok {
			return nil, wrong(name, "is the same as %s", first)
		}
		from[what] = name
		values, err := read(src, name, info)
		if err != nil {
			return nil, err
		}
		if saved != "" {
			out.Saved = append(out.Saved, Saved{Name: saved, Shape: info.Shape, Data: values})
			continue
		}
		m := modules[module]
		if m == nil {
			m = &Module{Name: module}
			modules[module] = m
		}
		switch part {
		case A, EmbedA:
			m.A, m.Embeds = values, part == EmbedA
		case B, EmbedB:
			m.B = values
		case Magnitude:
			m.Magnitude = values
		}
		shapes[Name(module, part)] = info.Shape
	}
	for _, m := range modules {
		if err := m.complete(c, shapes); err != nil {
			return nil, err
		}
		out.Modules = append(out.Modules, *m)
	}
	if len(out.Modules)+len(out.Saved) == 0 {
		return nil, wrong("tensors", "there are no tensors of an adapter")
	}
	slices.SortFunc(out.Modules, func(x, y Module) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(out.Saved, func(x, y Saved) int { return cmp.Compare(x.Name, y.Name) })
	return out, nil
}

// classify says what a tensor of the file is: a part of a module's adapter, or a parameter that is replaced. It
// returns nothing for a copy of a weight of the base model.
func classify(c *Config, name string) (module string, part Part, saved string, err error) {
	bare, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return "", "", "", wrong(name, "want a name that begins with %s", prefix)
	}
	bare = strings.Replace(bare, ".default.", ".", 1) // in state dictionaries that were saved directly
	bare = strings.TrimSuffix(bare, ".default")
	if bare == "" {
		return "", "", "", wrong(name, "want the name of a module")
	}
	if m, ok := strings.CutSuffix(bare, ".lora_magnitude_vector.weight"); ok {
		return m, Magnitude, "", nil
	}
	if m, p, ok := Split(bare); ok {
		return m, p, "", nil
	}
	if strings.Contains(bare, ".lora_") {
		return "", "", "", &UnsupportedError{WeightsFile, "tensor", name, "lora_A, lora_B, lora_magnitude_vector"}
	}
	if strings.Contains(bare, ".base_layer.") { // PEFT stores the base of a targeted embedding
		return "", "", "", nil
	}
	param := strings.Replace(bare, ".modules_to_save.", ".", 1)
	base := strings.TrimSuffix(strings.TrimSuffix(param, ".weight"), ".bias")
	if !c.Saves(base) {
		return "", "", "", wrong(name, "belongs neither to an adapter nor to modules_to_save")
	}
	return "", "", param, nil
}

// read decodes a tensor. Its values must be finite.
func read(src Source, name string, info weights.Info) ([]float32, error) {
	switch info.DType {
	case tensor.F64, tensor.F32, tensor.F16, tensor.BF16:
	default:
		return nil, &UnsupportedError{WeightsFile, "type of " + name, info.DType.String(), "F64, F32, F16, BF16"}
	}
	data, err := src.Data(name)
	if err != nil {
		return nil, err
	}
	out := make([]float32, info.Elements())
	tensor.Dequantize(out, data, info.DType)
	return out, finite(name, out)
}

// complete checks the parts of a module's adapter against each other and the config.
func (m *Module) complete(c *Config, shapes map[string][]int) error {
	partA, partB, otherA, otherB := A, B, EmbedA, EmbedB
	if m.Embeds {
		partA, partB, otherA, otherB = EmbedA, EmbedB, A, B
	}
	a, b := shapes[Name(m.Name, partA)], shapes[Name(m.Name, partB)]
	switch {
	case shapes[Name(m.Name, otherA)] != nil || shapes[Name(m.Name, otherB)] != nil:
		return wrong(prefix+m.Name, "has tensors of an embedding and of a matrix")
	case m.A == nil:
		return wrong(prefix+Name(m.Name, partA), "is missing")
	case m.B == nil || b == nil:
		return wrong(prefix+Name(m.Name, partB), "is missing")
	case len(a) != 2 || a[0] < 1 || a[1] < 1:
		return wrong(prefix+Name(m.Name, partA), "want a shape [r,I], got %v", a)
	case len(b) != 2 || b[0] < 1 || b[1] != a[0]:
		return wrong(prefix+Name(m.Name, partB), "want a shape [N,%d], got %v", a[0], b)
	}
	m.Rank, m.In, m.Out = a[0], a[1], b[0]
	rank, scale := c.For(m.Name)
	if rank != m.Rank {
		return wrong(prefix+Name(m.Name, partA), "want rank %d of %s, got %d", rank, ConfigFile, m.Rank)
	}
	m.Scale = scale
	if c.DoRA != (m.Magnitude != nil) {
		return wrong(prefix+Name(m.Name, Magnitude), "use_dora is %v", c.DoRA)
	}
	if m.Magnitude != nil && len(m.Magnitude) != m.Out {
		return wrong(prefix+Name(m.Name, Magnitude), "want %d values, got %d", m.Out, len(m.Magnitude))
	}
	if m.Magnitude != nil && m.Embeds {
		return &UnsupportedError{ConfigFile, "use_dora", "for an embedding", "for matrices"}
	}
	return nil
}

// Write writes an adapter to a folder, which it creates. The tensors are float32.
func Write(dir string, a *Adapter) error {
	if err := a.Check(); err != nil {
		return err
	}
	text, err := a.JSON()
	if err != nil {
		return err
	}
	var all []weights.Named
	add := func(name string, values []float32, shape ...int) {
		data := make([]byte, 4*len(values))
		tensor.PutF32LE(data, values)
		all = append(all, weights.Named{Name: prefix + name, DType: tensor.F32, Shape: shape, Data: data})
	}
	for _, m := range a.Modules {
		partA, partB := A, B
		if m.Embeds {
			partA, partB = EmbedA, EmbedB
		}
		add(Name(m.Name, partA), m.A, m.Rank, m.In)
		add(Name(m.Name, partB), m.B, m.Out, m.Rank)
		if m.Magnitude != nil {
			add(Name(m.Name, Magnitude), m.Magnitude, m.Out)
		}
	}
	for _, s := range a.Saved {
		add(s.Name, s.Data, s.Shape...)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	metadata := map[string]string{"format": "pt"}
	if a.BaseDigest != "" {
		metadata[baseKey] = a.BaseDigest
		if _, err := parseBase(metadata); err != nil {
			return err
		}
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, WeightsFile), all, metadata); err != nil {
		return err
	}
	return weights.WriteFile(filepath.Join(dir, ConfigFile), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}
