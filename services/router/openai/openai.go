// Package openai is the router's OpenAI-style HTTP face: /v1/models,
// /v1/completions and /v1/chat/completions, streamed and not, with the shapes that
// stock OpenAI clients expect. It translates; the backend decides and checks.
//
// A streamed answer ends with a finish reason and [DONE], or with an error event
// and neither: a cut answer never looks whole.
package openai

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// Backend runs requests; errors are faults. send is called from one goroutine.
type Backend interface {
	Generate(ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error
	Chat(ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error
	Models(ctx context.Context) ([]*routerv1.Model, error)
}

// Options is what the face is given from outside.
type Options struct {
	Log *slog.Logger // nil logs nothing
}

const (
	maxBody      = 4 << 20
	maxChoices   = 8
	writeTimeout = 30 * time.Second // for a stalled reader to take an event
)

type server struct {
	backend Backend
	log     *slog.Logger
}

// New returns the handler of /v1/.
func New(b Backend, o Options) http.Handler {
	s := &server{backend: b, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", s.models)
	mux.HandleFunc("GET /v1/models/{id...}", s.model)
	mux.HandleFunc("POST /v1/completions", s.completions)
	mux.HandleFunc("POST /v1/chat/completions", s.chat)
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, fault.New(fault.NotFound, "no such path: %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// apiError is OpenAI's error object.
type apiError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

func toAPIError(err error) (int, apiError) {
	code := fault.CodeOf(err)
	out := apiError{Message: err.Error(), Type: "server_error"}
	status := rpc.HTTPStatus(code)
	if status < 500 {
		out.Type = "invalid_request_error"
	}
	text := strings.ReplaceAll(code.String(), " ", "_")
	if code == fault.NotFound {
		text = "model_not_found"
	}
	out.Code = &text
	var f *fault.Error
	if errors.As(err, &f) && f.Field != "" {
		param := strings.TrimPrefix(f.Field, "sampling.")
		out.Param = &param
	}
	return status, out
}

func (s *server) fail(w http.ResponseWriter, err error) {
	status, body := toAPIError(err)
	var f *fault.Error
	if errors.As(err, &f) && f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
	}
	s.json(w, status, map[string]any{"error": body})
}

func (s *server) json(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("write answer", "error", err)
	}
}

// modelObject is a model as OpenAI lists it; the fields after OwnedBy are Lamina's.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
	Digest  string `json:"digest"`
	Context uint32 `json:"context_length"`
	Chat    bool   `json:"chat"`
}

func toModel(m *routerv1.Model) modelObject {
	return modelObject{ID: m.GetName(), Object: "model", OwnedBy: "lamina", Digest: m.GetDigest(), Context: m.GetContext(), Chat: m.GetChat()}
}

func (s *server) models(w http.ResponseWriter, r *http.Request) {
	models, err := s.backend.Models(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	list := []modelObject{}
	for _, m := range models {
		list = append(list, toModel(m))
	}
	s.json(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}

func (s *server) model(w http.ResponseWriter, r *http.Request) {
	models, err := s.backend.Models(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	for _, m := range models {
		if id := r.PathValue("id"); m.GetName() == id || m.GetDigest() == id {
			s.json(w, http.StatusOK, toModel(m))
			return
		}
	}
	s.fail(w, fault.New(fault.NotFound, "find model %q: nobody knows it", r.PathValue("id")))
}

// decode reads a body of at most maxBody bytes; an error names the place.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	err := d.Decode(v)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fault.Field("body", "byte %d: %v", syntax.Offset, err)
	case errors.As(err, &kind):
		return fault.Field(strings.TrimPrefix(kind.Field, "common."), "byte %d: want %v, got %s", kind.Offset, kind.Type, kind.Value)
	case errors.As(err, &large):
		return fault.Field("body", "more than %d bytes", large.Limit)
	}
	return fault.Field("body", "%v", err)
}

// texts is a string or a list of strings.
type texts []string

// UnmarshalJSON takes either.
func (t *texts) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(t))
}

// common are the fields that both endpoints share.
type common struct {
	Model             string             `json:"model"`
	MaxTokens         *int64             `json:"max_tokens"`
	Temperature       *float32           `json:"temperature"`
	TopP              *float32           `json:"top_p"`
	TopK              *int64             `json:"top_k"`
	MinP              float32            `json:"min_p"`
	Seed              *int64             `json:"seed"`
	N                 *int               `json:"n"`
	Stop              texts              `json:"stop"`
	Stream            bool               `json:"stream"`
	StreamOptions     *streamOptions     `json:"stream_options"`
	PresencePenalty   float32            `json:"presence_penalty"`
	FrequencyPenalty  float32            `json:"frequency_penalty"`
	RepetitionPenalty *float32           `json:"repetition_penalty"`
	LogitBias         map[string]float32 `json:"logit_bias"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// choices is n.
func (c *common) choices() (int, error) {
	if c.N == nil {
		return 1, nil
	}
	if *c.N < 1 || *c.N > maxChoices {
		return 0, fault.Field("n", "%d is not within 1..%d", *c.N, maxChoices)
	}
	return *c.N, nil
}

// tokens is max_tokens for the backend, where 0 means what fits.
func tokens(v *int64) (uint32, error) {
	if v == nil {
		return 0, nil
	}
	if *v < 1 || *v > 1<<24 {
		return 0, fault.Field("max_tokens", "%d is not within 1..%d", *v, 1<<24)
	}
	return uint32(*v), nil
}

// sampling is the rules of choice i.
func (c *common) sampling(i int) (*routerv1.Sampling, error) {
	out := &routerv1.Sampling{
		Temperature: c.Temperature, TopP: c.TopP, MinP: c.MinP, RepetitionPenalty: c.RepetitionPenalty,
		PresencePenalty: c.PresencePenalty, FrequencyPenalty: c.FrequencyPenalty,
	}
	if c.TopK != nil && *c.TopK > 0 { // -1 is a common spelling of "all"
		if *c.TopK > 1<<24 {
			return nil, fault.Field("top_k", "%d is more than %d", *c.TopK, 1<<24)
		}
		out.TopK = uint32(*c.TopK)
	}
	if c.Seed != nil {
		seed := uint64(*c.Seed) + uint64(i)
		out.Seed = &seed
	}
	for key, bias := range c.LogitBias {
		id, err := strconv.ParseUint(key, 10, 31)
		if err != nil {
			return nil, fault.Field("logit_bias", "%q is not a token id", key)
		}
		if out.LogitBias == nil {
			out.LogitBias = map[uint32]float32{}
		}
		out.LogitBias[uint32(id)] = bias
	}
	return out, nil
}

func (c *common) usageWanted() bool { return c.StreamOptions != nil && c.StreamOptions.IncludeUsage }

// usage is OpenAI's usage object.
type usage struct {
	Prompt     uint32 `json:"prompt_tokens"`
	Completion uint32 `json:"completion_tokens"`
	Total      uint32 `json:"total_tokens"`
}

func (u *usage) add(f *routerv1.Usage) {
	u.Prompt = f.GetPromptTokens()
	u.Completion += f.GetCompletionTokens()
	u.Total = u.Prompt + u.Completion
}

func newID(prefix, request string) string { return fmt.Sprintf("%s-%s", prefix, request) }
