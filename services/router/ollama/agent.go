package ollama

import (
	"context"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/toolloop"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// ended is a chat that has ended.
type ended struct {
	finished  *routerv1.Finished
	citations []toolloop.Citation // of the whole content
}

// runChat runs a chat, with the tools of the server if the request names any. push gets what is added to the answer.
func (s *server) runChat(
	ctx context.Context, c *chatRequest, req *routerv1.ChatRequest, out *writer, all *outMessage,
	push func(toolcall.Delta) error,
) (*ended, error) {
	start := func(st *routerv1.Started) error {
		out.model = st.GetModel()
		return nil
	}
	parsing := httpapi.Parsing{Tools: req.GetToolsJson(), Reasoning: true, Token: out.token}
	parsing.Loading = func(m *routerv1.ModelLoading) error {
		return out.loading(m, line{Message: &outMessage{Role: "assistant"}})
	}
	if len(c.entries) == 0 {
		end, err := httpapi.Run(ctx, s.backend, req, parsing, start, push)
		if err != nil {
			return nil, err
		}
		return &ended{finished: end.Finished}, nil
	}
	var texts []string
	for _, m := range c.Messages {
		texts = append(texts, m.Content)
	}
	set, err := s.Tools.Choose(ctx, c.entries, c.names, texts)
	if err != nil {
		return nil, err
	}
	client := req.GetToolsJson()
	if req.ToolsJson, err = httpapi.AgentTools(client, set); err != nil {
		return nil, err
	}
	parsing.Tools = req.GetToolsJson()
	ran := 0
	end, err := httpapi.RunAgent(ctx, s.backend, req, parsing, client, set, httpapi.AgentHooks{
		Started: start, Delta: push, Joined: true,
		Ran: func(r httpapi.Ran) error {
			ran++
			return out.chat(all, outMessage{Executed: []any{httpapi.Executed(ran-1, r)}})
		},
		Running: func([]string) error {
			if !out.streamed {
				return nil
			}
			return out.line(line{Message: &outMessage{Role: "assistant"}}) // clients take no comments
		},
	})
	if err != nil {
		return nil, err
	}
	return &ended{end.Finished, end.Citations}, nil
}
