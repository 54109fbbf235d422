package ollama

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

type generateRequest struct {
	common
	Prompt   string            `json:"prompt"`
	Suffix   string            `json:"suffix"`
	System   string            `json:"system"`
	Raw      bool              `json:"raw"`
	Template string            `json:"template"`
	Images   []json.RawMessage `json:"images"`
	Context  []json.RawMessage `json:"context"`
}

// check refuses what is not supported.
func (c *generateRequest) check() error {
	switch {
	case len(c.Images) > 0:
		return fault.Field("images", "are not supported")
	case c.Template != "":
		return fault.Field("template", "is not supported: the model's own is used")
	case len(c.Context) > 0:
		return fault.Field("context", "is not supported: send the earlier turns to /api/chat")
	case c.Raw && c.System != "":
		return fault.Field("system", "cannot be combined with raw")
	case c.Suffix != "" && c.System != "":
		return fault.Field("system", "cannot be combined with suffix")
	}
	return nil
}

// plain returns the request of a prompt without a chat template.
func (c *generateRequest) plain() (*routerv1.GenerateRequest, error) {
	out := &routerv1.GenerateRequest{
		Model: modelName(c.Model), Prompt: &routerv1.GenerateRequest_Text{Text: c.Prompt},
	}
	if c.Suffix != "" {
		out.Suffix = &c.Suffix
	}
	var err error
	out.Sampling, out.Stop, out.MaxTokens, err = c.sampling()
	out.TopLogprobs = c.top()
	return out, err
}

// chat returns the request of a prompt under the chat template.
func (c *generateRequest) chat() (out *routerv1.ChatRequest, shown bool, err error) {
	out = &routerv1.ChatRequest{Model: modelName(c.Model), KeepMarkers: true}
	if out.Sampling, out.Stop, out.MaxTokens, err = c.sampling(); err != nil {
		return nil, false, err
	}
	out.TopLogprobs = c.top()
	if c.System != "" {
		out.Messages = append(out.Messages, &tokenizerv1.Message{Role: "system", Content: c.System})
	}
	out.Messages = append(out.Messages, &tokenizerv1.Message{Role: "user", Content: c.Prompt})
	out.VariablesJson, shown, err = c.thinking()
	return out, shown, err
}

func (s *server) generate(w http.ResponseWriter, r *http.Request) {
	var c generateRequest
	err := httpapi.Decode(w, r, &c, "common")
	if err == nil {
		err = c.check()
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	m, err := s.find(r.Context(), c.Model)
	if err != nil {
		s.fail(w, err)
		return
	}
	empty := ""
	if c.Prompt == "" && c.Suffix == "" && c.System == "" { // asks for the model to be loaded
		s.json(w, http.StatusOK, line{Model: m.GetName(), CreatedAt: time.Now().UTC(), Done: true, Reason: "load",
			Response: &empty})
		return
	}
	out := s.newWriter(w, &c.common)
	var finished *routerv1.Finished
	if c.Raw || c.Suffix != "" || !m.GetChat() {
		finished, err = s.continued(r, &c, out)
	} else {
		finished, err = s.answered(r, &c, out)
	}
	if err != nil {
		out.fail(r, err)
		return
	}
	l := line{Response: &empty}
	if !out.streamed {
		text := out.text.String()
		l.Response, l.Thinking = &text, out.thoughts.String()
	}
	l.finish(finished)
	out.end(r, l)
}

// continued runs a prompt without a chat template.
func (s *server) continued(r *http.Request, c *generateRequest, out *writer) (*routerv1.Finished, error) {
	if c.System != "" {
		return nil, fault.Field("system", "requires a model with a chat template")
	}
	req, err := c.plain()
	if err != nil {
		return nil, err
	}
	var finished *routerv1.Finished
	err = s.backend.Generate(r.Context(), req, func(e *routerv1.GenerateResponse) error {
		switch {
		case e.GetLoading() != nil:
			return out.generating(e.GetLoading())
		case e.GetStarted() != nil:
			out.model = e.GetStarted().GetModel()
		case e.GetToken() != nil:
			out.token(e.GetToken())
			return out.generated(e.GetToken().GetText(), "")
		case e.GetFinished() != nil:
			finished = e.GetFinished()
			return out.generated(finished.GetText(), "")
		}
		return nil
	})
	if err == nil && finished == nil {
		err = fault.New(fault.Internal, "run generation: it ended without a finish reason")
	}
	return finished, err
}

// answered runs a prompt under the chat template.
func (s *server) answered(r *http.Request, c *generateRequest, out *writer) (*routerv1.Finished, error) {
	req, shown, err := c.chat()
	if err != nil {
		return nil, err
	}
	parsing := httpapi.Parsing{Reasoning: true, Token: out.token, Loading: out.generating}
	end, err := httpapi.Run(r.Context(), s.backend, req, parsing,
		func(st *routerv1.Started) error {
			out.model = st.GetModel()
			return nil
		}, func(d toolcall.Delta) error {
			if !shown {
				d.Reasoning = ""
			}
			return out.generated(d.Content, d.Reasoning)
		})
	if err != nil {
		return nil, err
	}
	return end.Finished, nil
}
