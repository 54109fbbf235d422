package openai

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// embeddingRequest is the body of /v1/embeddings.
type embeddingRequest struct {
	Model      string          `json:"model"`
	Input      json.RawMessage `json:"input"` // in the forms of a completion's prompt
	Format     *string         `json:"encoding_format"`
	Dimensions *int64          `json:"dimensions"`
	Truncate   bool            `json:"truncate"` // beyond OpenAI's: cut texts that are too long
}

// request returns the request for the backend.
func (c *embeddingRequest) request() (*routerv1.EmbedRequest, error) {
	if f := c.Format; f != nil && *f != "float" && *f != "base64" {
		return nil, fault.Field("encoding_format", "%q is not supported: want float or base64", *f)
	}
	if c.Dimensions != nil {
		return nil, fault.Field("dimensions", "is not supported: embeddings are as long as the model is wide")
	}
	texts, err := readPrompts("input", c.Input)
	if err != nil {
		return nil, err
	}
	out := &routerv1.EmbedRequest{Model: c.Model, Truncate: c.Truncate}
	for _, t := range texts {
		in := &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: t.text}}
		if t.ids != nil {
			in.Input = &routerv1.EmbedInput_TokenIds{TokenIds: &routerv1.TokenIds{Ids: t.ids}}
		}
		out.Inputs = append(out.Inputs, in)
	}
	return out, nil
}

func (s *server) embeddings(w http.ResponseWriter, r *http.Request) {
	var c embeddingRequest
	if err := decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	req, err := c.request()
	if err != nil {
		s.fail(w, err)
		return
	}
	resp, err := s.backend.Embed(r.Context(), req)
	if err != nil {
		s.fail(w, err)
		return
	}
	type embedding struct {
		Object    string `json:"object"`
		Index     int    `json:"index"`
		Embedding any    `json:"embedding"`
	}
	data := make([]embedding, len(resp.GetEmbeddings()))
	tokens := uint32(0)
	for i, e := range resp.GetEmbeddings() {
		data[i] = embedding{"embedding", i, e.GetValues()}
		if c.Format != nil && *c.Format == "base64" {
			data[i].Embedding = littleEndian(e.GetValues())
		}
		tokens += e.GetTokens()
	}
	s.json(w, http.StatusOK, map[string]any{
		"object": "list", "data": data, "model": resp.GetModel(), "system_fingerprint": resp.GetFingerprint(),
		"usage": map[string]uint32{"prompt_tokens": tokens, "total_tokens": tokens},
	})
}

// littleEndian returns float32 values as OpenAI's base64 has them.
func littleEndian(values []float32) string {
	out := make([]byte, 0, 4*len(values))
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return base64.StdEncoding.EncodeToString(out)
}
