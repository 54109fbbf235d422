package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// randomCaller returns a folder with a model of random weights. Its chat template writes tool calls
// with the control tokens [TOOL_CALLS], id 0, and [ARGS], id 1.
func randomCaller(t *testing.T) string {
	t.Helper()
	from, dir := shared(t, "models/tiny/qwen3"), t.TempDir()
	copied := func(name string, change func([]byte) []byte) {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			data = change(data)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copied("config.json", nil)
	copied("model.safetensors", nil)
	copied("tokenizer.json", func(data []byte) []byte {
		return bytes.ReplaceAll(bytes.ReplaceAll(data, []byte(`"<pad>"`), []byte(`"[TOOL_CALLS]"`)), []byte(`"<s>"`),
			[]byte(`"[ARGS]"`))
	})
	copied("tokenizer_config.json", func([]byte) []byte {
		const chat = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments }}{% endfor %}{% endif %}{% endfor %}"
		text, err := json.Marshal(
			map[string]any{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "add_bos_token": false,
				"chat_template": chat})
		if err != nil {
			t.Fatal(err)
		}
		return text
	})
	return dir
}

// A model with random weights calls the tools that it is offered, with control tokens.
func TestMesh_RandomModelCallsByControlTokens(t *testing.T) {
	defer leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	m, err := app.Start(ctx,
		app.MeshConfig{Model: randomCaller(t), Stages: 2, Kernels: app.Kernels{Set: ref.New[float32](), Threads: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	router := routerv1.NewRouterServiceClient(conn)
	schema := &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA,
		Source: `{"type":"integer","minimum":10,"maximum":99}`}
	finished, called, answered := 0, 0, 0
	for seed := range uint64(30) {
		no, hot := false, float32(1)
		r := &routerv1.ChatRequest{
			Messages: []*tokenizerv1.Message{{Role: "user", Content: "hi"}}, MaxTokens: 220, KeepMarkers: true,
			ToolsJson: chatTools, ParallelToolCalls: &no,
			Sampling: &routerv1.Sampling{Temperature: &hot, Seed: &seed},
		}
		if seed%3 == 0 { // an answer that follows a schema, or a call
			r.Sampling.Grammar = schema
		} else {
			r.ToolChoice = &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED}
		}
		stream, err := router.Chat(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		var text string
		var ids []uint32
		var started *routerv1.Started
		reason := samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := e.GetStarted(); s != nil {
				started = s
			}
			if token := e.GetToken(); token != nil {
				ids = append(ids, token.GetId())
			}
			text += e.GetToken().GetText() + e.GetFinished().GetText()
			reason = e.GetFinished().GetFinishReason()
		}
		if started.GetFormat().GetCalls() != "mistral-args" {
			t.Fatalf("the format is %v", started.GetFormat())
		}
		if reason != samplerv1.FinishReason_FINISH_REASON_STOP {
			continue
		}
		finished++
		p := toolcall.New(toolcall.Format{Calls: started.GetFormat().GetCalls()},
			toolcall.Options{Tools: []byte(chatTools), Prompt: started.GetPromptEnd()})
		var c choice
		for _, d := range []toolcall.Delta{p.Push(text), p.Flush(false)} {
			c.Content += d.Content
			for _, call := range d.Calls {
				if call.Index == len(c.Calls) {
					c.Calls = append(c.Calls, calledFunction{Name: call.Name})
				}
				c.Calls[call.Index].Arguments += call.Arguments
			}
		}
		judged(t, c)
		switch {
		case len(c.Calls) == 1 && strings.TrimSpace(c.Content) == "":
			called++
			if !slices.Contains(ids, 0) || !slices.Contains(ids, 1) {
				t.Errorf("seed %d: the ids of %q are %v, without the control tokens", seed, text, ids)
			}
		case len(c.Calls) == 0 && seed%3 == 0 && regexp.MustCompile(`^\s*[1-9][0-9](\.0+)?\s*$`).MatchString(c.Content):
			answered++
		default:
			t.Errorf("seed %d: %q is %+v", seed, text, c)
		}
	}
	if finished < 20 || called < 15 || answered < 3 {
		t.Errorf("%d of 30 finished, %d called, %d answered", finished, called, answered)
	}
	t.Logf("%d of 30 finished, %d called, %d answered", finished, called, answered)
}
