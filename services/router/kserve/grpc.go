package kserve

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	inferencev2 "github.com/lamina-mesh/lamina/pkg/gen/inference"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// GRPC is the API over gRPC: inference.GRPCInferenceService. Its errors are faults, which the server maps.
type GRPC struct {
	inferencev2.UnimplementedGRPCInferenceServiceServer
	backend Backend
	limit   time.Duration
}

// NewGRPC returns the service over gRPC. limit is how long the client of a stream may take to read an answer; 0 means
// httpapi.WriteTimeout.
func NewGRPC(b Backend, limit time.Duration) *GRPC {
	return &GRPC{backend: b, limit: cmp.Or(limit, httpapi.WriteTimeout)}
}

// Register registers the service with a gRPC server.
func (g *GRPC) Register(r grpc.ServiceRegistrar) {
	inferencev2.RegisterGRPCInferenceServiceServer(r, g)
}

// ServerLive answers that the server runs.
func (g *GRPC) ServerLive(context.Context, *inferencev2.ServerLiveRequest) (*inferencev2.ServerLiveResponse, error) {
	return &inferencev2.ServerLiveResponse{Live: true}, nil
}

// ServerReady tells whether requests can be served.
func (g *GRPC) ServerReady(
	context.Context, *inferencev2.ServerReadyRequest,
) (*inferencev2.ServerReadyResponse, error) {
	return &inferencev2.ServerReadyResponse{Ready: g.backend.Ready() == nil}, nil
}

// ServerMetadata describes the server.
func (g *GRPC) ServerMetadata(
	context.Context, *inferencev2.ServerMetadataRequest,
) (*inferencev2.ServerMetadataResponse, error) {
	return &inferencev2.ServerMetadataResponse{Name: "lamina", Version: "2"}, nil
}

// ModelReady tells whether a model is served.
func (g *GRPC) ModelReady(
	ctx context.Context, r *inferencev2.ModelReadyRequest,
) (*inferencev2.ModelReadyResponse, error) {
	_, err := find(ctx, g.backend, r.GetName(), r.GetVersion())
	if err != nil && fault.CodeOf(err) != fault.NotFound {
		return nil, err
	}
	return &inferencev2.ModelReadyResponse{Ready: err == nil}, nil
}

