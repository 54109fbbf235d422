package openapi_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/openapi"
)

type inner struct {
	Deep []int `json:"deep"`
}

type common struct {
	Model string `json:"model"`
}

type body struct {
	common
	Most   *int64           `json:"most,omitempty"`
	Any    json.RawMessage  `json:"any"`
	Inner  *inner           `json:"inner"`
	Bias   map[string]bool  `json:"bias"`
	Hidden string           `json:"-"`
	hidden map[string]inner //nolint:unused // no part of the document
}

func TestDocument_HasEachRouteWithItsBody(t *testing.T) {
	var failed error
	apis := []httpapi.API{{Name: "a", Routes: []httpapi.Route{
		{Method: "POST", Path: "/x", Summary: "S", Body: body{}, Stream: httpapi.EventStream},
		{Method: "GET", Path: "/x/{id...}"}, {Method: "DELETE", Path: "/x/{id}"},
	}}}
	h := httpapi.Mux(openapi.Routes(apis, func(_ http.ResponseWriter, err error) { failed = err }, nil))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			ID         string `json:"operationId"`
			Summary    string
			Parameters []struct{ Name, In string }
			Body       struct {
				Content map[string]struct{ Schema any }
			} `json:"requestBody"`
			Responses map[string]struct{ Content map[string]any }
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || failed != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%v, %v in %s", err, failed, w.Body)
	}
	post := doc.Paths["/x"]["post"]
	if post.ID != "post_x" || post.Summary != "S" || post.Responses["200"].Content["text/event-stream"] == nil {
		t.Errorf("the operation is %+v", post)
	}
	want := map[string]any{"type": "object", "properties": map[string]any{
		"model": map[string]any{"type": "string"}, "most": map[string]any{"type": "integer"}, "any": map[string]any{},
		"bias": map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "boolean"}},
		"inner": map[string]any{"type": "object", "properties": map[string]any{
			"deep": map[string]any{"type": "array", "items": map[string]any{"type": "integer"}}}},
	}}
	if got := post.Body.Content["application/json"].Schema; !reflect.DeepEqual(got, want) {
		t.Errorf("the body is %v", got)
	}
	for _, method := range []string{"get", "delete"} {
		if p := doc.Paths["/x/{id}"][method].Parameters; len(p) != 1 || p[0].Name != "id" || p[0].In != "path" {
			t.Errorf("the parameters of %s are %v", method, p)
		}
	}
	if doc.Paths["/openapi.json"]["get"].ID == "" {
		t.Error("the document does not describe itself")
	}
}
