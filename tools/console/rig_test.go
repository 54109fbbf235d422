package console_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/router/openai"
)

// rig serves the console over a mesh that tests write themselves, so that a picture has always the same contents.
type rig struct {
	*httptest.Server
	keys *auth.Keyring

	mu      sync.Mutex
	mesh    *routerv1.Mesh
	changed chan struct{}
	answer  string // what the model says, with its thoughts before "</think>"
	calls   bool   // the model calls a tool
	block   bool   // an answer does not end by itself
	asked   []*routerv1.ChatRequest
	pulls   []console.Pull
	loaded  []string
	runs    *trainer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{changed: make(chan struct{}), mesh: calmMesh(), answer: "Hello.", runs: newTrainer()}
	path := filepath.Join(t.TempDir(), "keys.json")
	for _, k := range []auth.Key{
		{Name: "operations", Roles: []auth.Role{auth.Operator, auth.User}},
		{Name: "website", Roles: []auth.Role{auth.User}, Models: []string{"smollm2-135m"}, Requests: 600, Tokens: 200_000},
		{Name: "nightly", Roles: []auth.Role{auth.Trainer}, Expires: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if _, _, err := auth.AddKey(path, k, time.Date(2026, 10, 3, 12, 0, 0, 0, time.UTC)); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := auth.OpenKeyring(path, auth.KeyringOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.keys = keys
	conn := r.runs.serve(t)
	api := console.Routes(r, console.Options{Guarded: true, Keys: keys, Store: (*modelStore)(r),
		Dial: func(string) (grpc.ClientConnInterface, error) { return conn, nil }})
	mux := httpapi.Mux(api, openai.Routes(r, openai.Options{}))
	mux.Handle("/", console.Pages())
	if dir := os.Getenv("LAMINA_CONSOLE_FILES"); dir != "" { // for work on the pages, without a build for each change
		mux.Handle("GET /console/", http.StripPrefix("/console/", http.FileServer(http.Dir(dir))))
	}
	r.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		_ = r.Config.Close() // ends the streams, which pages would open again
		r.Close()
	})
	return r
}

// set changes the mesh.
func (r *rig) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *rig) Watch(ctx context.Context, send func(*routerv1.Mesh) error) error {
	for {
		r.mu.Lock()
		mesh, changed := r.mesh, r.changed
		r.mu.Unlock()
		if err := send(mesh); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *rig) Trainers() []string { return []string{"trainer"} }

func (r *rig) LoadAdapter(
	_ context.Context, next func() (*routerv1.LoadAdapterRequest, error),
) (*routerv1.LoadAdapterResponse, error) {
	first, err := next()
	if err != nil {
		return nil, err
	}
	got := uint64(0)
	for got < first.GetOpen().GetSize() {
		frame, err := next()
		if err != nil {
			return nil, err
		}
		got += uint64(len(frame.GetData()))
	}
	a := &routerv1.Adapter{Name: first.GetOpen().GetName(), Model: "smollm2-135m", Rank: 16, Bytes: got, Pipelines: 2,
		LoadedMs: time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC).UnixMilli(), Digest: "sha256:abcdef0123456789"}
	r.set(func() {
		r.mesh = &routerv1.Mesh{Members: r.mesh.GetMembers(), Pipelines: r.mesh.GetPipelines(),
			Adapters: append(r.mesh.GetAdapters(), a)}
	})
	return &routerv1.LoadAdapterResponse{Adapter: a}, nil
}

func (r *rig) UnloadAdapter(
	context.Context, *routerv1.UnloadAdapterRequest,
) (*routerv1.UnloadAdapterResponse, error) {
	return &routerv1.UnloadAdapterResponse{}, nil
}

// modelStore is the rig as a store of models.
type modelStore rig

