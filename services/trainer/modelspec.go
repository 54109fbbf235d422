package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Model says what is trained, in one of three forms: the sizes of a llama or a GPT-2, a Hugging Face
// config, or the files of a model.
type Model struct {
	Architecture string  `json:"architecture,omitempty"` // "llama" or "gpt2"
	Layers       int     `json:"layers,omitempty"`
	Width        int     `json:"width,omitempty"`
	Heads        int     `json:"heads,omitempty"`
	KVHeads      int     `json:"kv_heads,omitempty"` // llama only; heads when absent
	FF           int     `json:"ff,omitempty"`       // 4·width when absent
	Context      int     `json:"context,omitempty"`  // sequence_len when absent
	Tied         bool    `json:"tied,omitempty"`     // llama only; gpt2 is always tied
	RopeBase     float64 `json:"rope_base,omitempty"`

	// Config is a config.json of any architecture, as an object or as the path of the file. The weights
	// are random. Without vocab_size the vocabulary has as many tokens as the manifest's; a larger
	// vocab_size pads it. initializer_range is the deviation of the weights. Dropout is not read from it.
	Config json.RawMessage `json:"config,omitempty"`

	// From is the path of a model, a Hugging Face folder or a GGUF file, whose weights the run starts
	// from. The path is opened by the trainer and by every shard that trains.
	From string `json:"from,omitempty"`

	// Storage is "f32" (default) or "bf16". With "bf16" the passes use the matrices of the layers rounded to
	// bfloat16. The optimizer steps float32 masters, which are also in checkpoints and in the trained model.
	Storage string `json:"storage,omitempty"`
}

// The values of Model.Storage.
const (
	storageF32  = "f32"
	storageBF16 = "bf16"
)

// Vocabulary says how the text becomes ids.
type Vocabulary struct {
	// Type is "char" or "bpe", made from the text; "model", read from files; or "tokens", the default with
	// data.tokens: that of the token data.
	Type string `json:"type"`
	Size int    `json:"size"` // number of tokens of a bpe vocabulary
	// Path is where a "model" vocabulary is read from: a folder with tokenizer.json. When absent, it is
	// model.from, or the folder of model.config.
	Path string `json:"path,omitempty"`
}

// vocabModel is the type of a vocabulary that is read from files.
const vocabModel = "model"

// short reports whether the model is given by its sizes.
func (d *Model) short() bool { return d.Config == nil && d.From == "" }

// configPath returns the path of the config, or "" if it is an object.
func (d *Model) configPath() string {
	var path string
	if json.Unmarshal(d.Config, &path) != nil {
		return ""
	}
	return path
}

// checkModel checks the form of the model and the vocabulary that goes with it. It reads no file.
func (m *Manifest) checkModel() error {
	d, v := &m.Model, &m.Vocabulary
	sizes := *d
	sizes.Config, sizes.From, sizes.Storage = nil, "", ""
	inline := bytes.HasPrefix(bytes.TrimSpace(d.Config), []byte("{"))
	switch {
	case d.Storage != "" && d.Storage != storageF32 && d.Storage != storageBF16:
		return fault.Field("model.storage", "%q is neither %s nor %s", d.Storage, storageF32, storageBF16)
	case d.Config != nil && d.From != "":
		return fault.Field("model.from", "excludes model.config")
	case !d.short() && !sizes.equal(&Model{}):
		return fault.Field("model", "its sizes exclude model.config and model.from")
	case d.Config != nil && !inline && d.configPath() == "":
		return fault.Field("model.config", "want an object or a path")
	case d.From != "" && v.Type != vocabModel:
		return fault.Field(
			"vocabulary.type",
			"%q: a model that starts from files keeps its vocabulary: want %q",
			v.Type,
			vocabModel,
		)
	case v.Type == vocabModel && v.Path == "" && d.From == "" && d.configPath() == "":
		return fault.Field("vocabulary.path", "want the path of a vocabulary")
	case v.Type != vocabModel && v.Path != "":
		return fault.Field("vocabulary.path", "only a vocabulary of type %q has a path", vocabModel)
	}
	if d.From != "" || d.configPath() != "" { // StartRun reads the files
		return nil
	}
	spec, err := m.spec(d.Config, anyVocab)
	if err != nil {
		return err
	}
	return m.checkSpec(&spec, nil)
}

// anyVocab is the size of a vocabulary that is not known yet.
const anyVocab = 257

