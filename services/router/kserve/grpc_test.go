package kserve_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	inferencev2 "github.com/lamina-mesh/lamina/pkg/gen/inference"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
	"github.com/lamina-mesh/lamina/services/router/kserve"
)

// dial serves the service and returns a client of it.
func dial(t *testing.T, b kserve.Backend) inferencev2.GRPCInferenceServiceClient {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := rpc.NewServer(rpc.ServerOptions{})
	kserve.NewGRPC(b, 0).Register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return listener.DialContext(ctx)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return inferencev2.NewGRPCInferenceServiceClient(conn)
}

// ask returns a request with prompts, in binary form as Triton's clients send them, or not.
func ask(raw bool, prompts ...string) *inferencev2.ModelInferRequest {
	in := &inferencev2.ModelInferRequest_InferInputTensor{Name: "text_input", Datatype: "BYTES",
		Shape: []int64{int64(len(prompts))}}
	r := &inferencev2.ModelInferRequest{ModelName: "m", Id: "7",
		Inputs: []*inferencev2.ModelInferRequest_InferInputTensor{in}}
	var packed []byte
	var list [][]byte
	for _, p := range prompts {
		packed = append(append(packed, byte(len(p)), 0, 0, 0), p...)
		list = append(list, []byte(p))
	}
	if raw {
		r.RawInputContents = [][]byte{packed}
	} else {
		in.Contents = &inferencev2.InferTensorContents{BytesContents: list}
	}
	return r
}

// texts returns the elements of the output.
func texts(t *testing.T, r *inferencev2.ModelInferResponse) (out []string) {
	t.Helper()
	if len(r.GetOutputs()) != 1 || r.GetOutputs()[0].GetName() != "text_output" ||
		r.GetOutputs()[0].GetDatatype() != "BYTES" {
		t.Fatalf("the outputs are %v", r.GetOutputs())
	}
	for _, text := range r.GetOutputs()[0].GetContents().GetBytesContents() {
		out = append(out, string(text))
	}
	for _, raw := range r.GetRawOutputContents() {
		for len(raw) > 0 {
			n := int(raw[0])
			out, raw = append(out, string(raw[4:4+n])), raw[4+n:]
		}
	}
	return out
}

func TestGRPC_Describes(t *testing.T) {
	c := dial(t, &httpapitest.Backend{})
	ctx := t.Context()
	live, err1 := c.ServerLive(ctx, &inferencev2.ServerLiveRequest{})
	ready, err2 := c.ServerReady(ctx, &inferencev2.ServerReadyRequest{})
	server, err3 := c.ServerMetadata(ctx, &inferencev2.ServerMetadataRequest{})
	if err := errors.Join(err1, err2, err3); err != nil || !live.GetLive() || !ready.GetReady() ||
		server.GetName() != "lamina" {
		t.Errorf("got %v, %v, %v: %v", live, ready, server, err)
	}
	for name, want := range map[string]bool{"m": true, "sha256:1": true, "other": false} {
		got, err := c.ModelReady(ctx, &inferencev2.ModelReadyRequest{Name: name})
		if err != nil || got.GetReady() != want {
			t.Errorf("model %s is ready: %v, %v", name, got, err)
		}
	}
	got, err := c.ModelReady(ctx, &inferencev2.ModelReadyRequest{Name: "m", Version: "sha256:2"})
	if err != nil || got.GetReady() {
		t.Errorf("another version is ready: %v, %v", got, err)
	}
	m, err := c.ModelMetadata(ctx, &inferencev2.ModelMetadataRequest{Name: "m"})
	if err != nil || m.GetVersions()[0] != "sha256:1" || m.GetInputs()[0].GetName() != "text_input" ||
		m.GetOutputs()[0].GetShape()[0] != -1 {
		t.Errorf("the model is %v, %v", m, err)
	}
	if _, err := c.ModelMetadata(ctx, &inferencev2.ModelMetadataRequest{Name: "x"}); status.Code(err) !=
		codes.NotFound {
		t.Errorf("an unknown model: %v", err)
	}
	for version, want := range map[string]codes.Code{"sha256:1": codes.OK, "sha256:2": codes.NotFound} {
		r := ask(false, "p")
		r.ModelVersion = version
		if _, err := c.ModelInfer(ctx, r); status.Code(err) != want {
			t.Errorf("a request for version %s: got %v, want %v", version, err, want)
		}
	}
	c = dial(t, &httpapitest.Backend{Fail: fault.New(fault.Unavailable, "full")})
	if ready, err := c.ServerReady(ctx, &inferencev2.ServerReadyRequest{}); err != nil || ready.GetReady() {
		t.Errorf("without a pipeline: %v, %v", ready, err)
	}
}