func (s *modelStore) Models() ([]console.StoredModel, error) {
	at := time.Date(2026, 11, 28, 8, 30, 0, 0, time.UTC)
	return []console.StoredModel{
		{Name: "smollm2-135m", Bytes: 92 << 20, Source: "/models/smollm2-135m.gguf", LastUsed: at, InUse: true},
		{Name: "qwen3-4b", Bytes: 2400 << 20, Source: "https://models.example/qwen3-4b/Q4_K_M.gguf", LastUsed: at,
			Loadable: true},
	}, nil
}

func (s *modelStore) Remove(context.Context, string) error { return nil }

func (s *modelStore) Load(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = append(s.loaded, name)
	return nil
}

func (s *modelStore) Pull(p console.PullRequest) (console.Pull, error) {
	if !strings.Contains(p.Source, "/") {
		return console.Pull{}, fault.Field("source", "%q is no repository OWNER/NAME", p.Source)
	}
	out := console.Pull{ID: "1", Source: p.Source, Name: "qwen3-8b", State: "running", Done: 1200 << 20, Total: 4900 << 20}
	(*rig)(s).set(func() { s.pulls = append(s.pulls, out) })
	return out, nil
}

func (s *modelStore) Watch(ctx context.Context, send func([]console.Pull) error) error {
	for {
		s.mu.Lock()
		pulls, changed := s.pulls, s.changed
		s.mu.Unlock()
		if err := send(pulls); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *modelStore) Cancel(id string) error {
	(*rig)(s).set(func() {
		for i := range s.pulls {
			if s.pulls[i].ID == id {
				s.pulls[i].State = "canceled"
			}
		}
	})
	return nil
}

func (r *rig) Models(context.Context) ([]*routerv1.Model, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mesh.GetPipelines()) == 0 {
		return nil, nil
	}
	return []*routerv1.Model{
		{Name: "smollm2-135m", Digest: "sha256:5d1e", Architecture: "llama", Layers: 30, Context: 8192, MaxContext: 8192,
			Vocab: 49152, Chat: true, Pipelines: 2},
		{Name: "lamina-tolstoy", Digest: "sha256:70f5", Architecture: "llama", Layers: 4, Context: 256, MaxContext: 256,
			Vocab: 2048, Pipelines: 1},
	}, nil
}

func (r *rig) Generate(
	ctx context.Context, req *routerv1.GenerateRequest, send func(*routerv1.GenerateResponse) error,
) error {
	return r.speak(ctx, " continues, and the war goes on.", 9, func(s *routerv1.Started, t *routerv1.TokenEvent,
		f *routerv1.Finished) error {
		switch {
		case s != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Started{Started: s}})
		case t != nil:
			return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Token{Token: t}})
		}
		return send(&routerv1.GenerateResponse{Event: &routerv1.GenerateResponse_Finished{Finished: f}})
	})
}

func (r *rig) Chat(ctx context.Context, req *routerv1.ChatRequest, send func(*routerv1.ChatResponse) error) error {
	r.mu.Lock()
	r.asked = append(r.asked, req)
	answer := r.answer
	if r.calls && req.GetToolsJson() != "" {
		answer = `<tool_call>` + "\n" + `{"name": "weather", "arguments": {"city": "Kazan"}}` + "\n" + `</tool_call>`
		r.calls = false
	}
	r.mu.Unlock()
	return r.speak(ctx, answer, 42, func(s *routerv1.Started, t *routerv1.TokenEvent, f *routerv1.Finished) error {
		switch {
		case s != nil:
			s.Format = &tokenizerv1.ChatFormat{Calls: "hermes", Reasoning: "think"}
			return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Started{Started: s}})
		case t != nil:
			return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Token{Token: t}})
		}
		return send(&routerv1.ChatResponse{Event: &routerv1.ChatResponse_Finished{Finished: f}})
	})
}

