package tokenizer

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// ApplyChatTemplate renders messages with the model's chat template and encodes the result. The
// template writes the begin-of-text token itself, so none is added.
func (s *Service) ApplyChatTemplate(ctx context.Context,
	r *tokenizerv1.ApplyChatTemplateRequest) (*tokenizerv1.ApplyChatTemplateResponse, error) {
	m, err := s.find(ctx, r.GetModel())
	if err != nil {
		return nil, err
	}
	c, err := m.chatOf(r.GetTemplate(), r.GetToolsJson() != "")
	switch {
	case err != nil && r.GetTemplate() != "":
		return nil, &fault.Error{Code: fault.Invalid, Field: "template",
			Msg: fmt.Sprintf("choose a chat template of model %q", m.Name), Err: err}
	case err != nil:
		return nil, fault.New(fault.FailedPrecondition, "find a chat template: model %q has none", m.Name)
	case c.err != nil:
		return nil, fault.Wrap(fault.FailedPrecondition, c.err, "use the chat template of model %q", m.Name)
	case len(r.GetMessages()) == 0:
		return nil, fault.Field("messages", "want at least one message")
	case r.GetContinueFinalMessage() && !r.GetNoGenerationPrompt():
		return nil, fault.Field("continue_final_message", "requires no_generation_prompt")
	}
	in, err := m.chatInput(r)
	if err != nil {
		return nil, err
	}
	o := template.Options{Budget: s.budget, Now: s.now}
	c.adaptCalls(ctx, &in, o)
	out, err := c.template.Chat(ctx, in, o)
	if err != nil {
		return nil, m.chatFault(err)
	}
	if r.GetContinueFinalMessage() {
		if out, err = template.Continue(out, in.Messages[len(in.Messages)-1]); err != nil {
			return nil, m.chatFault(err)
		}
	}
	ids, err := m.encode("messages", out.Text, vocab.Options{Special: true, Plain: out.Data})
	if err != nil {
		return nil, err
	}
	return &tokenizerv1.ApplyChatTemplateResponse{Text: out.Text, Ids: ids, Format: wireFormat(c.format)}, nil
}

// chatOf returns the template that Chat.Pick chooses.
func (m *model) chatOf(name string, tools bool) (*chat, error) {
	name, err := m.Chat.Pick(name, tools)
	if err != nil {
		return nil, err
	}
	return m.chats[name], nil
}

func wireFormat(f toolcall.Format) *tokenizerv1.ChatFormat {
	return &tokenizerv1.ChatFormat{Calls: f.Calls, Reasoning: f.Reasoning}
}

// chatInput converts a request to the template's input.
func (m *model) chatInput(r *tokenizerv1.ApplyChatTemplateRequest) (template.ChatInput, error) {
	in := template.ChatInput{
		Tools: []byte(r.GetToolsJson()), Documents: []byte(r.GetDocumentsJson()),
		Variables:           []byte(r.GetVariablesJson()),
		AddGenerationPrompt: !r.GetNoGenerationPrompt(), Special: m.Chat.Special,
	}
	for i, msg := range r.GetMessages() {
		if msg.GetRole() == "" && msg.GetJson() == "" {
			return in, fault.Field(fmt.Sprintf("messages[%d].role", i), "is missing")
		}
		in.Messages = append(in.Messages,
			template.Message{Role: msg.GetRole(), Content: msg.GetContent(), JSON: []byte(msg.GetJson())})
	}
	return in, nil
}

// chatFault maps an error of the template to a fault for the caller.
func (m *model) chatFault(err error) error {
	var input *template.InputError
	var raised *template.RaisedError
	var budget *template.BudgetError
	var render *template.RenderError
	switch {
	case errors.As(err, &input):
		return &fault.Error{Code: fault.Invalid, Field: input.Field, Msg: "read the chat", Err: input.Err}
	case errors.As(err, &raised):
		return fault.Field("messages", "the chat template of model %q refuses them: %s", m.Name, raised.Message)
	case errors.As(err, &budget):
		return fault.Wrap(fault.Exhausted, err, "apply the chat template of model %q", m.Name)
	case errors.As(err, &render):
		return fault.Field("messages", "apply the chat template of model %q: %v", m.Name, err)
	}
	return fmt.Errorf("apply the chat template of model %q: %w", m.Name, err)
}
