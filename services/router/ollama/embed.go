package ollama

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// embedRequest is the body of /api/embed, and with prompt that of the older /api/embeddings.
type embedRequest struct {
	Model      string          `json:"model"`
	Input      json.RawMessage `json:"input"`
	Prompt     string          `json:"prompt"`
	Truncate   *bool           `json:"truncate"` // the default is true
	Dimensions *int64          `json:"dimensions"`
}

// request returns the request for the backend.
func (c *embedRequest) request(texts []string) *routerv1.EmbedRequest {
	out := &routerv1.EmbedRequest{Model: modelName(c.Model), Truncate: c.Truncate == nil || *c.Truncate}
	for _, text := range texts {
		out.Inputs = append(out.Inputs, &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: text}})
	}
	return out
}

// texts reads the input: a string or a list of strings.
func (c *embedRequest) texts() ([]string, error) {
	var one string
	var list []string
	switch {
	case c.Dimensions != nil && *c.Dimensions != 0:
		return nil, fault.Field("dimensions", "is not supported: embeddings are as long as the model is wide")
	case !httpapi.Given(c.Input):
		return nil, fault.Field("input", "is missing")
	case json.Unmarshal(c.Input, &one) == nil:
		return []string{one}, nil
	case json.Unmarshal(c.Input, &list) != nil:
		return nil, fault.Field("input", "want a string or a list of strings")
	}
	return list, nil
}

func (s *server) embed(w http.ResponseWriter, r *http.Request) {
	var c embedRequest
	err := httpapi.Decode(w, r, &c)
	var texts []string
	if err == nil {
		texts, err = c.texts()
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	start := time.Now()
	resp, err := s.backend.Embed(r.Context(), c.request(texts))
	if err != nil {
		s.fail(w, err)
		return
	}
	out := struct {
		Model      string      `json:"model"`
		Embeddings [][]float32 `json:"embeddings"`
		Total      int64       `json:"total_duration"`
		Tokens     uint32      `json:"prompt_eval_count"`
	}{Model: resp.GetModel(), Embeddings: [][]float32{}, Total: time.Since(start).Nanoseconds()}
	for _, e := range resp.GetEmbeddings() {
		out.Embeddings, out.Tokens = append(out.Embeddings, e.GetValues()), out.Tokens+e.GetTokens()
	}
	s.json(w, http.StatusOK, out)
}

// embedding answers the older form, which has one text.
func (s *server) embedding(w http.ResponseWriter, r *http.Request) {
	var c embedRequest
	if err := httpapi.Decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	if c.Prompt == "" {
		s.fail(w, fault.Field("prompt", "is missing"))
		return
	}
	resp, err := s.backend.Embed(r.Context(), c.request([]string{c.Prompt}))
	if err == nil && len(resp.GetEmbeddings()) != 1 {
		err = fault.New(fault.Internal, "embed a prompt: got %d embeddings", len(resp.GetEmbeddings()))
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.json(w, http.StatusOK, map[string]any{"embedding": resp.GetEmbeddings()[0].GetValues()})
}