// ModelMetadata describes a model.
func (g *GRPC) ModelMetadata(
	ctx context.Context, r *inferencev2.ModelMetadataRequest,
) (*inferencev2.ModelMetadataResponse, error) {
	m, err := find(ctx, g.backend, r.GetName(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	tensor := func(name string) []*inferencev2.ModelMetadataResponse_TensorMetadata {
		return []*inferencev2.ModelMetadataResponse_TensorMetadata{{Name: name, Datatype: datatype, Shape: []int64{-1}}}
	}
	return &inferencev2.ModelMetadataResponse{Name: r.GetName(), Versions: []string{m.GetDigest()}, Platform: "lamina",
		Inputs: tensor(inputName), Outputs: tensor(outputName)}, nil
}

// ModelInfer continues prompts.
func (g *GRPC) ModelInfer(
	ctx context.Context, r *inferencev2.ModelInferRequest,
) (*inferencev2.ModelInferResponse, error) {
	c, err := readInfer(r)
	if err != nil {
		return nil, err
	}
	base, err := g.base(ctx, r, c)
	if err != nil {
		return nil, err
	}
	texts, started, err := generateAll(ctx, g.backend, base, c.Inputs[0].Data, tellLoading(func(md metadata.MD) error {
		return grpc.SendHeader(ctx, md)
	}), nil)
	if err != nil {
		return nil, named(err)
	}
	return answer(r, started, texts), nil
}

// loadingHeader says in the header of a call how far the loading of its model was when it began to wait for it. The
// protocol has no message for it, and no further header.
const loadingHeader = "lamina-model-loading"

// tellLoading returns a function that sends the first report as the header of a call. Its client sees that the server
// works at the request, and its own deadline bounds the wait. A header that has been sent before, of an earlier request
// of a stream, is no error.
func tellLoading(send func(metadata.MD) error) func(*routerv1.ModelLoading) error {
	told := false
	return func(m *routerv1.ModelLoading) error {
		if !told {
			told = true
			_ = send(metadata.Pairs(loadingHeader, fmt.Sprintf("%d of %d bytes", m.GetDoneBytes(), m.GetTotalBytes())))
		}
		return nil
	}
}

// ModelStreamInfer answers the requests of a stream in their order. The server has let in the first one; each further
// one needs a key that is still valid and counts in the caller's budget of requests.
func (g *GRPC) ModelStreamInfer(
	stream grpc.BidiStreamingServer[inferencev2.ModelInferRequest, inferencev2.ModelStreamInferResponse],
) error {
	caller := auth.From(stream.Context())
	stream = limited{stream, g.limit}
	for first := true; ; first = false {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !first && caller != nil {
			if err := caller.Check(); err != nil {
				return err
			}
			if err := caller.Meter().Begin(); err != nil {
				if err := stream.Send(refusal(r, err)); err != nil {
					return err
				}
				continue
			}
		}
		if err := g.streamOne(stream, r); err != nil {
			return err
		}
	}
}

// limited is a stream whose client is disconnected if it does not read: its request holds KV pages.
type limited struct {
	grpc.BidiStreamingServer[inferencev2.ModelInferRequest, inferencev2.ModelStreamInferResponse]
	limit time.Duration
}

// Send sends an answer. The call has to end after an error.
func (l limited) Send(r *inferencev2.ModelStreamInferResponse) error {
	sent := make(chan error, 1)
	go func() { sent <- l.BidiStreamingServer.Send(r) }() // ends with the call at the latest
	timer := time.NewTimer(l.limit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		return fault.New(fault.DeadlineExceeded, "send answer: the client has read nothing for %v", l.limit)
	}
}

// streamOne answers one request of a stream. It returns an error only if the stream has broken.
func (g *GRPC) streamOne(
	stream grpc.BidiStreamingServer[inferencev2.ModelInferRequest, inferencev2.ModelStreamInferResponse],
	r *inferencev2.ModelInferRequest,
) error {
	var lost error // of sending
	var begun *routerv1.Started
	send := func(started *routerv1.Started, texts []string, final bool) error {
		out := answer(r, started, texts)
		if final {
			out.Parameters = map[string]*inferencev2.InferParameter{
				"triton_final_response": {ParameterChoice: &inferencev2.InferParameter_BoolParam{BoolParam: true}},
			}
		}
		lost = stream.Send(&inferencev2.ModelStreamInferResponse{InferResponse: out})
		return lost
	}
	c, err := readInfer(r)
	var base *routerv1.GenerateRequest
	if err == nil {
		base, err = g.base(stream.Context(), r, c)
	}
	if err == nil {
		shown := 0 // bytes of the only text that have been sent
		var piece func(*routerv1.Started, string) error
		if len(c.Inputs[0].Data) == 1 {
			piece = func(started *routerv1.Started, text string) error {
				if begun = started; text == "" {
					return nil
				}
				shown += len(text)
				return send(started, []string{text}, false)
			}
		}
		var texts []string
		var started *routerv1.Started
		loading := tellLoading(stream.SendHeader)
		if texts, started, err = generateAll(stream.Context(), g.backend, base, c.Inputs[0].Data, loading,
			piece); err == nil {
			if len(texts) == 1 {
				texts[0] = texts[0][shown:]
			}
			return send(started, texts, true)
		}
	}
	if lost != nil {
		return lost
	}
	if stream.Context().Err() != nil {
		return err
	}
	failed := refusal(r, err)
	if begun != nil {
		failed.InferResponse.ModelName = begun.GetModel()
	}
	return stream.Send(failed)
}

// base returns the request of each prompt, without the prompt. It refuses a version that the model does not have.
func (g *GRPC) base(
	ctx context.Context, r *inferencev2.ModelInferRequest, c *inferRequest,
) (*routerv1.GenerateRequest, error) {
	if r.GetModelVersion() != "" {
		if _, err := find(ctx, g.backend, r.GetModelName(), r.GetModelVersion()); err != nil {
			return nil, err
		}
	}
	return c.base(r.GetModelName())
}

// refusal returns an error as the answer to a request of a stream.
func refusal(r *inferencev2.ModelInferRequest, err error) *inferencev2.ModelStreamInferResponse {
	return &inferencev2.ModelStreamInferResponse{ErrorMessage: named(err).Error(),
		InferResponse: &inferencev2.ModelInferResponse{Id: r.GetId(), ModelName: r.GetModelName()}}
}

// answer returns texts as a response, in the form of the request's input.
func answer(
	r *inferencev2.ModelInferRequest, started *routerv1.Started, texts []string,
) *inferencev2.ModelInferResponse {
	tensor := &inferencev2.ModelInferResponse_InferOutputTensor{
		Name: outputName, Datatype: datatype, Shape: r.GetInputs()[0].GetShape(),
	}
	out := &inferencev2.ModelInferResponse{ModelName: started.GetModel(), ModelVersion: started.GetDigest(),
		Id: r.GetId(), Outputs: []*inferencev2.ModelInferResponse_InferOutputTensor{tensor}}
	if len(r.GetRawInputContents()) > 0 {
		out.RawOutputContents = [][]byte{packTexts(texts)}
		return out
	}
	tensor.Contents = &inferencev2.InferTensorContents{}
	for _, text := range texts {
		tensor.Contents.BytesContents = append(tensor.Contents.BytesContents, []byte(text))
	}
	return out
}

// readInfer returns the request in the form of the REST API.
func readInfer(r *inferencev2.ModelInferRequest) (*inferRequest, error) {
	c := &inferRequest{Parameters: map[string]json.RawMessage{}}
	for name, p := range r.GetParameters() {
		var v any
		switch p := p.GetParameterChoice().(type) {
		case *inferencev2.InferParameter_BoolParam:
			v = p.BoolParam
		case *inferencev2.InferParameter_Int64Param:
			v = p.Int64Param
		case *inferencev2.InferParameter_StringParam:
			v = p.StringParam
		case *inferencev2.InferParameter_DoubleParam:
			v = p.DoubleParam
		case *inferencev2.InferParameter_Uint64Param:
			v = p.Uint64Param
		}
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fault.Field("parameters."+name, "want a finite number")
		}
		c.Parameters[name] = text
	}
	for i, in := range r.GetInputs() {
		t := tensor{Name: in.GetName(), Datatype: in.GetDatatype()}
		for _, d := range in.GetShape() {
			t.Shape = append(t.Shape, int(min(d, maxPrompts+1)))
		}
		for _, text := range in.GetContents().GetBytesContents() {
			t.Data = append(t.Data, string(text))
		}
		if i < len(r.GetRawInputContents()) {
			var err error
			if t.Data, err = unpackTexts("raw_input_contents", r.GetRawInputContents()[i]); err != nil {
				return nil, err
			}
		}
		c.Inputs = append(c.Inputs, t)
	}
	for _, o := range r.GetOutputs() {
		c.Outputs = append(c.Outputs, output{Name: o.GetName()})
	}
	_, err := c.prompts()
	return c, err
}

// named gives the backend's fields in err the names that this API has for them.
func named(err error) error {
	var f *fault.Error
	for cause := err; errors.As(cause, &f); cause = f.Err {
		if name := apiField(f.Field); name != f.Field {
			renamed := *f
			renamed.Field = strings.Replace(name, ".data", ".contents", 1)
			return &renamed
		}
	}
	return err
}
