package clients_test

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// otherAPIs runs the stock clients of APIs other than OpenAI's against a mesh with a small chat model.
func otherAPIs(t *testing.T, root, work, clients string) {
	model := chatModel()
	if model == "" {
		t.Skip("no chat model: set LAMINA_SHARED")
	}
	grpc, http := up(t, root, model)
	python := venv(t, work, filepath.Join(clients, "python/requirements.txt"))
	t.Run("Anthropic", func(t *testing.T) {
		var got struct {
			Text   string
			Stop   []any
			Call   string
			Person []string
			Errors [][]any
		}
		decode(t, command(t, root, nil, python, filepath.Join(clients, "python/anthropic_chat.py"), http), &got)
		wrong := []any{400.0, "invalid_request_error"}
		if got.Text == "" || got.Call != "get_weather" || !reflect.DeepEqual(got.Person, []string{"age", "name"}) ||
			!reflect.DeepEqual(got.Stop, []any{"stop_sequence", true}) ||
			!reflect.DeepEqual(got.Errors, [][]any{{404.0, "not_found_error"}, wrong, wrong}) {
			t.Errorf("anthropic_chat.py printed %+v", got)
		}
	})
	t.Run("Ollama", func(t *testing.T) {
		var got struct {
			Text       string
			Final      bool
			Person     []string
			Embeddings int
			Family     string
			Loaded     bool
			Pulled     string
			Errors     []int
		}
		decode(t, command(t, root, nil, python, filepath.Join(clients, "python/ollama_chat.py"), http), &got)
		if got.Text == "" || !got.Final || !reflect.DeepEqual(got.Person, []string{"age", "name"}) ||
			got.Embeddings != 2 || got.Family != "llama" || !got.Loaded || got.Pulled != "success" ||
			!reflect.DeepEqual(got.Errors, []int{404, 400, 404}) {
			t.Errorf("ollama_chat.py printed %+v", got)
		}
	})
	t.Run("KServe", func(t *testing.T) {
		var got struct {
			Ready, Same  bool
			Described    []string
			Answers      []string
			ID, Streamed string
			Pieces       int
			Errors       []string
		}
		own := filepath.Join(work, "triton") // its protobuf is older than that of the others
		mkdir(t, own)
		triton := venv(t, own, filepath.Join(clients, "python/requirements-triton.txt"))
		decode(t, command(t, root, nil, triton, filepath.Join(clients, "python/kserve_infer.py"), grpc, http,
			strings.TrimSuffix(filepath.Base(model), ".gguf")), &got)
		if !got.Ready || !got.Same || got.ID != "7" || len(got.Answers) != 2 || got.Pieces < 3 ||
			got.Answers[0] != got.Streamed || got.Answers[0] == "" ||
			!reflect.DeepEqual(got.Described, []string{"text_input", "BYTES", "text_input", "lamina"}) ||
			!reflect.DeepEqual(got.Errors, []string{"StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT",
				"StatusCode.INVALID_ARGUMENT", "StatusCode.DEADLINE_EXCEEDED", "400"}) {
			t.Errorf("kserve_infer.py printed %+v", got)
		}
	})
	t.Run("MCP", func(t *testing.T) {
		var got struct {
			Tools                 []string
			Text                  string
			Same, Failed          bool
			Embeddings, Pipelines int
		}
		decode(t, command(t, root, nil, python, filepath.Join(clients, "python/mcp_client.py"),
			filepath.Join(root, "bin/lamina"), grpc), &got)
		if !reflect.DeepEqual(got.Tools, []string{"embed", "generate", "mesh_status"}) || got.Text == "" || !got.Same ||
			!got.Failed || got.Embeddings != 2 || got.Pipelines != 1 {
			t.Errorf("mcp_client.py printed %+v", got)
		}
	})
	t.Run("AISDK", func(t *testing.T) {
		dir := filepath.Join(work, "aisdk")
		copyDir(t, filepath.Join(clients, "aisdk"), dir)
		command(t, dir, nil, "npm", "install", "--no-package-lock", "--loglevel=error")
		var got struct {
			Text   string
			Call   string
			City   bool
			Person []string
			Status int
		}
		decode(t, command(t, dir, nil, "node", "chat.mjs", http), &got)
		if got.Text == "" || got.Call != "get_weather" || !got.City || got.Status != 404 ||
			!reflect.DeepEqual(got.Person, []string{"age", "name"}) {
			t.Errorf("chat.mjs printed %+v", got)
		}
	})
}
