package vllm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// Backend encodes, decodes and embeds texts. Its errors are faults.
type Backend interface {
	Models(ctx context.Context) ([]*routerv1.Model, error)
	Prompt(ctx context.Context, r *routerv1.ChatRequest) ([]uint32, error)
	Encode(ctx context.Context, model, text string, special, bare bool) ([]uint32, error)
	Decode(ctx context.Context, model string, ids []uint32, skipSpecial bool) (string, error)
	Embed(ctx context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error)
}

// Options are the settings of the API.
type Options struct {
	httpapi.Options
	// Fail writes an error in OpenAI's shape.
	Fail func(w http.ResponseWriter, err error)
}

type server struct {
	Options
	backend Backend
}

// Routes returns the routes of the API.
func Routes(b Backend, o Options) httpapi.API {
	o.Options = o.WithDefaults()
	s := &server{o, b}
	api := httpapi.API{Name: "vllm", Fail: o.Fail, Log: o.Log, Routes: []httpapi.Route{
		{Method: http.MethodPost, Path: "/tokenize", Handle: s.tokenize, Summary: "Encode a text or a chat.",
			Body: tokenizeRequest{}},
		{Method: http.MethodPost, Path: "/detokenize", Handle: s.detokenize, Summary: "Decode token ids.",
			Body: detokenizeRequest{}},
	}}
	for _, path := range []string{"", "/v1"} {
		api.Routes = append(api.Routes,
			httpapi.Route{Method: http.MethodPost, Path: path + "/score", Handle: s.score,
				Summary: "Compare texts.", Body: scoreRequest{}},
			httpapi.Route{Method: http.MethodPost, Path: path + "/rerank", Handle: s.rerank,
				Summary: "Order documents by how they fit a query.", Body: rerankRequest{}})
	}
	return api
}

func (s *server) json(w http.ResponseWriter, v any) {
	s.Reply(w, http.StatusOK, v, s.Fail)
}

type tokenizeRequest struct {
	Model    string  `json:"model"`
	Prompt   *string `json:"prompt"`
	Special  *bool   `json:"add_special_tokens"` // the default is true for a prompt
	Messages []struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	} `json:"messages"`
	Tools            json.RawMessage `json:"tools"`
	GenerationPrompt *bool           `json:"add_generation_prompt"`
	TokenStrings     bool            `json:"return_token_strs"`
}

func (s *server) tokenize(w http.ResponseWriter, r *http.Request) {
	var c tokenizeRequest
	err := httpapi.Decode(w, r, &c)
	var ids []uint32
	if err == nil {
		ids, err = s.encode(r.Context(), &c)
	}
	if err != nil {
		s.Fail(w, err)
		return
	}
	out := map[string]any{
		"count":         len(ids),
		"tokens":        append([]uint32{}, ids...),
		"max_model_len": nil,
		"token_strs":    nil,
	}
	models, err := s.backend.Models(r.Context())
	if err != nil {
		s.Fail(w, err)
		return
	}
	if m := httpapi.FindModel(models, c.Model); m != nil {
		out["max_model_len"] = m.GetMaxContext()
	}
	s.json(w, out)
}

// encode returns the ids of a prompt or of a chat.
func (s *server) encode(ctx context.Context, c *tokenizeRequest) ([]uint32, error) {
	switch {
	case c.TokenStrings:
		return nil, fault.Field("return_token_strs", "is not supported: use /detokenize")
	case c.Prompt != nil && len(c.Messages) > 0:
		return nil, fault.Field("messages", "cannot be combined with prompt")
	case c.Prompt != nil:
		return s.backend.Encode(ctx, c.Model, *c.Prompt, false, c.Special != nil && !*c.Special)
	case len(c.Messages) == 0:
		return nil, fault.Field("prompt", "is missing")
	case c.Special != nil:
		return nil, fault.Field("add_special_tokens", "is not supported for messages")
	}
	req := &routerv1.ChatRequest{Model: c.Model, NoGenerationPrompt: c.GenerationPrompt != nil && !*c.GenerationPrompt}
	if httpapi.Given(c.Tools) {
		req.ToolsJson = string(c.Tools)
	}
	for i, m := range c.Messages {
		if m.Role == "" {
			return nil, fault.Field(fmt.Sprintf("messages[%d].role", i), "is missing")
		}
		t, err := httpapi.Turn{Role: m.Role, Content: m.Content}.Message()
		if err != nil {
			return nil, err
		}
		req.Messages = append(req.Messages, t)
	}
	return s.backend.Prompt(ctx, req)
}

type detokenizeRequest struct {
	Model  string   `json:"model"`
	Tokens []uint32 `json:"tokens"`
}

func (s *server) detokenize(w http.ResponseWriter, r *http.Request) {
	var c detokenizeRequest
	err := httpapi.Decode(w, r, &c)
	if err == nil && c.Tokens == nil {
		err = fault.Field("tokens", "is missing")
	}
	text := ""
	if err == nil {
		text, err = s.backend.Decode(r.Context(), c.Model, c.Tokens, false)
	}
	if err != nil {
		s.Fail(w, err)
		return
	}
	s.json(w, map[string]string{"prompt": text})
}

// texts is a string or a list of strings.
type texts []string

// UnmarshalJSON reads either form.
func (t *texts) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(t))
}

type scoreRequest struct {
	Model    string `json:"model"`
	First    texts  `json:"text_1"`
	Second   texts  `json:"text_2"`
	Truncate *bool  `json:"truncate"` // the default is true
}

type usage struct {
	Prompt uint32 `json:"prompt_tokens"`
	Total  uint32 `json:"total_tokens"`
}

