package app_test

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
)

// TestMesh_OpenAPIDescribesEveryRoute compares the served document with the table of routes, both ways. Probes, metrics
// and the console are no APIs.
func TestMesh_OpenAPIDescribesEveryRoute(t *testing.T) {
	mesh, _ := startMesh(t, t.Context(), app.MeshConfig{HTTP: "127.0.0.1:0"})
	resp, err := http.Get("http://" + mesh.HTTPAddr() + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct {
			ID      string `json:"operationId"`
			Summary string
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s: %v", resp.StatusCode, text, err)
	}
	var described []string
	ids := map[string]bool{}
	for path, item := range doc.Paths {
		for method, operation := range item {
			described = append(described, strings.ToUpper(method)+" "+path)
			if operation.Summary == "" || ids[operation.ID] {
				t.Errorf("%s %s has the id %q and the summary %q", method, path, operation.ID, operation.Summary)
			}
			ids[operation.ID] = true
		}
	}
	rest := regexp.MustCompile(`\{(\w+)\.\.\.\}`)
	other := regexp.MustCompile(`^GET /(healthz|readyz|metrics|\{\$\}|console/\{file\})$`)
	var served []string
	for _, pattern := range app.Routes() {
		if !other.MatchString(pattern) {
			served = append(served, rest.ReplaceAllString(pattern, "{$1}"))
		}
	}
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("the document has %q, the table %q", described, served)
	}
}
