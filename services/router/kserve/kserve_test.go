package kserve_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/kserve"
)

func call(b *httpapitest.Backend, method, path, body string) (int, string) {
	return httpapitest.Record(httpapi.Mux(kserve.Routes(b, kserve.Options{})), method, path, body)
}

func TestRoutes_Answers(t *testing.T) {
	b := &httpapitest.Backend{
		Pieces: []string{"a", "b"}, Rest: "!", Adapters: []*routerv1.Adapter{{Name: "sql", Digest: "sha256:2"}},
	}
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/v2", "", `{"name":"lamina","version":"2","extensions":["binary_tensor_data"]}`},
		{"GET", "/v2/health/live", "", `{"live":true}`},
		{"GET", "/v2/health/ready", "", `{"ready":true}`},
		{"GET", "/v2/models/m/ready", "", `{"name":"m","ready":true}`},
		{"GET", "/v2/models/m:sql/ready", "", `{"name":"m:sql","ready":true}`},
		{"GET", "/v2/models/m", "", `{"name":"m","versions":["sha256:1"],"platform":"lamina","inputs":[{"name":"text_input",
			"datatype":"BYTES","shape":[-1]}],"outputs":[{"name":"text_output","datatype":"BYTES","shape":[-1]}]}`},
		{"POST", "/v2/models/m/infer", `{"id":"7","parameters":{"max_tokens":5,"temperature":0,"seed":3,"stop":"X"},"inputs":[
			{"name":"text_input","datatype":"BYTES","shape":[2],"data":["p","q"]}],"outputs":[{"name":"text_output"}]}`,
			`{"id":"7","model_name":"m","outputs":[{"name":"text_output","datatype":"BYTES","shape":[2],"data":["ab!","ab!"]}]}`},
	} {
		status, text := call(b, c.method, c.path, c.body)
		if status != 200 {
			t.Fatalf("%s: %d %s", c.path, status, text)
		}
		httpapitest.SameJSON(t, c.path, text, c.want)
	}
	all := b.Generations()
	if len(all) != 2 {
		t.Fatalf("%d generations", len(all))
	}
	if r := all[1]; r.GetText() != "q" || r.GetMaxTokens() != 5 || r.GetSampling().GetSeed() != 3 ||
		r.GetStop()[0] != "X" || r.GetSampling().Temperature == nil {
		t.Errorf("the request is %v", r)
	}
}

func TestRoutes_Errors(t *testing.T) {
	const input = `"inputs":[{"name":"text_input","datatype":"BYTES","shape":[1],"data":["p"]}]`
	full := fault.New(fault.Unavailable, "full")
	for _, c := range []struct {
		method, path, body string
		fail               error
		status             int
		want               string
	}{
		{"GET", "/v2/models/other", "", nil, 404, `find model`},
		{"GET", "/v2/models/other/ready", "", nil, 404, `find model`},
		{"GET", "/v2/health/ready", "", full, 503, `full`},
		{"POST", "/v2/models/m/infer", `{`, nil, 400, `body: `},
		{"POST", "/v2/models/m/infer", `{}`, nil, 400, `inputs: want one`},
		{"POST", "/v2/models/m/infer", `{"inputs":[{"name":"text_input","datatype":"FP32","shape":[1],"data":["x"]}]}`, nil, 400,
			`inputs[0].datatype: `},
		{"POST", "/v2/models/m/infer", `{"inputs":[{"name":"text_input","datatype":"BYTES","shape":[2],"data":["x"]}]}`, nil, 400,
			`inputs[0].shape: `},
		{"POST", "/v2/models/m/infer", `{"parameters":{"x":1},` + input + `}`, nil, 400, `parameters.x: is not supported`},
		{"POST", "/v2/models/m/infer", `{"parameters":{"top_k":"x"},` + input + `}`, nil, 400, `parameters.top_k: want`},
		{"POST", "/v2/models/m/infer", `{"parameters":{"max_tokens":0},` + input + `}`, nil, 400, `parameters.max_tokens: 0`},
		{"POST", "/v2/models/m/infer", `{"outputs":[{"name":"x"}],` + input + `}`, nil, 400, `outputs: `},
		{"POST", "/v2/models/m/infer", `{` + input + `}`, fault.Field("sampling.top_p", "bad"), 400, `parameters.top_p: bad`},
		{"POST", "/v2/models/m/infer", `{` + input + `}`, fault.Field("stop[0]", "bad"), 400, `"parameters.stop: bad`},
		{"POST", "/v2/models/m/infer", `{` + input + `}`, fault.Field("max_tokens", "bad"), 400, `"parameters.max_tokens: bad`},
		{"POST", "/v2/models/m/infer", `{` + input + `}`, fault.Field("prompt", "bad"), 400, `"inputs[0].data: bad`},
		{"PUT", "/v2/health/live", "", nil, 405, `use GET`},
	} {
		status, text := call(&httpapitest.Backend{Fail: c.fail}, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(text, c.want) || !strings.HasPrefix(text, `{"error":"`) {
			t.Errorf("%s %s: %d %s, want %d and %s", c.path, c.body, status, text, c.status, c.want)
		}
	}
}

func FuzzInfer(f *testing.F) {
	f.Add(
		`{"id":"7","parameters":{"max_tokens":5},"inputs":[{"name":"text_input","datatype":"BYTES","shape":[1],"data":["p"]}]}`,
	)
	f.Fuzz(func(t *testing.T, body string) {
		status, text := call(&httpapitest.Backend{}, http.MethodPost, "/v2/models/m/infer", body)
		if status >= 500 {
			t.Errorf("answers %d %s to %q", status, text, body)
		}
	})
}
