package openai

import (
	"context"
	"net/http"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Backend runs requests; its errors are faults. It calls send from one goroutine, stops when
// send fails or ctx ends, and returns nil only after a finished event.
type Backend interface {
	Generate(ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error
	Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error
	// Resume passes on the events of a resumable request, and Cancel ends one. They return NotFound for
	// a request that the tenant of ctx does not have.
	Resume(ctx context.Context, r *routerv1.ResumeRequest, send func(*routerv1.ResumeResponse) error) error
	Cancel(ctx context.Context, id string) error
	Embed(ctx context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error)
	Models(ctx context.Context) ([]*routerv1.Model, error)
}

// Options are the settings of the API.
type Options = httpapi.Options

type server struct {
	Options
	backend Backend
}

// New returns the handler of /v1/.
func New(b Backend, o Options) http.Handler {
	mux := httpapi.Mux(Routes(b, o))
	mux.Handle("/v1/", Unknown(o))
	return obs.RequestIDs(mux)
}

func newServer(b Backend, o Options) *server {
	return &server{o.WithDefaults(), b}
}

// Unknown answers requests for paths that no API has.
func Unknown(o Options) http.Handler {
	s := newServer(nil, o)
	return httpapi.Logged(o.Log, func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, httpapi.UnknownPath(r.URL.Path))
	})
}

// Fail returns a function that writes an error in the shape of the API, for APIs that share it.
func Fail(o Options) func(http.ResponseWriter, error) { return newServer(nil, o).fail }

// ErrorObject returns the error object of err.
func ErrorObject(err error) any {
	_, body := toAPIError(err)
	return body
}

// Routes returns the routes of the API.
func Routes(b Backend, o Options) httpapi.API {
	s := newServer(b, o)
	return httpapi.API{Name: "openai", Fail: s.fail, Log: s.Log, Routes: []httpapi.Route{
		{Method: http.MethodGet, Path: "/v1/models", Handle: s.models,
			Summary: "List the models that are served."},
		{Method: http.MethodGet, Path: "/v1/models/{id...}", Handle: s.model,
			Summary: "Describe a model."},
		{Method: http.MethodPost, Path: "/v1/completions", Handle: s.completions,
			Summary: "Continue a prompt.", Body: completionRequest{}, Stream: httpapi.EventStream},
		{Method: http.MethodPost, Path: "/v1/chat/completions", Handle: s.chat,
			Summary: "Answer a chat.", Body: chatRequest{}, Stream: httpapi.EventStream},
		{Method: http.MethodPost, Path: "/v1/embeddings", Handle: s.embeddings,
			Summary: "Compute the embeddings of texts.", Body: embeddingRequest{}},
		{Method: http.MethodGet, Path: "/v1/requests/{id}/stream", Handle: s.resume,
			Summary: "Read a resumable request again.", Stream: httpapi.EventStream},
		{Method: http.MethodDelete, Path: "/v1/requests/{id}", Handle: s.cancel,
			Summary: "End a resumable request."},
	}}
}

// modelObject is a model as OpenAI lists it; the fields after OwnedBy are extensions.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
	Digest  string `json:"digest"`
	Context uint32 `json:"context_length"`
	Chat    bool   `json:"chat"`
	// MaxLen bounds prompt and answer together: the context length, or the capacity of the KV cache
	// if that is less. The JSON name is vLLM's.
	MaxLen uint32 `json:"max_model_len"`
	// Parent is the model that an adapter is for; its name is part of ID. Root names what the adapter computes. Both
	// names are vLLM's.
	Parent   string          `json:"parent,omitempty"`
	Root     string          `json:"root,omitempty"`
	EndIDs   []uint32        `json:"eos_token_ids"`
	Defaults defaultSampling `json:"default_sampling_params"`
}

// defaultSampling holds the sampling parameters in the model's files, which apply to fields
// that a request leaves out. Parameters that the files do not name are omitted.
type defaultSampling struct {
	Temperature       *float32 `json:"temperature,omitempty"`
	TopK              *uint32  `json:"top_k,omitempty"`
	TopP              *float32 `json:"top_p,omitempty"`
	MinP              *float32 `json:"min_p,omitempty"`
	TypicalP          *float32 `json:"typical_p,omitempty"`
	RepetitionPenalty *float32 `json:"repetition_penalty,omitempty"`
	EpsilonCutoff     *float32 `json:"epsilon_cutoff,omitempty"`
	EtaCutoff         *float32 `json:"eta_cutoff,omitempty"`
	NoRepeatNGram     *uint32  `json:"no_repeat_ngram_size,omitempty"`
	MaxTokens         *uint32  `json:"max_tokens,omitempty"`
	MinTokens         *uint32  `json:"min_tokens,omitempty"`
}

func toModel(m *routerv1.Model) modelObject {
	out := modelObject{
		ID: m.GetName(), Object: "model", OwnedBy: "lamina", Digest: m.GetDigest(), Context: m.GetContext(),
		Chat:   m.GetChat(),
		MaxLen: m.GetMaxContext(), EndIDs: append([]uint32{}, m.GetEndIds()...),
	}
	if d := m.GetDefaults(); d != nil {
		out.Defaults = defaultSampling{
			Temperature: d.Temperature, TopK: d.TopK, TopP: d.TopP, MinP: d.MinP, TypicalP: d.TypicalP,
			RepetitionPenalty: d.RepetitionPenalty, EpsilonCutoff: d.EpsilonCutoff, EtaCutoff: d.EtaCutoff,
			NoRepeatNGram: d.NoRepeatNgram, MaxTokens: d.MaxTokens, MinTokens: d.MinTokens,
		}
	}
	return out
}

// listed returns the models with the adapters of each behind it.
func (s *server) listed(ctx context.Context) ([]modelObject, error) {
	models, err := s.backend.Models(ctx)
	if err != nil {
		return nil, err
	}
	list := []modelObject{}
	for _, m := range httpapi.List(ctx, models) {
		one := toModel(m.Model)
		if one.ID = m.ID; m.Adapter != nil {
			one.Parent, one.Root = m.GetName(), m.Adapter.GetDigest()
			one.Created = m.Adapter.GetLoadedMs() / 1000
		}
		list = append(list, one)
	}
	return list, nil
}

func (s *server) models(w http.ResponseWriter, r *http.Request) {
	list, err := s.listed(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}

func (s *server) model(w http.ResponseWriter, r *http.Request) {
	list, err := s.listed(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	id := r.PathValue("id")
	for i := range list {
		if list[i].ID == id || list[i].Digest == id && list[i].Parent == "" {
			s.json(w, http.StatusOK, list[i])
			return
		}
	}
	s.fail(w, fault.New(fault.NotFound, "find model %q: no pipeline serves it", id))
}
