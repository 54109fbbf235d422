// Package mcpserver offers a mesh to MCP clients, such as editors and agents: the tools generate, embed and
// mesh_status. It translates tool calls to router.v1; the router bounds and checks requests. The caller connects the
// server to a transport and owns the connection to the router.
package mcpserver

import (
	"context"
	"errors"
	"io"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// defaultTokens is the most tokens of an answer unless a call says otherwise.
const defaultTokens = 512

// server answers calls with a router.
type server struct {
	router  routerv1.RouterServiceClient
	adapter string
}

// New returns a server whose tools call the router. adapter is used by requests for generations; it may be empty.
func New(router routerv1.RouterServiceClient, adapter, version string) *mcp.Server {
	s := &server{router, adapter}
	out := mcp.NewServer(&mcp.Implementation{Name: "lamina", Title: "Lamina", Version: version}, &mcp.ServerOptions{
		Instructions: "Runs language models on a mesh of machines.", Capabilities: &mcp.ServerCapabilities{},
	})
	readOnly := func(title string) *mcp.ToolAnnotations {
		closed := false
		return &mcp.ToolAnnotations{Title: title, ReadOnlyHint: true, OpenWorldHint: &closed}
	}
	mcp.AddTool(out, &mcp.Tool{Name: "generate", Annotations: readOnly("Generate text"),
		Description: "Answers a prompt with a model of the mesh, or continues it as it is with raw."}, s.generate)
	mcp.AddTool(out, &mcp.Tool{Name: "embed", Annotations: readOnly("Embed texts"),
		Description: "Computes the embeddings of texts with a model of the mesh."}, s.embed)
	mcp.AddTool(out, &mcp.Tool{Name: "mesh_status", Annotations: readOnly("Mesh status"),
		Description: "Lists the models that the mesh serves, its pipelines and how busy they are, and its services."}, s.status)
	return out
}

type generateIn struct {
	Prompt      string   `json:"prompt"                jsonschema:"the message of the user, or with raw the text to continue"`
	System      string   `json:"system,omitempty"      jsonschema:"the system message"`
	Model       string   `json:"model,omitempty"       jsonschema:"name of the model; by default the only one"`
	Raw         bool     `json:"raw,omitempty"         jsonschema:"continue the prompt without a chat template"`
	MaxTokens   uint32   `json:"max_tokens,omitempty"  jsonschema:"the most tokens of the answer, by default 512"`
	Temperature *float32 `json:"temperature,omitempty" jsonschema:"0 is greedy; by default that of the model"`
	Seed        *uint64  `json:"seed,omitempty"        jsonschema:"makes the answer repeatable"`
	Stop        []string `json:"stop,omitempty"        jsonschema:"texts that end the answer"`
}

type generateOut struct {
	Text             string `json:"text"`
	Reasoning        string `json:"reasoning,omitempty"`
	Model            string `json:"model"`
	FinishReason     string `json:"finish_reason" jsonschema:"stop or length"`
	PromptTokens     uint32 `json:"prompt_tokens"`
	CompletionTokens uint32 `json:"completion_tokens"`
	Fingerprint      string `json:"fingerprint"   jsonschema:"equal requests have equal answers while this is equal"`
}

func (s *server) generate(
	ctx context.Context, _ *mcp.CallToolRequest, in generateIn,
) (*mcp.CallToolResult, generateOut, error) {
	if in.MaxTokens == 0 {
		in.MaxTokens = defaultTokens
	}
	sampling := &routerv1.Sampling{Temperature: in.Temperature, Seed: in.Seed}
	var out generateOut
	var err error
	if in.Raw {
		out, err = s.continueText(ctx, &routerv1.GenerateRequest{Model: in.Model, MaxTokens: in.MaxTokens,
			Stop: in.Stop, Adapter: s.adapter, Sampling: sampling,
			Prompt: &routerv1.GenerateRequest_Text{Text: in.Prompt}})
	} else {
		r := &routerv1.ChatRequest{Model: in.Model, MaxTokens: in.MaxTokens, Stop: in.Stop, Adapter: s.adapter,
			Sampling: sampling, KeepMarkers: true}
		if in.System != "" {
			r.Messages = append(r.Messages, &tokenizerv1.Message{Role: "system", Content: in.System})
		}
		r.Messages = append(r.Messages, &tokenizerv1.Message{Role: "user", Content: in.Prompt})
		out, err = s.chat(ctx, r)
	}
	if err != nil {
		return nil, out, rpc.FromStatus(err)
	}
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: out.Text}}}, out, nil
}

// chatter runs chats of a router over gRPC.
type chatter struct{ router routerv1.RouterServiceClient }

// Chat passes the events to send.
func (c chatter) Chat(
	ctx context.Context, r *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error,
) error {
	stream, err := c.router.Chat(ctx, r)
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(e); err != nil {
			return err
		}
	}
}