// embeddings are those of some texts.
type embeddings struct {
	model  string
	values [][]float32
	usage  usage
}

// embed embeds texts. name returns the name that a text has in the request, or that of all for -1.
func (s *server) embed(
	ctx context.Context, model string, truncate *bool, list []string, name func(i int) string,
) (*embeddings, error) {
	req := &routerv1.EmbedRequest{Model: model, Truncate: truncate == nil || *truncate}
	for _, text := range list {
		req.Inputs = append(req.Inputs, &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: text}})
	}
	resp, err := s.backend.Embed(ctx, req)
	if err != nil {
		return nil, rename(err, name)
	}
	if len(resp.GetEmbeddings()) != len(list) {
		return nil, fault.New(fault.Internal, "embed %d texts: got %d embeddings", len(list), len(resp.GetEmbeddings()))
	}
	out := &embeddings{model: resp.GetModel()}
	for _, e := range resp.GetEmbeddings() {
		out.values = append(out.values, e.GetValues())
		out.usage.Prompt += e.GetTokens()
	}
	out.usage.Total = out.usage.Prompt
	return out, nil
}

// rename gives the text that is at fault the name that it has in the request.
func rename(err error, name func(i int) string) error {
	var f *fault.Error
	if !errors.As(err, &f) || !strings.HasPrefix(f.Field, "inputs") {
		return err
	}
	i, renamed := -1, *f
	if _, err := fmt.Sscanf(f.Field, "inputs[%d]", &i); err != nil {
		i = -1
	}
	renamed.Field = name(i)
	return &renamed
}

// cosine returns the cosine of the angle between two vectors; 0 if one of them is zero. Sums are in float64, in the
// order of the components.
func cosine(a, b []float32) float64 {
	var dot, aa, bb float64
	for i := range a {
		dot += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	if aa == 0 || bb == 0 {
		return 0
	}
	return dot / math.Sqrt(aa) / math.Sqrt(bb)
}

func (s *server) score(w http.ResponseWriter, r *http.Request) {
	var c scoreRequest
	err := httpapi.Decode(w, r, &c)
	switch {
	case err != nil:
	case len(c.First) == 0:
		err = fault.Field("text_1", "is missing")
	case len(c.Second) == 0:
		err = fault.Field("text_2", "is missing")
	case len(c.First) > 1 && len(c.First) != len(c.Second):
		err = fault.Field("text_1", "%d texts for %d of text_2: want one, or as many", len(c.First), len(c.Second))
	}
	var e *embeddings
	if err == nil {
		e, err = s.embed(r.Context(), c.Model, c.Truncate, slices.Concat([]string(c.First), []string(c.Second)),
			func(i int) string {
				switch {
				case i < 0:
					return "text_2"
				case i < len(c.First):
					return fmt.Sprintf("text_1[%d]", i)
				}
				return fmt.Sprintf("text_2[%d]", i-len(c.First))
			})
	}
	if err != nil {
		s.Fail(w, err)
		return
	}
	type score struct {
		Index  int     `json:"index"`
		Object string  `json:"object"`
		Score  float64 `json:"score"`
	}
	data := make([]score, len(c.Second))
	for i := range data {
		data[i] = score{i, "score", cosine(e.values[i%len(c.First)], e.values[len(c.First)+i])}
	}
	s.json(
		w,
		map[string]any{"id": "score-" + obs.RequestID(r.Context()), "object": "list", "created": time.Now().Unix(),
			"model": e.model, "data": data, "usage": e.usage},
	)
}

type rerankRequest struct {
	Model     string     `json:"model"`
	Query     string     `json:"query"`
	Documents []document `json:"documents"`
	Top       int        `json:"top_n"` // 0 returns all
	Truncate  *bool      `json:"truncate"`
}

// document is a text, or an object with a text.
type document struct {
	Text string `json:"text"`
}

// UnmarshalJSON reads either form.
func (d *document) UnmarshalJSON(raw []byte) error {
	if json.Unmarshal(raw, &d.Text) == nil {
		return nil
	}
	type plain document
	return json.Unmarshal(raw, (*plain)(d))
}

func (s *server) rerank(w http.ResponseWriter, r *http.Request) {
	var c rerankRequest
	err := httpapi.Decode(w, r, &c)
	switch {
	case err != nil:
	case c.Query == "":
		err = fault.Field("query", "is missing")
	case len(c.Documents) == 0:
		err = fault.Field("documents", "want at least one")
	case c.Top < 0:
		err = fault.Field("top_n", "want 0 or more, got %d", c.Top)
	}
	list := []string{c.Query}
	for _, d := range c.Documents {
		list = append(list, d.Text)
	}
	var e *embeddings
	if err == nil {
		e, err = s.embed(r.Context(), c.Model, c.Truncate, list, func(i int) string {
			switch {
			case i < 0:
				return "documents"
			case i == 0:
				return "query"
			}
			return fmt.Sprintf("documents[%d]", i-1)
		})
	}
	if err != nil {
		s.Fail(w, err)
		return
	}
	type result struct {
		Index    int      `json:"index"`
		Document document `json:"document"`
		Score    float64  `json:"relevance_score"`
	}
	results := make([]result, len(c.Documents))
	for i, d := range c.Documents {
		results[i] = result{i, d, cosine(e.values[0], e.values[1+i])}
	}
	slices.SortStableFunc(results, func(a, b result) int { return cmp.Compare(b.Score, a.Score) })
	if c.Top > 0 {
		results = results[:min(c.Top, len(results))]
	}
	s.json(w, map[string]any{"id": "rerank-" + obs.RequestID(r.Context()), "model": e.model, "usage": e.usage,
		"results": results})
}