func (d *Model) equal(o *Model) bool {
	a, errA := json.Marshal(d)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// spec describes the model for a vocabulary of the given size. config is the text of a config.json, or
// nil for the short form.
func (m *Manifest) spec(config []byte, size int) (model.Spec, error) {
	if config == nil {
		return m.shortSpec(size)
	}
	var settings map[string]json.RawMessage
	if json.Unmarshal(config, &settings) == nil && settings != nil && settings["vocab_size"] == nil &&
		settings["text_config"] == nil {
		settings["vocab_size"], _ = json.Marshal(size) // an int
		config, _ = json.Marshal(settings)             // raw JSON
	}
	s, err := model.ParseHF(config)
	if err != nil {
		return s, fault.Wrap(fault.Invalid, err, "model.config")
	}
	return s, nil
}

// shortSpec describes the model of the short form.
func (m *Manifest) shortSpec(vocab int) (model.Spec, error) {
	d := model.Shape{
		Layers: m.Model.Layers, Width: m.Model.Width, Heads: m.Model.Heads, KVHeads: m.Model.KVHeads, FF: m.Model.FF,
		Vocab:   vocab,
		Context: m.Model.Context, TiedHead: m.Model.Tied, Rope: model.Rope{Base: m.Model.RopeBase},
	}
	var s model.Spec
	switch m.Model.Architecture {
	case "llama":
		s = model.NewLlama(d)
	case "gpt2":
		s = model.NewGPT2(d)
	default:
		return s, fault.Field("model.architecture", "%q is neither llama nor gpt2; model.config takes any",
			m.Model.Architecture)
	}
	if err := s.Validate(); err != nil {
		return s, fault.Wrap(fault.Invalid, err, "model")
	}
	if d.Width%d.Heads != 0 {
		return s, fault.Field("model.heads", "want a divisor of width %d, got %d", d.Width, d.Heads)
	}
	return s, nil
}

// checkSpec checks the settings that depend on the model.
func (m *Manifest) checkSpec(s *model.Spec, low *lowRank) error {
	// The answers to a prompt do not see each other, so that only each of them is within the context.
	if m.SequenceLen > s.Context && m.Objective != objectiveGRPO {
		return fault.Field(
			"sequence_len",
			"%d is longer than the context of %d (model.context)",
			m.SequenceLen,
			s.Context,
		)
	}
	if _, err := model.ConfigJSON(*s); err != nil { // what stages read, and the trained model's config.json
		return fault.Wrap(fault.Invalid, err, "model")
	}
	return m.checkParameters(s, low)
}

// PathRule returns the path to open for a path that a manifest has in a field, or an error that names
// the field.
type PathRule func(field, path string) (string, error)

// blueprint is what a manifest says of the model and the vocabulary, with the files read that it names.
type blueprint struct {
	manifest *Manifest
	config   []byte // config.json; nil for the short form and for a model from files
	from     string // where the initial weights are; "" for random ones
	fixed    model.Spec
	vocab    *vocab.Vocab // nil if it is made from the text
	files    string       // folder of the vocabulary's files
	lowRank  *lowRank     // the adapter that is trained; nil for all parameters

	reward *reward.Reward // of answers; nil unless the objective has rewards
}

// blueprint reads the files that the manifest's model and vocabulary name, but no weights.
func (m *Manifest) blueprint(allowed PathRule) (*blueprint, error) {
	b := &blueprint{manifest: m, config: m.Model.Config}
	if path := m.Model.configPath(); path != "" {
		at, err := allowed("model.config", path)
		if err == nil {
			b.config, err = os.ReadFile(at)
		}
		if err != nil {
			return nil, pathFault(err, "model.config")
		}
		b.files = filepath.Dir(at)
	}
	if err := b.open(allowed); err != nil {
		return nil, err
	}
	if path := m.Vocabulary.Path; path != "" {
		at, err := allowed("vocabulary.path", path)
		if err != nil {
			return nil, pathFault(err, "vocabulary.path")
		}
		b.files = at
	}
	size := anyVocab
	if m.Vocabulary.Type == vocabModel {
		var err error
		if b.vocab, err = readVocab(b.files, b.lowRank != nil); err != nil {
			return nil, pathFault(err, "vocabulary")
		}
		size = b.vocab.Size()
	}
	s, err := b.spec(size, b.vocab != nil)
	if err != nil {
		return nil, err
	}
	return b, m.checkSpec(&s, b.lowRank)
}

// open reads the spec of the model that the run starts from.
func (b *blueprint) open(allowed PathRule) error {
	if b.manifest.Model.From == "" {
		return nil
	}
	at, err := allowed(fromField, b.manifest.Model.From)
	if err != nil {
		return pathFault(err, "model.from")
	}
	files, err := model.Open(at)
	if err != nil {
		return pathFault(err, "model.from")
	}
	if b.fixed, err = files.Dense(); err == nil {
		err = b.openAdapter(allowed, files)
	}
	if err := errors.Join(err, files.Close()); err != nil {
		return pathFault(err, "model.from")
	}
	if b.from, err = filepath.Abs(at); err != nil { // shards may have another working directory
		return err
	}
	b.files = at
	return nil
}

// spec describes the model for a vocabulary of the given size. known says whether that is the size of the
// run's vocabulary.
func (b *blueprint) spec(size int, known bool) (model.Spec, error) {
	s := b.fixed
	if b.from == "" {
		var err error
		if s, err = b.manifest.spec(b.config, size); err != nil {
			return s, err
		}
	}
	if known && size > s.Vocab {
		return s, fault.Field("vocabulary", "its %d tokens are more than the model's %d", size, s.Vocab)
	}
	return s, nil
}

// initial names the initial weights for the stages; nil for random ones. It reads them for their digest.
func (b *blueprint) initial() (*shardv1.InitialWeights, error) {
	if b.from == "" {
		return nil, nil
	}
	digest, err := weights.Digest(b.from)
	if err != nil {
		return nil, pathFault(err, "model.from")
	}
	return &shardv1.InitialWeights{Path: b.from, Digest: digest}, nil
}

// pathFault names the field of a file that cannot be read.
func pathFault(err error, field string) error {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Field != "" { // it is named already
		return err
	}
	switch code := fault.CodeOf(err); {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "%s", field)
	case code == fault.Unimplemented || code == fault.PermissionDenied || code == fault.NotFound:
		return fault.Wrap(code, err, "%s", field)
	}
	return fault.Wrap(fault.Invalid, err, "%s", field)
}

// readVocab reads the vocabulary of a Hugging Face folder, of the folder of a file, or of a GGUF file. The
// trained model's folder gets its files, so a GGUF file needs a tokenizer.json beside it, unless only an adapter
// is written.
func readVocab(path string, adapterOnly bool) (*vocab.Vocab, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if stat.IsDir() {
		return vocab.FromHF(path)
	}
	if !adapterOnly {
		return vocab.FromHF(filepath.Dir(path))
	}
	file, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	v, err := vocab.FromGGUF(file.Meta())
	return v, errors.Join(err, file.Close())
}
