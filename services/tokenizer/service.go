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

// Model is what the service knows of a model.
type Model struct {
	Name   string // how people call it
	Digest string // "sha256:…" of its files
	Vocab  *vocab.Vocab
	// ChatTemplate stands instead of the model's own, unless empty.
	ChatTemplate string
	// Chat is what the model's files say of chats; the vocabulary's own template
	// stands in where it has none.
	Chat Chat
	// Defaults are the settings of requests that give none of their own; may be nil.
	Defaults *tokenizerv1.GenerationDefaults
}

// Config is what a Service needs.
type Config struct {
	// Models are held for good.
	Models []Model
	// Open loads a model that is not held, by the name or digest that a request gives;
	// (*Library).Open does. nil for none: then it is NotFound.
	Open func(ctx context.Context, ref string) (Model, error)
	// MaxModels and MaxBytes bound what is held: where it is more, loaded models go,
	// the one used longest ago first. Zero is 64 models and 4 GiB, as far as their
	// size can be told.
	MaxModels int
	MaxBytes  int64
	// Texts is the folder that TrainVocabulary reads files of; empty for none.
	Texts string
	// Workers share out batches and trainings; 0 means one a core.
	Workers int
	// Now is the clock that chat templates read. nil is time.Now.
	Now func() time.Time
	// Budget bounds chat templates; zero fields take the defaults.
	Budget template.Budget
}

// maxIDs bounds the ids of one reply, so that it fits a message of 4 MiB.
const maxIDs = 1 << 20

// Service implements lamina.tokenizer.v1.TokenizerService.
type Service struct {
	tokenizerv1.UnimplementedTokenizerServiceServer
	shelf
	now     func() time.Time
	budget  template.Budget
	texts   string
	workers int
}

// New makes a service that holds the configured models. It returns a
// fault.Error for a model without a name or vocabulary, or two of a name.
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

// Register offers the service on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { tokenizerv1.RegisterTokenizerServiceServer(r, s) }

// Add takes a model in for good. A model of the same name and digest is replaced; of
// the same name and another digest it is an AlreadyExists error. A chat template
// that does not parse is reported when a chat asks for it.
func (s *Service) Add(m Model) error {
	held, err := ready(m)
	if err != nil {
		return err
	}
	return s.add(held)
}

// Remove forgets a model by name; requests that run keep it.
func (s *Service) Remove(name string) { s.remove(name) }

// Describe lists the vocabularies held, or describes one.
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
		Model: m.Name, Digest: m.Digest, Kind: m.Vocab.Family(), Size: uint32(m.Vocab.Size()), AddsBos: m.Vocab.AddBOS(),
		Templates: slices.Sorted(maps.Keys(m.chats)), Bytes: uint64(m.bytes), Defaults: m.Defaults,
	}
	_, v.FillInMiddle = m.Vocab.FIM()
	if bos, ok := m.Vocab.BOS(); ok {
		id := uint32(bos)
		v.Bos = &id
	}
	for _, id := range m.Vocab.EOG() {
		v.EndIds = append(v.EndIds, uint32(id))
	}
	if c, err := m.chatOf("", false); err == nil && c.err == nil {
		v.ChatTemplate, v.Format = true, wireFormat(c.format)
	}
	return v
}