func TestGRPC_Infers(t *testing.T) {
	b := &httpapitest.Backend{Pieces: []string{"a", "", "b"}, Rest: "!"}
	c := dial(t, b)
	for _, raw := range []bool{false, true} {
		r := ask(raw, "p", "qq")
		r.Parameters = map[string]*inferencev2.InferParameter{
			"max_tokens":  {ParameterChoice: &inferencev2.InferParameter_Int64Param{Int64Param: 5}},
			"temperature": {ParameterChoice: &inferencev2.InferParameter_DoubleParam{DoubleParam: 0.5}},
			"seed":        {ParameterChoice: &inferencev2.InferParameter_Uint64Param{Uint64Param: 3}},
			"stop":        {ParameterChoice: &inferencev2.InferParameter_StringParam{StringParam: "X"}},
		}
		out, err := c.ModelInfer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := texts(t, out); !reflect.DeepEqual(got, []string{"ab!", "ab!"}) || out.GetModelName() != "m" ||
			out.GetId() != "7" || raw != (len(out.GetRawOutputContents()) > 0) {
			t.Errorf("got %v", out)
		}
	}
	last := b.Generations()[3]
	if last.GetText() != "qq" || last.GetMaxTokens() != 5 || last.GetSampling().GetTemperature() != 0.5 ||
		last.GetSampling().GetSeed() != 3 || last.GetStop()[0] != "X" {
		t.Errorf("the request is %v", last)
	}
}

func TestGRPC_StreamsPieces(t *testing.T) {
	c := dial(t, &httpapitest.Backend{Pieces: []string{"a", "", "b"}, Rest: "!"})
	stream, err := c.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := ask(true, "p")
	bad.Inputs[0].Datatype = "FP32"
	for _, r := range []*inferencev2.ModelInferRequest{ask(true, "p"), bad, ask(false, "p", "q")} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.GetErrorMessage() != "" {
			got = append(got, "error "+e.GetErrorMessage())
			continue
		}
		line := strings.Join(texts(t, e.GetInferResponse()), ",")
		if e.GetInferResponse().GetParameters()["triton_final_response"].GetBoolParam() {
			line += " final"
		}
		got = append(got, line)
	}
	want := []string{"a", "b", "! final", `error inputs[0].datatype: "FP32" is not supported, only BYTES is`,
		"ab!,ab! final"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// script is a stream whose client sends a list of requests.
type script struct {
	grpc.ServerStream
	ctx context.Context
	in  []*inferencev2.ModelInferRequest
	out []string // the final answers and errors
}

func (s *script) Context() context.Context { return s.ctx }

func (s *script) Recv() (*inferencev2.ModelInferRequest, error) {
	if len(s.in) == 0 {
		return nil, io.EOF
	}
	r := s.in[0]
	s.in = s.in[1:]
	return r, nil
}

func (s *script) Send(r *inferencev2.ModelStreamInferResponse) error {
	switch {
	case r.GetErrorMessage() != "":
		s.out = append(s.out, r.GetErrorMessage())
	case r.GetInferResponse().GetParameters()["triton_final_response"].GetBoolParam():
		s.out = append(s.out, "answer")
	}
	return nil
}

// unread is a script whose client reads nothing: once its window is full, Send waits for the end of the call.
type unread struct{ *script }

func (s unread) Send(*inferencev2.ModelStreamInferResponse) error {
	<-s.ctx.Done()
	return s.ctx.Err()
}

// A client that reads nothing is disconnected, since its request would hold KV pages for ever.
func TestGRPC_StreamThatIsNotReadEnds(t *testing.T) {
	for limit, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, 0: httpapi.WriteTimeout} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended, b := make(chan error, 1), &httpapitest.Backend{Pieces: []string{"a", "b"}}
			s := unread{&script{ctx: ctx, in: []*inferencev2.ModelInferRequest{ask(true, "p"), ask(true, "p")}}}
			go func() { ended <- kserve.NewGRPC(b, limit).ModelStreamInfer(s) }()
			begin, most := time.Now(), time.NewTimer(time.Hour)
			defer most.Stop()
			select {
			case err := <-ended:
				if took := time.Since(begin); fault.CodeOf(err) != fault.DeadlineExceeded || took != want {
					t.Errorf("after %v: %v", took, err)
				}
			case <-most.C:
				t.Error("the stream does not end")
			}
			if n := len(b.Generations()); n != 1 {
				t.Errorf("%d requests have run", n)
			}
		})
	}
}

