package main

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// TestMCP_OffersAMesh runs lamina mcp in this process, with the bundled model, and calls its tools as a client does.
func TestMCP_OffersAMesh(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	fromClient, toServer := io.Pipe()
	fromServer, toClient := io.Pipe()
	ended := make(chan int, 1)
	var stderr strings.Builder
	go func() {
		ended <- run(ctx, []string{"mcp", "-m", filepath.Join("..", "..", "models", "lamina-tolstoy")}, fromClient,
			toClient, &stderr)
		_ = toClient.Close()
	}()
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.IOTransport{Reader: fromServer, Writer: toServer}, nil)
	if err != nil {
		t.Fatalf("connect: %v (%s)", err, stderr.String())
	}
	tools, err := session.ListTools(ctx, nil)
	if err != nil || len(tools.Tools) != 3 {
		t.Fatalf("the tools are %v, %v", tools, err)
	}
	call := func(name string, arguments, into any) *mcp.CallToolResult {
		t.Helper()
		out, err := session.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: arguments})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(out.StructuredContent)
		if err == nil && !out.IsError {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return out
	}
	var said, again struct {
		Text, Model  string
		FinishReason string `json:"finish_reason"`
		Tokens       int    `json:"completion_tokens"`
	}
	prompt := map[string]any{"prompt": "The prince", "raw": true, "max_tokens": 8, "seed": 7}
	out := call("generate", prompt, &said)
	call("generate", prompt, &again)
	if said.Text == "" || said != again || said.Tokens != 8 || said.FinishReason != "length" || len(out.Content) != 1 {
		t.Errorf("it says %+v, then %+v", said, again)
	}
	var embedded struct{ Embeddings [][]float32 }
	call("embed", map[string]any{"texts": []string{"a", "b"}}, &embedded)
	if len(embedded.Embeddings) != 2 || len(embedded.Embeddings[0]) == 0 {
		t.Errorf("the embeddings are %v", embedded)
	}
	var status struct {
		Models    []struct{ Name string }
		Pipelines []struct{ Stages int }
		Services  []struct{ Service string }
	}
	call("mesh_status", map[string]any{}, &status)
	if len(status.Models) != 1 || len(status.Pipelines) != 1 || status.Pipelines[0].Stages != 1 ||
		len(status.Services) < 3 {
		t.Errorf("the status is %+v", status)
	}
	if out := call("generate", map[string]any{"prompt": "x", "raw": true, "model": "other"}, &said); !out.IsError {
		t.Errorf("an unknown model: %v", out)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
	_ = toServer.Close()
	select {
	case code := <-ended:
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("it ended with %d: %s", code, stderr.String())
		}
	case <-ctx.Done():
		t.Error("it does not end with its input")
	}
}