// speak sends a text token by token, with probabilities that depend on the text alone.
func (r *rig) speak(
	ctx context.Context, text string, prompt uint32,
	send func(*routerv1.Started, *routerv1.TokenEvent, *routerv1.Finished) error,
) error {
	if err := send(&routerv1.Started{RequestId: "request", Model: "smollm2-135m", Fingerprint: "f"}, nil, nil); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, uint64(len(text))))
	words := strings.SplitAfter(text, " ")
	for i, w := range words {
		p := math.Pow(random.Float64(), 0.4)*0.98 + 0.01
		t := &routerv1.TokenEvent{Text: w, Index: uint32(i), Logprob: float32(math.Log(p)),
			Top: []*routerv1.TopCandidate{{Text: w, Logprob: float32(math.Log(p))},
				{Text: "the ", Logprob: float32(math.Log((1 - p) * 0.6))}, {Text: "a ", Logprob: float32(math.Log((1 - p) * 0.2))}}}
		if err := send(nil, t, nil); err != nil {
			return err
		}
	}
	r.mu.Lock()
	block := r.block
	r.mu.Unlock()
	if block {
		<-ctx.Done()
		return ctx.Err()
	}
	return send(nil, nil, &routerv1.Finished{FinishReason: samplerv1.FinishReason_FINISH_REASON_STOP,
		Usage: &routerv1.Usage{PromptTokens: prompt, CompletionTokens: uint32(len(words)), CachedTokens: 16}})
}

func (r *rig) Resume(context.Context, *routerv1.ResumeRequest, func(*routerv1.ResumeResponse) error) error {
	return fault.New(fault.NotFound, "find request")
}

func (r *rig) Cancel(context.Context, string) error { return fault.New(fault.NotFound, "find request") }

func (r *rig) Embed(context.Context, *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error) {
	return nil, fault.New(fault.Unimplemented, "embed")
}

// calmMesh is two pipelines of one model over five hosts, and one of a small one.
func calmMesh() *routerv1.Mesh {
	const digest, small = "sha256:5d1e", "sha256:70f5"
	spans := [][2]uint32{{0, 12}, {12, 22}, {22, 30}}
	m := &routerv1.Mesh{}
	member := func(service, id, addr string, held ...*shardv1.Held) {
		m.Members = append(m.Members, &routerv1.Member{Id: id, Service: service, Address: addr, Held: held})
	}
	for i, name := range []string{"blue", "green"} {
		p := &routerv1.Pipeline{Id: fmt.Sprintf("%d7c2e4f09b", i+3), Model: "smollm2-135m", Digest: digest,
			Sampler: "10.0.0.9:7203", Running: uint32(4 - i), Waiting: uint32(i), TokensPerSecond: 61.4 - 7*float32(i),
			StepMs: 52.1, SlowStepMs: 81.7, KvPages: 512, KvPagesHeld: uint32(301 - 80*i), KvPagesCached: 122,
			PrefixQueries: 4000, PrefixHits: 2480, Bubble: 0.12, PredictedTokenMs: 47.5,
			Worst: map[bool]string{true: "stage 1 at shard-green-1"}[i == 1]}
		for j, s := range spans {
			addr := fmt.Sprintf("10.0.%d.%d:7101", i+1, j+1)
			p.Stages = append(p.Stages, &shardv1.Hop{Address: addr, Lo: s[0], Hi: s[1]})
			measured := 4.2 + float64(j)
			if i == 1 && j == 1 {
				measured = 9.9
			}
			p.Times = append(p.Times, &routerv1.StageTimes{Host: addr, PredictedMs: 4.4 + float64(j), MeasuredMs: measured,
				PredictedHopMs: 0.4, MeasuredHopMs: 0.31 + 0.2*float64(j)})
			member("shard", fmt.Sprintf("shard-%s-%d", name, j), addr, &shardv1.Held{Model: "smollm2-135m", Digest: digest,
				Lo: s[0], Hi: s[1], Layers: 30, KvPages: 512, KvPagesUsed: uint32(300 - 90*i), Sessions: uint32(4 - i),
				RowUs: 4200, WeightBytes: 30 << 20, Assigned: i == 1})
		}
		m.Pipelines = append(m.Pipelines, p)
	}
	m.Pipelines = append(m.Pipelines, &routerv1.Pipeline{Id: "9911aa", Model: "lamina-tolstoy", Digest: small,
		Sampler: "10.0.0.9:7203", StepMs: 1.8, KvPages: 64,
		Stages: []*shardv1.Hop{{Address: "10.0.3.1:7101", Lo: 0, Hi: 4}}})
	member("shard", "shard-small", "10.0.3.1:7101", &shardv1.Held{Model: "lamina-tolstoy", Digest: small, Hi: 4, Layers: 4,
		KvPages: 64, WeightBytes: 3 << 20})
	member("router", "router-1", "10.0.0.9:7070")
	member("sampler", "sampler-1", "10.0.0.9:7203")
	member("tokenizer", "tokenizer-1", "10.0.0.9:7201")
	member("trainer", "trainer-1", "10.0.0.9:7301")
	return m
}

