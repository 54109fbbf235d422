// Package kserve is the router's API in the form of KServe's Open Inference Protocol, version 2, over HTTP: health,
// metadata and infer, with text in and out.
//
// A model has the input text_input, of datatype BYTES and shape [n], and the output text_output of the same shape.
// Each element is a prompt, which is continued without a chat template. The parameters of a request are max_tokens,
// temperature, top_k, top_p, min_p, seed, stop (a string), frequency_penalty and presence_penalty; others are
// refused by name. A seed is that of every prompt of the request. Prompts are generated one after the other; n is at
// most 16. Binary tensors and requests for some of the outputs are not supported.
//
// An error is {"error": text}. The model version is not used.
package kserve

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	inputName  = "text_input"
	outputName = "text_output"
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
	s.json(w, http.StatusOK, map[string]any{"name": "lamina", "version": "2", "extensions": []string{}})
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

// find returns the model that a path names.
func (s *server) find(r *http.Request) (*routerv1.Model, error) {
	models, err := s.backend.Models(r.Context())
	if err != nil {
		return nil, err
	}
	name := r.PathValue("model")
	if m := httpapi.FindModel(models, name); m != nil && !m.GetEncoder() {
		return m, nil
	}
	return nil, fault.New(fault.NotFound, "find model %q: no pipeline serves it", name)
}

func (s *server) model(w http.ResponseWriter, r *http.Request) {
	m, err := s.find(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	tensor := func(name string) []any {
		return []any{map[string]any{"name": name, "datatype": "BYTES", "shape": []int{-1}}}
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
	Outputs    []struct {
		Name string `json:"name"`
	} `json:"outputs"`
}

type tensor struct {
	Name     string   `json:"name"`
	Datatype string   `json:"datatype"`
	Shape    []int    `json:"shape"`
	Data     []string `json:"data"`
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
	case in.Datatype != "BYTES":
		return nil, fault.Field("inputs[0].datatype", "%q is not supported, only BYTES is", in.Datatype)
	case len(in.Data) == 0 || len(in.Data) > maxPrompts:
		return nil, fault.Field("inputs[0].data", "%d elements are not within 1..%d", len(in.Data), maxPrompts)
	case n != len(in.Data):
		return nil, fault.Field("inputs[0].shape", "%v does not fit %d elements", in.Shape, len(in.Data))
	}
	for _, o := range c.Outputs {
		if o.Name != outputName {
			return nil, fault.Field("outputs", "there is no %q: want %s", o.Name, outputName)
		}
	}
	return in.Data, nil
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) {
	var c inferRequest
	err := httpapi.Decode(w, r, &c)
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
	out := tensor{Name: outputName, Datatype: "BYTES", Shape: c.Inputs[0].Shape}
	model := ""
	for _, prompt := range prompts {
		base.Prompt = &routerv1.GenerateRequest_Text{Text: prompt}
		var text strings.Builder
		finished := false
		err := s.backend.Generate(r.Context(), base, func(e *routerv1.GenerateResponse) error {
			if started := e.GetStarted(); started != nil {
				model = started.GetModel()
			}
			text.WriteString(e.GetToken().GetText())
			text.WriteString(e.GetFinished().GetText())
			finished = finished || e.GetFinished() != nil
			return nil
		})
		if err == nil && !finished {
			err = fault.New(fault.Internal, "run generation: it ended without a finish reason")
		}
		if err != nil {
			s.fail(w, err)
			return
		}
		out.Data = append(out.Data, text.String())
	}
	answer := map[string]any{"model_name": model, "outputs": []tensor{out}}
	if c.ID != "" {
		answer["id"] = c.ID
	}
	s.json(w, http.StatusOK, answer)
}
