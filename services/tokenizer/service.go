package tokenizer

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"time"

	"google.golang.org/grpc"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Model is what the service knows about a model.
type Model struct {
	Name   string // the name that requests use
	Digest string // "sha256:…" of its files
	Vocab  *vocab.Vocab
	// ChatTemplate replaces the model's own template, unless it is empty.
	ChatTemplate string
	// Chat holds the chat templates of the model's files. If it has none, the vocabulary's own
	// template is used.
	Chat Chat
	// Defaults are used for settings that a request leaves out. They may be nil.
	Defaults *tokenizerv1.GenerationDefaults
}

// Config holds the settings of a Service.
type Config struct {
	// Models stay loaded.
	Models []Model
	// Open loads a model by the name or digest in a request, if the model is not loaded yet.
	// (*Library).Open is an implementation. If Open is nil, the request gets NotFound.
	Open func(ctx context.Context, ref string) (Model, error)
	// MaxModels and MaxBytes bound the model cache. Beyond either bound, models loaded on demand
	// are evicted, the least recently used first. The defaults are 64 models and 4 GiB. Sizes are
	// estimates.
	MaxModels int
	MaxBytes  int64
	// Texts is the folder of TrainVocabulary's files; empty allows none.
	Texts string
	// Workers is the number of goroutines for batches and training; 0 means one per core.
	Workers int
	// Now is the clock that chat templates read. nil is time.Now.
	Now func() time.Time
	// Budget bounds chat templates; zero fields take the defaults.
	Budget template.Budget
}

// maxIDs is the maximum number of ids in one reply, so that it fits into a message of 4 MiB.
const maxIDs = 1 << 20

// Service implements lamina.tokenizer.v1.TokenizerService.
type Service struct {
	tokenizerv1.UnimplementedTokenizerServiceServer
	modelCache
	now     func() time.Time
	budget  template.Budget
	texts   string
	workers int
}

// New returns a service with the configured models. It returns a fault.Error for a model without a
// name or vocabulary, or two models with one name.
func New(c Config) (*Service, error) {
	s := &Service{now: c.Now, budget: c.Budget, texts: c.Texts, workers: c.Workers}
	s.open, s.models, s.bytes = c.Open, c.MaxModels, c.MaxBytes
	if s.now == nil {
		s.now = time.Now
	}
	if s.workers <= 0 {
		s.workers = runtime.GOMAXPROCS(0)
	}
	if s.models <= 0 {
		s.models = defaultModels
	}
	if s.bytes <= 0 {
		s.bytes = defaultBytes
	}
	for _, m := range c.Models {
		if err := s.Add(m); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Register registers the service on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { tokenizerv1.RegisterTokenizerServiceServer(r, s) }

// Add adds a model and pins it in the cache. It replaces a model with the same name and digest. A
// model with the same name and another digest is an AlreadyExists error. A chat template that does
// not parse is reported when a chat uses it.
func (s *Service) Add(m Model) error {
	held, err := prepare(m)
	if err != nil {
		return err
	}
	return s.add(held)
}

// Remove removes a model by name; running requests keep it.
func (s *Service) Remove(name string) { s.remove(name) }

// Describe lists the loaded vocabularies, or describes one.
func (s *Service) Describe(ctx context.Context, r *tokenizerv1.DescribeRequest) (*tokenizerv1.DescribeResponse, error) {
	models := s.all()
	if ref := r.GetModel(); ref != "" {
		m, err := s.find(ctx, ref)
		if err != nil {
			return nil, err
		}
		models = []*model{m}
	}
	out := &tokenizerv1.DescribeResponse{}
	for _, m := range models {
		out.Vocabularies = append(out.Vocabularies, m.describe())
	}
	return out, nil
}

func (m *model) describe() *tokenizerv1.Vocabulary {
	v := &tokenizerv1.Vocabulary{
		Model: m.Name, Digest: m.Digest, Kind: m.Vocab.Family(), Size: uint32(m.Vocab.Size()),
		AddsBos:   m.Vocab.AddBOS(),
		Templates: slices.Sorted(maps.Keys(m.chats)), Bytes: uint64(m.bytes), Defaults: m.Defaults,
	}
	_, v.FillInMiddle = m.Vocab.FIM()
	if bos, ok := m.Vocab.BOS(); ok {
		id := uint32(bos)
		v.Bos = &id
	}
	if eos, ok := m.Vocab.EOS(); ok {
		id := uint32(eos)
		v.End = &id
	}
	for _, id := range m.Vocab.EOG() {
		v.EndIds = append(v.EndIds, uint32(id))
	}
	if c, err := m.chatOf("", false); err == nil && c.err == nil {
		v.ChatTemplate, v.Format = true, wireFormat(c.format)
	}
	return v
}