// emptyMesh has no shards.
func emptyMesh() *routerv1.Mesh {
	return &routerv1.Mesh{Members: []*routerv1.Member{{Id: "router-1", Service: "router", Address: "10.0.0.9:7070"}}}
}

// failedMesh is the mesh some time later: one host is gone, and the other pipeline has its requests.
func failedMesh() *routerv1.Mesh {
	m := calmMesh()
	m.Members = append(m.GetMembers()[:1], m.GetMembers()[2:]...)
	m.Pipelines = m.GetPipelines()[1:]
	m.GetPipelines()[0].Running, m.GetPipelines()[0].Replayed = 7, 412
	return m
}

// trainer is a trainer with three runs.
type trainer struct {
	trainerv1.UnimplementedTrainerServiceServer
	mu    sync.Mutex
	list  []*trainerv1.Run
	files map[string]string // by run and name
}

func newTrainer() *trainer {
	began := time.Date(2026, 11, 30, 7, 0, 0, 0, time.UTC).UnixMilli()
	t := &trainer{files: map[string]string{}}
	for i, r := range []*trainerv1.Run{
		{Name: "tolstoy-wide", State: trainerv1.RunState_RUN_STATE_RUNNING, Step: 740, Steps: 1200, StartedMs: began + 2000,
			SecondsLeft: 1380, TokensPerSecond: 5210, Stages: 2, Replicas: 2, Members: 2, CheckpointStep: 600},
		{Name: "tolstoy-base", State: trainerv1.RunState_RUN_STATE_DONE, Step: 1200, Steps: 1200, StartedMs: began + 1000,
			TokensPerSecond: 6120, Stages: 1, Replicas: 2, Members: 2, CheckpointStep: 1200,
			ModelPath: "/var/lib/lamina/runs/tolstoy-base/model", WeightsDigest: "9f2c41d0a7b3e855"},
		{Name: "diverged", State: trainerv1.RunState_RUN_STATE_FAILED, Step: 130, Steps: 1200, StartedMs: began, Stages: 1,
			Replicas: 1, Error: "step 131: the loss is not finite"},
	} {
		r.Parameters, r.StepMs, r.Data = 2_100_000, 390-40*float64(i), "3,227,580 tokens of war-and-peace.txt"
		var lines, samples strings.Builder
		random := rand.New(rand.NewPCG(uint64(i), 7))
		for step := 1; step <= int(r.GetStep()); step++ {
			loss := 3.1 + 0.15*float64(i) + 4.4*math.Exp(-float64(step)/(90+30*float64(i))) + 0.08*random.NormFloat64()
			if i == 2 && step > 100 {
				loss += math.Pow(float64(step-100)/8, 2)
			}
			fmt.Fprintf(&lines, `{"step":%d,"loss":%.4f,"gradient_norm":%.4f,"learning_rate":%.6f,"step_ms":%.1f,`+
				`"tokens_per_second":%.1f`, step, loss, 0.8+2*math.Exp(-float64(step)/60)+0.1*random.Float64(),
				0.003*math.Min(1, float64(step)/100)*(0.55+0.45*math.Cos(math.Pi*float64(step)/1200)),
				r.GetStepMs()+8*random.NormFloat64(), 5600+120*random.NormFloat64())
			if step%100 == 0 {
				fmt.Fprintf(&lines, `,"validation_loss":%.4f`, loss+0.12)
				fmt.Fprintf(&samples, `{"step":%d,"prompt":"The prince","text":" was silent for a while, and step %d went by."}`+
					"\n", step, step)
				r.ValidationLoss = loss + 0.12
			}
			if r.GetStages() > 1 {
				fmt.Fprintf(&lines, `,"bubble":%.3f,"simulated_bubble":0.2`, 0.22+0.02*random.NormFloat64())
			}
			lines.WriteString("}\n")
			r.Loss = loss
		}
		t.files[r.GetName()+" metrics.jsonl"], t.files[r.GetName()+" samples.jsonl"] = lines.String(), samples.String()
		t.list = append(t.list, r)
	}
	return t
}