func (s *server) chat(ctx context.Context, r *routerv1.ChatRequest) (generateOut, error) {
	end, err := httpapi.Run(ctx, chatter{s.router}, r, httpapi.Parsing{Reasoning: true}, nil,
		func(toolcall.Delta) error { return nil })
	if err != nil {
		return generateOut{}, err
	}
	out := about(end.Started, end.Finished)
	out.Text, out.Reasoning = end.Answer.Content(), end.Answer.Reasoning()
	return out, nil
}

func (s *server) continueText(ctx context.Context, r *routerv1.GenerateRequest) (generateOut, error) {
	stream, err := s.router.Generate(ctx, r)
	if err != nil {
		return generateOut{}, err
	}
	text := ""
	var started *routerv1.Started
	for {
		e, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return generateOut{}, fault.New(fault.Internal, "run generation: it ended without a finish reason")
		case err != nil:
			return generateOut{}, err
		case e.GetStarted() != nil:
			started = e.GetStarted()
		}
		text += e.GetToken().GetText() + e.GetFinished().GetText()
		if e.GetFinished() != nil {
			out := about(started, e.GetFinished())
			out.Text = text
			return out, nil
		}
	}
}

// about returns what a result says besides its text.
func about(s *routerv1.Started, f *routerv1.Finished) generateOut {
	out := generateOut{Model: s.GetModel(), Fingerprint: s.GetFingerprint(), FinishReason: "stop",
		PromptTokens: f.GetUsage().GetPromptTokens(), CompletionTokens: f.GetUsage().GetCompletionTokens()}
	if httpapi.Truncated(f) {
		out.FinishReason = "length"
	}
	return out
}

type embedIn struct {
	Texts []string `json:"texts"           jsonschema:"the texts, at least one"`
	Model string   `json:"model,omitempty" jsonschema:"name of the model; by default the only one"`
}

type embedOut struct {
	Embeddings [][]float32 `json:"embeddings" jsonschema:"one for each text"`
	Model      string      `json:"model"`
}

func (s *server) embed(
	ctx context.Context, _ *mcp.CallToolRequest, in embedIn,
) (*mcp.CallToolResult, embedOut, error) {
	r := &routerv1.EmbedRequest{Model: in.Model}
	for _, text := range in.Texts {
		r.Inputs = append(r.Inputs, &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: text}})
	}
	resp, err := s.router.Embed(ctx, r)
	if err != nil {
		return nil, embedOut{}, rpc.FromStatus(err)
	}
	out := embedOut{Model: resp.GetModel(), Embeddings: [][]float32{}}
	for _, e := range resp.GetEmbeddings() {
		out.Embeddings = append(out.Embeddings, e.GetValues())
	}
	return nil, out, nil
}

type statusIn struct{}

type statusOut struct {
	Models    []model    `json:"models"`
	Pipelines []pipeline `json:"pipelines"`
	Services  []service  `json:"services"`
}

type model struct {
	Name    string `json:"name"`
	Digest  string `json:"digest"`
	Context uint32 `json:"context_length"`
	Chat    bool   `json:"chat" jsonschema:"it has a chat template"`
}

type pipeline struct {
	ID              string  `json:"id"`
	Model           string  `json:"model"`
	Stages          int     `json:"stages"`
	Running         uint32  `json:"running"`
	Waiting         uint32  `json:"waiting"`
	TokensPerSecond float32 `json:"tokens_per_second"`
	StepMS          float32 `json:"step_ms"`
}

type service struct {
	ID      string `json:"id"`
	Service string `json:"service"`
	Address string `json:"address"`
}

func (s *server) status(
	ctx context.Context, _ *mcp.CallToolRequest, _ statusIn,
) (*mcp.CallToolResult, statusOut, error) {
	out := statusOut{Models: []model{}, Pipelines: []pipeline{}, Services: []service{}}
	models, err := s.router.ListModels(ctx, &routerv1.ListModelsRequest{})
	if err != nil {
		return nil, out, rpc.FromStatus(err)
	}
	topology, err := s.router.Topology(ctx, &routerv1.TopologyRequest{})
	if err != nil {
		return nil, out, rpc.FromStatus(err)
	}
	for _, m := range models.GetModels() {
		out.Models = append(out.Models, model{m.GetName(), m.GetDigest(), m.GetContext(), m.GetChat()})
	}
	for _, p := range topology.GetMesh().GetPipelines() {
		out.Pipelines = append(out.Pipelines, pipeline{p.GetId(), p.GetModel(), len(p.GetStages()), p.GetRunning(),
			p.GetWaiting(), p.GetTokensPerSecond(), p.GetStepMs()})
	}
	for _, m := range topology.GetMesh().GetMembers() {
		out.Services = append(out.Services, service{m.GetId(), m.GetService(), m.GetAddress()})
	}
	return nil, out, nil
}
