// Package verb holds what the commands of the lamina binary share: their environment, the flags that
// choose a kernel set, and Chain, which runs a complete model in this process.
package verb

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"

	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Env is the environment of a command.
type Env struct {
	Ctx    context.Context
	Log    *slog.Logger
	Level  *slog.LevelVar        // of Log
	Config func(io.Writer) error // writes the effective configuration of the command, without secrets
	Store  string                // folder of the store of models; empty for the default
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// PrintJSON writes a value to standard output as one line of JSON.
func PrintJSON(e *Env, v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// GrammarVocabulary converts a vocabulary into the form from which token masks are made.
func GrammarVocabulary(v *vocab.Vocab) (*grammar.Vocabulary, error) {
	tokens := make([][]byte, v.Size())
	for id := range tokens {
		text, kind, err := v.Token(int32(id))
		if err != nil {
			return nil, err
		}
		switch kind {
		case vocab.KindNormal, vocab.KindUserDefined, vocab.KindByte:
			tokens[id] = text
		case vocab.KindControl:
			tokens[id] = grammar.ControlBytes(string(text))
		}
	}
	return grammar.NewVocabulary(tokens, v.EOG()...)
}
