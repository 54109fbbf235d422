// Package kserve is the router's API in the form of KServe's Open Inference Protocol, version 2, over HTTP and gRPC:
// health, metadata and infer, with text in and out.
//
// A model has the input text_input, of datatype BYTES and shape [n], and the output text_output of the same shape.
// Each element is a prompt, which is continued without a chat template. The parameters of a request are max_tokens,
// temperature, top_k, top_p, min_p, seed, stop (a string), frequency_penalty and presence_penalty; others are
// refused by name. A seed is that of every prompt of the request. Prompts are generated one after the other; n is at
// most 16. Over HTTP, tensors may be in the binary form of Triton's extension, which its clients use by default. Over
// gRPC, ModelStreamInfer sends the text of one prompt as it comes.
//
// An error over HTTP is {"error": text}. A model's version is its digest; paths with a version are not supported.
package kserve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	inputName  = "text_input"
	outputName = "text_output"
	datatype   = "BYTES"
	maxPrompts = 16
)

// Backend runs generations and lists models. Its errors are faults.
type Backend interface {
	Generate(ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error
	Models(ctx context.Context) ([]*routerv1.Model, error)
	Ready() error
}

// Options are the settings of the API.
type Options = httpapi.Options

type server struct {
	Options
	backend Backend
}

// Routes returns the routes of the API.
func Routes(b Backend, o Options) httpapi.API {
	s := &server{o.WithDefaults(), b}
	return httpapi.API{Name: "kserve", Fail: s.fail, Log: s.Log, Routes: []httpapi.Route{
		{Method: http.MethodGet, Path: "/v2", Handle: s.metadata, Summary: "Describe the server."},
		{Method: http.MethodGet, Path: "/v2/health/live", Handle: s.live, Summary: "Tell whether the server runs."},
		{
			Method:  http.MethodGet,
			Path:    "/v2/health/ready",
			Handle:  s.ready,
			Summary: "Tell whether requests can be served.",
		},
		{Method: http.MethodGet, Path: "/v2/models/{model}", Handle: s.model, Summary: "Describe a model."},
		{Method: http.MethodGet, Path: "/v2/models/{model}/ready", Handle: s.modelReady,
			Summary: "Tell whether a model is served."},
		{Method: http.MethodPost, Path: "/v2/models/{model}/infer", Handle: s.infer, Summary: "Continue prompts.",
			Body: inferRequest{}},
	}}
}

func (s *server) fail(w http.ResponseWriter, err error) {
	p := httpapi.Explain(err)
	p.SetRetryAfter(w)
	if p.Field != "" {
		p.Message = strings.Replace(p.Message, p.Field, apiField(p.Field), 1)
	}
	s.json(w, p.Status, map[string]string{"error": p.Message})
}

// apiField returns this API's name of a field of the backend.
func apiField(field string) string {
	if rest, ok := strings.CutPrefix(field, "sampling."); ok {
		return "parameters." + rest
	}
	switch field {
	case "prompt":
		return "inputs[0].data"
	case "stop[0]":
		return "parameters.stop"
	case "max_tokens", "stop":
		return "parameters." + field
	}
	return field
}

func (s *server) json(w http.ResponseWriter, status int, v any) {
	s.Reply(w, status, v, s.fail)
}

func (s *server) metadata(w http.ResponseWriter, _ *http.Request) {
	s.json(w, http.StatusOK, map[string]any{"name": "lamina", "version": "2",
		"extensions": []string{"binary_tensor_data"}})
}

func (s *server) live(w http.ResponseWriter, _ *http.Request) {
	s.json(w, http.StatusOK, map[string]bool{"live": true})
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.backend.Ready(); err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, http.StatusOK, map[string]bool{"ready": true})
}

// find returns the model with a name. The version is empty or its digest.
func find(ctx context.Context, b Backend, name, version string) (*routerv1.Model, error) {
	models, err := b.Models(ctx)
	if err != nil {
		return nil, err
	}
	m := httpapi.FindModel(models, name)
	if m != nil && !m.GetEncoder() && (version == "" || version == m.GetDigest()) {
		return m, nil
	}
	return nil, fault.New(fault.NotFound, "find model %q: no pipeline serves it", name)
}

// find returns the model that a path names.
func (s *server) find(r *http.Request) (*routerv1.Model, error) {
	return find(r.Context(), s.backend, r.PathValue("model"), "")
}

