package tokenizer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
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
}

// Config is what a Service needs.
type Config struct {
	Models []Model
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
	now    func() time.Time
	budget template.Budget

	mu     sync.RWMutex
	models []*model // sorted by name
}

// model is a Model with its template parsed.
type model struct {
	Model
	chat    *template.Template // nil where there is none
	chatErr error              // why it did not parse
}

// New makes a service that holds the configured models. It returns a
// fault.Error for a model without a name or vocabulary, or two of a name.
func New(c Config) (*Service, error) {
	s := &Service{now: c.Now, budget: c.Budget}
	if s.now == nil {
		s.now = time.Now
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

// Add takes a model in. A model of the same name and digest is replaced; of the
// same name and another digest it is an AlreadyExists error. A chat template
// that does not parse is reported when a chat asks for it.
func (s *Service) Add(m Model) error {
	if m.Name == "" || m.Vocab == nil {
		return fault.New(fault.Invalid, "add model %q: it needs a name and a vocabulary", m.Name)
	}
	held := &model{Model: m}
	if held.ChatTemplate == "" {
		held.ChatTemplate = m.Vocab.ChatTemplate()
	}
	if held.ChatTemplate != "" {
		held.chat, held.chatErr = template.Parse(held.ChatTemplate)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.position(m.Name)
	if !found {
		s.models = slices.Insert(s.models, i, held)
		return nil
	}
	if s.models[i].Digest != m.Digest {
		return fault.New(fault.AlreadyExists, "add model %q: it is held with digest %s", m.Name, s.models[i].Digest)
	}
	s.models[i] = held
	return nil
}

// Remove forgets a model by name; requests that run keep it.
func (s *Service) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, found := s.position(name); found {
		s.models = slices.Delete(s.models, i, i+1)
	}
}

func (s *Service) position(name string) (int, bool) {
	return slices.BinarySearchFunc(s.models, name, func(m *model, name string) int { return cmp.Compare(m.Name, name) })
}

// find returns the model that a request names by digest or name.
func (s *Service) find(name string) (*model, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if name == "" {
		if len(s.models) == 1 {
			return s.models[0], nil
		}
		return nil, fault.New(fault.NotFound, "find model: %d are held and the request names none", len(s.models))
	}
	if i, found := s.position(name); found {
		return s.models[i], nil
	}
	for _, m := range s.models {
		if m.Digest == name {
			return m, nil
		}
	}
	return nil, fault.New(fault.NotFound, "find model %q: it is not held here", name)
}

// Encode turns text into ids.
func (s *Service) Encode(_ context.Context, r *tokenizerv1.EncodeRequest) (*tokenizerv1.EncodeResponse, error) {
	m, err := s.find(r.GetModel())
	if err != nil {
		return nil, err
	}
	ids, err := m.encode("text", r.GetText(), vocab.Options{Special: r.GetSpecial(), BOS: !r.GetNoBos()})
	if err != nil {
		return nil, err
	}
	return &tokenizerv1.EncodeResponse{Ids: ids}, nil
}

// encode encodes a request's text into ids for the wire.
func (m *model) encode(field, text string, o vocab.Options) ([]uint32, error) {
	ids, err := m.Vocab.Encode(text, o)
	if err != nil {
		return nil, &fault.Error{Code: fault.Invalid, Field: field, Msg: fmt.Sprintf("encode for model %q", m.Name), Err: err}
	}
	if len(ids) > maxIDs {
		return nil, fault.Field(field, "becomes %d tokens, more than %d fit one reply", len(ids), maxIDs)
	}
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out, nil
}

// Decode turns ids into text.
func (s *Service) Decode(_ context.Context, r *tokenizerv1.DecodeRequest) (*tokenizerv1.DecodeResponse, error) {
	m, err := s.find(r.GetModel())
	if err != nil {
		return nil, err
	}
	ids, err := m.ids("ids", r.GetIds())
	if err != nil {
		return nil, err
	}
	text, err := m.Vocab.Decode(ids, vocab.DecodeOptions{SkipSpecial: r.GetSkipSpecial()})
	if err != nil {
		return nil, &fault.Error{Code: fault.Invalid, Field: "ids", Msg: fmt.Sprintf("decode for model %q", m.Name), Err: err}
	}
	return &tokenizerv1.DecodeResponse{Text: text}, nil
}

// ids checks ids from the wire.
func (m *model) ids(field string, wire []uint32) ([]int32, error) {
	ids := make([]int32, len(wire))
	for i, id := range wire {
		if id > math.MaxInt32 || int(id) >= m.Vocab.Size() {
			return nil, fault.Field(fmt.Sprintf("%s[%d]", field, i), "id %d is outside the vocabulary of %d", id, m.Vocab.Size())
		}
		ids[i] = int32(id)
	}
	return ids, nil
}

// DecodeStream turns a growing sequence of ids into growing text.
func (s *Service) DecodeStream(stream grpc.BidiStreamingServer[tokenizerv1.DecodeStreamRequest, tokenizerv1.DecodeStreamResponse]) error {
	frame, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return fault.Field("frame", "the conversation ended before open")
	}
	if err != nil {
		return err
	}
	open := frame.GetOpen()
	if open == nil {
		return fault.Field("frame", "expected open first, got %T", frame.GetFrame())
	}
	m, err := s.find(open.GetModel())
	if err != nil {
		return err
	}
	prefix, err := m.ids("open.prefix", open.GetPrefix())
	if err != nil {
		return err
	}
	d := m.Vocab.NewDecoder(vocab.DecodeOptions{SkipSpecial: open.GetSkipSpecial(), Prefix: prefix})
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var reply *tokenizerv1.DecodeStreamResponse
		switch f := frame.GetFrame().(type) {
		case *tokenizerv1.DecodeStreamRequest_Push:
			if reply, err = m.push(d, f.Push.GetIds()); err != nil {
				return err
			}
		case *tokenizerv1.DecodeStreamRequest_Flush:
			return stream.Send(&tokenizerv1.DecodeStreamResponse{Text: d.Flush()})
		default:
			return fault.Field("frame", "expected push or flush, got %T", f)
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

func (m *model) push(d *vocab.Decoder, wire []uint32) (*tokenizerv1.DecodeStreamResponse, error) {
	if len(wire) == 0 {
		return nil, fault.Field("push.ids", "a push needs one id or more")
	}
	ids, err := m.ids("push.ids", wire)
	if err != nil {
		return nil, err
	}
	reply := &tokenizerv1.DecodeStreamResponse{Pieces: make([]string, len(ids))}
	for i, id := range ids {
		piece, err := d.Push(id)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "decode for model %q", m.Name)
		}
		reply.Pieces[i] = piece
	}
	reply.Text = strings.Join(reply.Pieces, "")
	return reply, nil
}

// Describe lists the vocabularies held.
func (s *Service) Describe(context.Context, *tokenizerv1.DescribeRequest) (*tokenizerv1.DescribeResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := &tokenizerv1.DescribeResponse{}
	for _, m := range s.models {
		v := &tokenizerv1.Vocabulary{
			Model: m.Name, Digest: m.Digest, Kind: m.Vocab.Family(), Size: uint32(m.Vocab.Size()),
			ChatTemplate: m.chat != nil, AddsBos: m.Vocab.AddBOS(),
		}
		if bos, ok := m.Vocab.BOS(); ok {
			id := uint32(bos)
			v.Bos = &id
		}
		for _, id := range m.Vocab.EOG() {
			v.EndIds = append(v.EndIds, uint32(id))
		}
		out.Vocabularies = append(out.Vocabularies, v)
	}
	return out, nil
}
