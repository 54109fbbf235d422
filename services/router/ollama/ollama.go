package ollama

import (
	"context"
	"net/http"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// apiVersion is the version of Ollama whose API this is. Clients compare it with what they need.
const apiVersion = "0.12.6"

// Backend runs requests and lists models. Its errors are faults.
type Backend interface {
	httpapi.Chatter
	Generate(ctx context.Context, r *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error) error
	Models(ctx context.Context) ([]*routerv1.Model, error)
	Embed(ctx context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error)
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
	return httpapi.API{Name: "ollama", Fail: s.fail, Log: s.Log, Routes: []httpapi.Route{
		{Method: http.MethodPost, Path: "/api/chat", Handle: s.chat,
			Summary: "Answer a chat.", Body: chatRequest{}, Stream: httpapi.JSONLines},
		{Method: http.MethodPost, Path: "/api/generate", Handle: s.generate,
			Summary: "Continue or answer a prompt.", Body: generateRequest{}, Stream: httpapi.JSONLines},
		{Method: http.MethodPost, Path: "/api/embed", Handle: s.embed,
			Summary: "Compute the embeddings of texts.", Body: embedRequest{}},
		{Method: http.MethodPost, Path: "/api/embeddings", Handle: s.embedding,
			Summary: "Compute the embedding of a text.", Body: embedRequest{}},
		{Method: http.MethodGet, Path: "/api/tags", Handle: s.tags,
			Summary: "List the models that are served."},
		{Method: http.MethodPost, Path: "/api/show", Handle: s.show,
			Summary: "Describe a model.", Body: named{}},
		{Method: http.MethodGet, Path: "/api/ps", Handle: s.ps,
			Summary: "List the models that are loaded."},
		{Method: http.MethodGet, Path: "/api/version", Handle: s.version,
			Summary: "Tell the version of the API."},
		{Method: http.MethodPost, Path: "/api/pull", Handle: s.pull,
			Summary: "Check that a model is served.", Body: named{}, Stream: httpapi.JSONLines},
	}}
}

// fail writes err as the response.
func (s *server) fail(w http.ResponseWriter, err error) {
	p := httpapi.Explain(err)
	p.SetRetryAfter(w)
	s.json(w, p.Status, map[string]string{"error": message(p)})
}

// message returns the text of an error, with this API's names of the backend's fields.
func message(p httpapi.Problem) string {
	field := p.Field
	for _, name := range [][2]string{
		{"sampling.grammar.source", "format"}, {"sampling.grammar", "format"}, {"sampling.advanced.", "options."},
		{"sampling.", "options."}, {"tools_json", "tools"}, {"inputs", "input"}, {"stop", "options.stop"},
		{"max_tokens", "options.num_predict"},
	} {
		if rest, ok := strings.CutPrefix(field, name[0]); ok {
			field = name[1] + rest
			break
		}
	}
	return strings.Replace(p.Message, p.Field, field, 1)
}

// json writes one object.
func (s *server) json(w http.ResponseWriter, status int, v any) {
	s.Reply(w, status, v, s.fail)
}

// modelName returns the mesh's name of a model.
func modelName(name string) string { return strings.TrimSuffix(name, ":latest") }

// find returns a model that is served. The name may be empty if there is only one.
func (s *server) find(ctx context.Context, name string) (*routerv1.Model, error) {
	models, err := s.backend.Models(ctx)
	if err != nil {
		return nil, err
	}
	name = modelName(name)
	if m := httpapi.FindModel(models, name); m != nil {
		return m, nil
	}
	if name == "" {
		return nil, fault.Field("model", "is missing")
	}
	return nil, fault.New(fault.NotFound, "model %q not found: no pipeline serves it", name)
}

// details are what Ollama says about a model's file. The router does not know its size and quantisation.
type details struct {
	Parent       string   `json:"parent_model"`
	Format       string   `json:"format"`
	Family       string   `json:"family"`
	Families     []string `json:"families"`
	Parameters   string   `json:"parameter_size"`
	Quantization string   `json:"quantization_level"`
}

type listed struct {
	Name    string  `json:"name"`
	Model   string  `json:"model"`
	Size    int64   `json:"size"` // unknown: 0
	Digest  string  `json:"digest"`
	Details details `json:"details"`
	VRAM    *int64  `json:"size_vram,omitempty"` // of /api/ps
	Context uint32  `json:"context_length,omitempty"`
}

func toDetails(m *routerv1.Model) details {
	return details{Family: m.GetArchitecture(), Families: []string{m.GetArchitecture()}}
}

func toListed(m httpapi.Listed) listed {
	out := listed{Name: m.ID, Model: m.ID, Digest: m.GetDigest(), Details: toDetails(m.Model)}
	if m.Adapter != nil {
		out.Digest, out.Details.Parent = m.Adapter.GetDigest(), m.GetName()
	}
	out.Digest = strings.TrimPrefix(out.Digest, "sha256:")
	return out
}

func (s *server) tags(w http.ResponseWriter, r *http.Request) {
	s.list(w, r, func(*routerv1.Model, *listed) {})
}

// ps lists the models that are loaded, which are all that are served.
func (s *server) ps(w http.ResponseWriter, r *http.Request) {
	s.list(w, r, func(m *routerv1.Model, l *listed) { l.VRAM, l.Context = new(int64), m.GetMaxContext() })
}

func (s *server) list(w http.ResponseWriter, r *http.Request, more func(*routerv1.Model, *listed)) {
	models, err := s.backend.Models(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	out := []listed{}
	for _, m := range httpapi.List(r.Context(), models) {
		one := toListed(m)
		more(m.Model, &one)
		out = append(out, one)
	}
	s.json(w, http.StatusOK, map[string]any{"models": out})
}

func (s *server) version(w http.ResponseWriter, _ *http.Request) {
	s.json(w, http.StatusOK, map[string]string{"version": apiVersion, "server": "lamina"})
}

// named is a body that names a model.
type named struct {
	Model  string `json:"model"`
	Name   string `json:"name"` // the older spelling
	Stream *bool  `json:"stream"`
}

func (n named) name() string {
	if n.Model == "" {
		return n.Name
	}
	return n.Model
}

func (s *server) show(w http.ResponseWriter, r *http.Request) {
	var c named
	if err := httpapi.Decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	m, err := s.find(r.Context(), c.name())
	if err != nil {
		s.fail(w, err)
		return
	}
	var abilities []string
	if !m.GetEncoder() {
		abilities = append(abilities, "completion")
	}
	if m.GetEmbedTokens() > 0 {
		abilities = append(abilities, "embedding")
	}
	if m.GetFormat().GetCalls() != "" {
		abilities = append(abilities, "tools")
	}
	if m.GetFormat().GetReasoning() != "" {
		abilities = append(abilities, "thinking")
	}
	arch := m.GetArchitecture()
	s.json(w, http.StatusOK, map[string]any{
		"modelfile": "", "parameters": "", "template": "", "details": toDetails(m), "capabilities": abilities,
		"model_info": map[string]any{
			"general.architecture":   arch,
			arch + ".block_count":    m.GetLayers(),
			arch + ".context_length": m.GetContext(),
			arch + ".vocab_size":     m.GetVocab(),
		},
	})
}

// pull answers for a model that is served already. Others are loaded by shards, not over this API.
func (s *server) pull(w http.ResponseWriter, r *http.Request) {
	var c named
	if err := httpapi.Decode(w, r, &c); err != nil {
		s.fail(w, err)
		return
	}
	if c.name() == "" {
		s.fail(w, fault.Field("model", "is missing"))
		return
	}
	if _, err := s.find(r.Context(), c.name()); err != nil {
		if fault.CodeOf(err) == fault.NotFound {
			err = fault.New(
				fault.NotFound,
				"pull model %q: no pipeline serves it, and this API loads no models: start shards that hold it",
				c.name(),
			)
		}
		s.fail(w, err)
		return
	}
	done := map[string]string{"status": "success"}
	if c.Stream != nil && !*c.Stream {
		s.json(w, http.StatusOK, done)
		return
	}
	if err := httpapi.NewStream(w, httpapi.JSONLines, s.WriteTimeout).Line(done); err != nil {
		s.Log.DebugContext(r.Context(), "end stream", "error", err)
	}
}