func (s *trainer) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	trainerv1.RegisterTrainerServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *trainer) ListRuns(context.Context, *trainerv1.ListRunsRequest) (*trainerv1.ListRunsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &trainerv1.ListRunsResponse{Runs: s.list}, nil
}

func (s *trainer) StartRun(_ context.Context, r *trainerv1.StartRunRequest) (*trainerv1.StartRunResponse, error) {
	if !strings.Contains(string(r.GetManifestJson()), `"text.txt"`) {
		return nil, rpc.ToStatus(fault.Field("data.text", "open missing.txt: no such file"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, &trainerv1.Run{Name: "from-scratch", State: trainerv1.RunState_RUN_STATE_STARTING, Steps: 300,
		StartedMs: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC).UnixMilli()})
	return &trainerv1.StartRunResponse{Run: "from-scratch"}, nil
}

func (s *trainer) StopRun(_ context.Context, r *trainerv1.StopRunRequest) (*trainerv1.StopRunResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, run := range s.list {
		if run.GetName() == r.GetRun() {
			stopped := &trainerv1.Run{Name: run.GetName(), State: trainerv1.RunState_RUN_STATE_STOPPED, Step: run.GetStep(),
				Steps: run.GetSteps(), Loss: run.GetLoss(), StartedMs: run.GetStartedMs()}
			s.list[i] = stopped
			return &trainerv1.StopRunResponse{Run: stopped}, nil
		}
	}
	return nil, rpc.ToStatus(fault.New(fault.NotFound, "find run"))
}

func (s *trainer) ListArtifacts(
	context.Context, *trainerv1.ListArtifactsRequest,
) (*trainerv1.ListArtifactsResponse, error) {
	return &trainerv1.ListArtifactsResponse{Artifacts: []*trainerv1.Artifact{{Name: "metrics.jsonl", Size: 120_000,
		ChangedMs: time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC).UnixMilli()}}}, nil
}

func (s *trainer) FetchArtifact(
	r *trainerv1.FetchArtifactRequest, stream grpc.ServerStreamingServer[trainerv1.FetchArtifactResponse],
) error {
	s.mu.Lock()
	text, ok := s.files[r.GetRun()+" "+r.GetName()]
	s.mu.Unlock()
	if !ok || r.GetOffset() > uint64(len(text)) {
		return rpc.ToStatus(fault.New(fault.NotFound, "find %s of run %s", r.GetName(), r.GetRun()))
	}
	return stream.Send(&trainerv1.FetchArtifactResponse{Artifact: &trainerv1.Artifact{Name: r.GetName()},
		Data: []byte(text[r.GetOffset():])})
}
