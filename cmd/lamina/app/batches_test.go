package app_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// TestMesh_BatchAnswersAsSingleRequestsDo runs a batch over a real mesh, stops the mesh, and reads the results from
// another one with the same folder.
func TestMesh_BatchAnswersAsSingleRequestsDo(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	c := app.MeshConfig{Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: 2, HTTP: "127.0.0.1:0",
		Kernels: app.Kernels{Set: set, Threads: 2}, Batches: app.Batches{Dir: t.TempDir()}}
	mesh, err := app.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + mesh.HTTPAddr()
	read := func(resp *http.Response, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s %v", resp.StatusCode, text, err)
		}
		return text
	}
	var in strings.Builder
	want := map[string]string{}
	for i := range 3 {
		body := fmt.Sprintf(`{"prompt":"The prince %d","max_tokens":6,"temperature":0}`, i)
		var one struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal(read(http.Post(base+"/v1/completions", "application/json", strings.NewReader(body))),
			&one); err != nil {
			t.Fatal(err)
		}
		want[fmt.Sprint(i)] = one.Choices[0].Text
		fmt.Fprintf(&in, `{"custom_id":"%d","method":"POST","url":"/v1/completions","body":%s}`+"\n", i, body)
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, err := w.CreateFormFile("file", "in.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write([]byte(in.String())); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteField("purpose", "batch"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var file struct{ ID string }
	if err := json.Unmarshal(read(http.Post(base+"/v1/files", w.FormDataContentType(), &form)), &file); err != nil {
		t.Fatal(err)
	}
	var b struct {
		ID, Status string
		Output     string `json:"output_file_id"`
	}
	body := `{"input_file_id":"` + file.ID + `","endpoint":"/v1/completions","completion_window":"24h"}`
	if err := json.Unmarshal(read(http.Post(base+"/v1/batches", "application/json", strings.NewReader(body))),
		&b); err != nil {
		t.Fatal(err)
	}
	deadline, tick := time.After(2*time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for b.Status != "completed" {
		select {
		case <-deadline:
			t.Fatalf("the batch is %+v", b)
		case <-tick.C:
		}
		if err := json.Unmarshal(read(http.Get(base+"/v1/batches/"+b.ID)), &b); err != nil {
			t.Fatal(err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if err := mesh.Close(); err != nil {
		t.Fatal(err)
	}
	mesh, _ = startMesh(t, t.Context(), c)
	text := read(http.Get("http://" + mesh.HTTPAddr() + "/v1/files/" + b.Output + "/content"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, l := range lines {
		var r struct {
			ID       string `json:"custom_id"`
			Response struct {
				Body struct{ Choices []struct{ Text string } }
			}
		}
		if err := json.Unmarshal([]byte(l), &r); err != nil || len(r.Response.Body.Choices) != 1 ||
			r.Response.Body.Choices[0].Text != want[r.ID] {
			t.Errorf("%s, want %q", l, want[r.ID])
		}
	}
	if len(lines) != len(want) {
		t.Errorf("%d results", len(lines))
	}
}
