package router

import (
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// echoPart is the number of prompt tokens of one event, so that the event fits a message.
const echoPart = 512

// echo says what a request asks to be reported about its prompt.
type echo struct {
	on       bool // report the prompt's tokens
	logprobs bool // report their log-probabilities too
	only     bool // generate nothing
	special  bool // show control tokens, since the prompt was given as ids
	done     bool // the prompt has been reported
}

// openEcho reports the prompt at once if no log-probabilities are asked for. Otherwise closeEcho
// reports it when the pipeline has scored it.
func (q *request) openEcho() error {
	if !q.echo.on || q.echo.logprobs {
		return nil
	}
	return q.sendEcho(nil)
}

// closeEcho reports the prompt with its scores, which arrive with the first token.
func (q *request) closeEcho(scores []*samplerv1.Score) error {
	if !q.echo.on || q.echo.done {
		return nil
	}
	if len(scores) != len(q.prompt)-1 {
		return fault.New(fault.Internal, "score prompt of request %s: %d scores for %d tokens", q.id, len(scores),
			len(q.prompt))
	}
	return q.sendEcho(scores)
}

// sendEcho sends the prompt's tokens in parts. scores[i] belongs to token i+1.
func (q *request) sendEcho(scores []*samplerv1.Score) error {
	texts, err := q.text.promptPieces(q.prompt, !q.echo.special)
	if err != nil {
		return err
	}
	for first := 0; first < len(q.prompt); first += echoPart {
		part := &routerv1.PromptTokens{First: uint32(first)}
		for i := first; i < min(len(q.prompt), first+echoPart); i++ {
			token := &routerv1.PromptToken{Id: q.prompt[i], Text: texts[i]}
			if i > 0 && len(scores) > 0 {
				logprob := scores[i-1].GetLogprob()
				token.Logprob = &logprob
				if token.Top, err = q.text.candidates(scores[i-1].GetTop()); err != nil {
					return err
				}
			}
			part.Tokens = append(part.Tokens, token)
		}
		if err := q.sink.prompt(part); err != nil {
			return err
		}
	}
	q.echo.done = true
	return nil
}

// promptPieces returns, for each id, the text that became complete with it. Joined, the pieces are
// the text of all ids.
func (o *textOut) promptPieces(ids []uint32, skipSpecial bool) ([]string, error) {
	decoder := o.vocabulary.pieces.NewDecoder(vocab.DecodeOptions{SkipSpecial: skipSpecial})
	out := make([]string, len(ids))
	for i, id := range ids {
		text, err := decoder.Push(int32(id))
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "decode prompt")
		}
		out[i] = text
	}
	out[len(out)-1] += decoder.Flush() // an unfinished character at the end
	return out, nil
}