func (s *server) model(w http.ResponseWriter, r *http.Request) {
	m, err := s.find(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	tensor := func(name string) []any {
		return []any{map[string]any{"name": name, "datatype": datatype, "shape": []int{-1}}}
	}
	s.json(
		w,
		http.StatusOK,
		map[string]any{"name": r.PathValue("model"), "versions": []string{m.GetDigest()}, "platform": "lamina",
			"inputs": tensor(inputName), "outputs": tensor(outputName)},
	)
}

func (s *server) modelReady(w http.ResponseWriter, r *http.Request) {
	if _, err := s.find(r); err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, http.StatusOK, map[string]any{"name": r.PathValue("model"), "ready": true})
}

type inferRequest struct {
	ID         string                     `json:"id"`
	Parameters map[string]json.RawMessage `json:"parameters"`
	Inputs     []tensor                   `json:"inputs"`
	Outputs    []output                   `json:"outputs"`
}

// output is an output that is wanted.
type output struct {
	Name       string `json:"name"`
	Parameters struct {
		Binary *bool `json:"binary_data"`
	} `json:"parameters"`
}

type tensor struct {
	Name       string           `json:"name"`
	Datatype   string           `json:"datatype"`
	Shape      []int            `json:"shape"`
	Parameters tensorParameters `json:"parameters,omitzero"`
	Data       []string         `json:"data,omitempty"`
}

// tensorParameters say that the elements of a tensor follow the JSON in binary form.
type tensorParameters struct {
	Size int `json:"binary_data_size,omitempty"` // in bytes
}

// parameters are those of a generation.
type parameters struct {
	MaxTokens        *int64   `json:"max_tokens"`
	Temperature      *float32 `json:"temperature"`
	TopK             *uint32  `json:"top_k"`
	TopP             *float32 `json:"top_p"`
	MinP             *float32 `json:"min_p"`
	Seed             *int64   `json:"seed"`
	Stop             string   `json:"stop"`
	PresencePenalty  float32  `json:"presence_penalty"`
	FrequencyPenalty float32  `json:"frequency_penalty"`
}

// base returns the request of each prompt, without the prompt.
func (c *inferRequest) base(model string) (*routerv1.GenerateRequest, error) {
	var known struct{ parameters }
	for name := range c.Parameters {
		switch name {
		case "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty",
			"frequency_penalty":
		case binaryOutput, "triton_enable_empty_final_response":
		default:
			return nil, fault.Field("parameters."+name, "is not supported")
		}
	}
	text, err := json.Marshal(c.Parameters)
	if err != nil {
		return nil, fault.Field("parameters", "%v", err)
	}
	if err := httpapi.Unmarshal(text, &known, "parameters"); err != nil {
		p := httpapi.Explain(err)
		return nil, fault.Field("parameters."+p.Field, "%s", strings.TrimPrefix(p.Message, p.Field+": "))
	}
	p := known.parameters
	out := &routerv1.GenerateRequest{Model: model, Sampling: &routerv1.Sampling{
		Temperature: p.Temperature, TopK: p.TopK, TopP: p.TopP, MinP: p.MinP, PresencePenalty: p.PresencePenalty,
		FrequencyPenalty: p.FrequencyPenalty,
	}}
	if p.MaxTokens != nil {
		if *p.MaxTokens < 1 || *p.MaxTokens > httpapi.MaxInteger {
			return nil, fault.Field("parameters.max_tokens", "%d is not within 1..%d", *p.MaxTokens, httpapi.MaxInteger)
		}
		out.MaxTokens = uint32(*p.MaxTokens)
	}
	if p.Seed != nil {
		seed := uint64(*p.Seed)
		out.Sampling.Seed = &seed
	}
	if p.Stop != "" {
		out.Stop = []string{p.Stop}
	}
	return out, nil
}

// prompts returns the elements of the only input.
func (c *inferRequest) prompts() ([]string, error) {
	if len(c.Inputs) != 1 || c.Inputs[0].Name != inputName {
		return nil, fault.Field("inputs", "want one, named %s", inputName)
	}
	in := c.Inputs[0]
	n := 1
	for _, d := range in.Shape {
		if d < 0 || d > maxPrompts {
			return nil, fault.Field("inputs[0].shape", "%v has more than %d elements", in.Shape, maxPrompts)
		}
		n *= d
	}
	switch {
	case in.Datatype != datatype:
		return nil, fault.Field("inputs[0].datatype", "%q is not supported, only BYTES is", in.Datatype)
	case len(in.Data) == 0 || len(in.Data) > maxPrompts:
		return nil, fault.Field("inputs[0].data", "%d elements are not within 1..%d", len(in.Data), maxPrompts)
	case n != len(in.Data):
		return nil, fault.Field("inputs[0].shape", "%v does not fit %d elements", in.Shape, len(in.Data))
	}
	for i, text := range in.Data {
		if !utf8.ValidString(text) {
			return nil, fault.Field("inputs[0].data", "element %d is not UTF-8", i)
		}
	}
	for _, o := range c.Outputs {
		if o.Name != outputName {
			return nil, fault.Field("outputs", "there is no %q: want %s", o.Name, outputName)
		}
	}
	return in.Data, nil
}