func TestGRPC_EachRequestOfAStreamCounts(t *testing.T) {
	meter := auth.NewMeter(1, 0, func() time.Time { return time.Unix(1000, 0) })
	revoked := false
	caller := (&auth.Grant{ID: "token:a"}).Principal(meter, func() error {
		if revoked {
			return fault.New(fault.Unauthenticated, "check token: it is revoked")
		}
		return nil
	})
	b := &httpapitest.Backend{Pieces: []string{"a"}}
	s := &script{ctx: auth.WithPrincipal(t.Context(), caller),
		in: []*inferencev2.ModelInferRequest{ask(true, "p"), ask(true, "p"), ask(true, "p")}}
	if err := kserve.NewGRPC(b, 0).ModelStreamInfer(s); err != nil {
		t.Fatal(err)
	}
	if len(s.out) != 3 || s.out[1] != "answer" || !strings.Contains(s.out[2], "budget of 1 request a minute") ||
		len(b.Generations()) != 2 {
		t.Errorf("got %q after the server has let in one request and the budget has one more", s.out)
	}
	revoked = true
	s.in = []*inferencev2.ModelInferRequest{ask(true, "p"), ask(true, "p")}
	if err := kserve.NewGRPC(b, 0).ModelStreamInfer(s); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("a token that is revoked while the stream is open: got %v", err)
	}
}

func TestGRPC_NamesWhatIsWrong(t *testing.T) {
	two := ask(false, "p")
	two.Inputs = append(two.Inputs, two.GetInputs()[0])
	torn := ask(true, "p")
	torn.RawInputContents[0] = torn.GetRawInputContents()[0][:3]
	long := ask(true, "p")
	long.RawInputContents[0][0] = 200
	odd := ask(false, "p")
	odd.Parameters = map[string]*inferencev2.InferParameter{"x": {}}
	shape := ask(false, "p")
	shape.Inputs[0].Shape = []int64{1 << 62, 1 << 62}
	named := ask(false, "p")
	named.Outputs = []*inferencev2.ModelInferRequest_InferRequestedOutputTensor{{Name: "y"}}
	for _, tc := range []struct {
		r    *inferencev2.ModelInferRequest
		fail error
		want string
	}{
		{&inferencev2.ModelInferRequest{}, nil, "inputs: "}, {two, nil, "inputs: "},
		{torn, nil, "raw_input_contents: byte 0"}, {long, nil, "raw_input_contents: byte 4"},
		{odd, nil, "parameters.x: "}, {shape, nil, "inputs[0].shape: "},
		{named, nil, "outputs: "}, {ask(false, strings.Split(strings.Repeat("p", 17), "")...), nil, "inputs[0].shape: "},
		{ask(false, "p"), fault.Field("sampling.top_p", "bad"), "parameters.top_p: bad"},
		{ask(true, "p\xff"), nil, "inputs[0].data: element 0 is not UTF-8"},
		{ask(false, "p", "\xff"), nil, "inputs[0].data: element 1 is not UTF-8"},
		{ask(false, "p"), fault.Field("prompt", "bad"), "inputs[0].contents: bad"},
	} {
		_, err := dial(t, &httpapitest.Backend{Fail: tc.fail}).ModelInfer(t.Context(), tc.r)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), tc.want) {
			t.Errorf("%v: got %v, want %s", tc.r, err, tc.want)
		}
	}
}

