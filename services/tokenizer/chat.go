package tokenizer

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// ApplyChatTemplate renders messages by the model's chat template and encodes
// the result. The template writes the begin token itself, so none is added.
func (s *Service) ApplyChatTemplate(ctx context.Context, r *tokenizerv1.ApplyChatTemplateRequest) (*tokenizerv1.ApplyChatTemplateResponse, error) {
	m, err := s.find(r.GetModel())
	if err != nil {
		return nil, err
	}
	switch {
	case m.chatErr != nil:
		return nil, fault.Wrap(fault.FailedPrecondition, m.chatErr, "use the chat template of model %q", m.Name)
	case m.chat == nil:
		return nil, fault.New(fault.FailedPrecondition, "find a chat template: model %q has none", m.Name)
	case len(r.GetMessages()) == 0:
		return nil, fault.Field("messages", "a chat needs one message or more")
	}
	in := template.ChatInput{
		Tools: []byte(r.GetToolsJson()), Variables: []byte(r.GetVariablesJson()),
		AddGenerationPrompt: !r.GetNoGenerationPrompt(),
		BOS:                 m.spelling(m.Vocab.BOS()), EOS: m.spelling(m.Vocab.EOS()),
	}
	for i, msg := range r.GetMessages() {
		if msg.GetRole() == "" && msg.GetJson() == "" {
			return nil, fault.Field(fmt.Sprintf("messages[%d].role", i), "a message needs a role")
		}
		in.Messages = append(in.Messages, template.Message{Role: msg.GetRole(), Content: msg.GetContent(), JSON: []byte(msg.GetJson())})
	}
	out, err := m.chat.Chat(ctx, in, template.Options{Budget: s.budget, Now: s.now})
	if err != nil {
		return nil, m.chatFault(err)
	}
	ids, err := m.encode("messages", out.Text, vocab.Options{Special: true, Plain: out.Data})
	if err != nil {
		return nil, err
	}
	return &tokenizerv1.ApplyChatTemplateResponse{Text: out.Text, Ids: ids}, nil
}

// spelling is how the vocabulary spells a token that it may lack.
func (m *model) spelling(id int32, ok bool) string {
	if !ok {
		return ""
	}
	text, err := m.Vocab.Spelling(id)
	if err != nil {
		return ""
	}
	return text
}

// chatFault says what an error of the template means to the caller.
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
		return &fault.Error{Code: fault.Invalid, Field: "messages",
			Msg: fmt.Sprintf("apply the chat template of model %q", m.Name), Err: err}
	}
	return fmt.Errorf("apply the chat template of model %q: %w", m.Name, err)
}