// binaryOutput is the parameter that asks for all outputs in binary form.
const binaryOutput = "binary_data_output"

// headerLength is the header with the number of bytes of JSON before binary tensors.
const headerLength = "Inference-Header-Content-Length"

// decode reads a request and the binary tensors behind it.
func (s *server) decode(w http.ResponseWriter, r *http.Request) (*inferRequest, error) {
	c := &inferRequest{}
	body, err := httpapi.ReadBody(w, r)
	if err != nil {
		return nil, err
	}
	var rest []byte
	if text := r.Header.Get(headerLength); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > len(body) {
			return nil, fault.Field(headerLength, "%q is not within 0..%d", text, len(body))
		}
		body, rest = body[:n], body[n:]
	}
	if err := httpapi.Unmarshal(body, c); err != nil {
		return nil, err
	}
	for i := range c.Inputs {
		in := &c.Inputs[i]
		if in.Parameters.Size == 0 {
			continue
		}
		if in.Parameters.Size < 0 || in.Parameters.Size > len(rest) {
			return nil, fault.Field(fmt.Sprintf("inputs[%d].parameters.binary_data_size", i),
				"%d is not within 0..%d", in.Parameters.Size, len(rest))
		}
		if in.Data, err = unpackTexts(fmt.Sprintf("inputs[%d].data", i), rest[:in.Parameters.Size]); err != nil {
			return nil, err
		}
		rest = rest[in.Parameters.Size:]
	}
	return c, nil
}

// binary reports whether the output is wanted in binary form.
func (c *inferRequest) binary() bool {
	for _, o := range c.Outputs {
		if o.Parameters.Binary != nil {
			return *o.Parameters.Binary
		}
	}
	return string(c.Parameters[binaryOutput]) == "true"
}

// generateAll continues prompts one after the other. loading gets reports while the model is being loaded, and piece,
// if not nil, the text of each token.
func generateAll(
	ctx context.Context, b Backend, base *routerv1.GenerateRequest, prompts []string,
	loading func(*routerv1.ModelLoading) error, piece func(started *routerv1.Started, text string) error,
) (texts []string, started *routerv1.Started, err error) {
	for _, prompt := range prompts {
		base.Prompt = &routerv1.GenerateRequest_Text{Text: prompt}
		var text strings.Builder
		finished := false
		err := b.Generate(ctx, base, func(e *routerv1.GenerateResponse) error {
			if l := e.GetLoading(); l != nil {
				return loading(l)
			}
			if s := e.GetStarted(); s != nil {
				started = s
			}
			text.WriteString(e.GetToken().GetText())
			text.WriteString(e.GetFinished().GetText())
			finished = finished || e.GetFinished() != nil
			if piece == nil || e.GetToken() == nil {
				return nil
			}
			return piece(started, e.GetToken().GetText())
		})
		if err == nil && !finished {
			err = fault.New(fault.Internal, "run generation: it ended without a finish reason")
		}
		if err != nil {
			return nil, nil, err
		}
		texts = append(texts, text.String())
	}
	return texts, started, nil
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) {
	c, err := s.decode(w, r)
	var prompts []string
	if err == nil {
		prompts, err = c.prompts()
	}
	var base *routerv1.GenerateRequest
	if err == nil {
		base, err = c.base(r.PathValue("model"))
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	texts, started, err := generateAll(r.Context(), s.backend, base, prompts, (&httpapi.SilentWait{}).Loading, nil)
	if err != nil {
		s.fail(w, err)
		return
	}
	out := tensor{Name: outputName, Datatype: datatype, Shape: c.Inputs[0].Shape, Data: texts}
	answer := map[string]any{"model_name": started.GetModel(), "outputs": []*tensor{&out}}
	if c.ID != "" {
		answer["id"] = c.ID
	}
	if !c.binary() {
		s.json(w, http.StatusOK, answer)
		return
	}
	packed := packTexts(texts)
	out.Data, out.Parameters.Size = nil, len(packed)
	text, err := json.Marshal(answer)
	if err != nil {
		s.fail(w, fault.Wrap(fault.Internal, err, "write answer as JSON"))
		return
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.WriteTimeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		s.fail(w, fault.Wrap(fault.Canceled, err, "limit write"))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(headerLength, strconv.Itoa(len(text)))
	if _, err := w.Write(append(text, packed...)); err != nil {
		s.Log.Debug("write answer", "error", err)
	}
}