func TestRoutes_BinaryTensors(t *testing.T) {
	b := &httpapitest.Backend{Pieces: []string{"a", "b"}}
	mux := httpapi.Mux(kserve.Routes(b, kserve.Options{}))
	const head = `{"parameters":{"binary_data_output":true},"inputs":[{"name":"text_input","datatype":"BYTES",` +
		`"shape":[2],"parameters":{"binary_data_size":11}}]}`
	const body = "\x01\x00\x00\x00p\x02\x00\x00\x00qq"
	send := func(size string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/v2/models/m/infer", strings.NewReader(head+body))
		r.Header.Set("Inference-Header-Content-Length", size)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
	w := send(strconv.Itoa(len(head)))
	if w.Code != 200 || !strings.HasSuffix(w.Body.String(), "\x02\x00\x00\x00ab\x02\x00\x00\x00ab") ||
		w.Header().Get("Inference-Header-Content-Length") == "" ||
		!strings.Contains(w.Body.String(), `"parameters":{"binary_data_size":12}`) {
		t.Errorf("got %d %q, %v", w.Code, w.Body, w.Header())
	}
	if all := b.Generations(); len(all) != 2 || all[1].GetText() != "qq" {
		t.Errorf("the requests are %v", all)
	}
	for text, want := range map[string]string{strconv.Itoa(len(head) + 1): "body", strconv.Itoa(len(head) - 1): "body",
		"x": "Inference-Header", "-1": "Inference-Header", "1000": "Inference-Header"} {
		w := send(text)
		if w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s bytes of JSON: got %d %s, want %s", text, w.Code, w.Body, want)
		}
	}
}

func FuzzGRPC_Texts(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00p"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := ask(true, "p")
		r.RawInputContents[0] = raw
		out, err := kserve.NewGRPC(&httpapitest.Backend{Pieces: []string{"a"}}, 0).ModelInfer(t.Context(), r)
		if (err == nil) == (fault.CodeOf(err) == fault.Invalid) {
			t.Errorf("%q: %v, %v", raw, out, err)
		}
	})
}

// The header of a call says that its model is being loaded, also while the answer is still awaited.
func TestGRPC_LoadingIsInTheHeader(t *testing.T) {
	b := &httpapitest.Backend{Pieces: []string{"a"}, Loading: []*routerv1.ModelLoading{
		{Model: "m", DoneBytes: 10, TotalBytes: 40}, {Model: "m", DoneBytes: 20, TotalBytes: 40}}}
	c := dial(t, b)
	var header metadata.MD
	if _, err := c.ModelInfer(t.Context(), ask(false, "x"), grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	want := []string{"10 of 40 bytes"}
	if got := header.Get("lamina-model-loading"); !reflect.DeepEqual(got, want) {
		t.Errorf("a call has %v", got)
	}
	stream, err := c.ModelStreamInfer(t.Context())
	if err == nil {
		err = stream.Send(ask(false, "x"))
	}
	if err == nil {
		header, err = stream.Header()
	}
	if got := header.Get("lamina-model-loading"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("a stream has %v, %v", got, err)
	}
	if err := stream.Send(ask(false, "y")); err != nil { // the header is sent already
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	answers := 0
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || r.GetErrorMessage() != "" {
			t.Fatalf("%v, %v", r, err)
		}
		if r.GetInferResponse().GetParameters()["triton_final_response"].GetBoolParam() {
			answers++
		}
	}
	if answers != 2 {
		t.Errorf("%d answers", answers)
	}
}
