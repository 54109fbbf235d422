package console_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/console"
)

// trainer is a trainer with some runs and one file.
type trainer struct {
	trainerv1.UnimplementedTrainerServiceServer
	runs    []*trainerv1.Run
	started *trainerv1.StartRunRequest
	did     string
	file    string
	broken  bool                        // the file ends with an error
	list    func(context.Context) error // called by ListRuns; nil for nothing
}

func (s *trainer) ListRuns(ctx context.Context, _ *trainerv1.ListRunsRequest) (*trainerv1.ListRunsResponse, error) {
	if s.list != nil {
		if err := s.list(ctx); err != nil {
			return nil, err
		}
	}
	return &trainerv1.ListRunsResponse{Runs: s.runs}, nil
}

func (s *trainer) StartRun(
	_ context.Context, r *trainerv1.StartRunRequest,
) (*trainerv1.StartRunResponse, error) {
	if strings.Contains(string(r.GetManifestJson()), "bad") {
		return nil, rpc.ToStatus(fault.Field("steps", "want 1 or more, got 0"))
	}
	s.started = r
	return &trainerv1.StartRunResponse{Run: "new"}, nil
}

func (s *trainer) StopRun(_ context.Context, r *trainerv1.StopRunRequest) (*trainerv1.StopRunResponse, error) {
	s.did = "stop " + r.GetRun()
	return &trainerv1.StopRunResponse{Run: s.runs[0]}, nil
}

func (s *trainer) PauseRun(_ context.Context, r *trainerv1.PauseRunRequest) (*trainerv1.PauseRunResponse, error) {
	s.did = "pause " + r.GetRun()
	return &trainerv1.PauseRunResponse{Run: s.runs[0]}, nil
}

func (s *trainer) ResumeRun(
	_ context.Context, r *trainerv1.ResumeRunRequest,
) (*trainerv1.ResumeRunResponse, error) {
	s.did = "resume " + r.GetRun()
	return &trainerv1.ResumeRunResponse{Run: s.runs[0]}, nil
}

func (s *trainer) DeleteRun(
	_ context.Context, r *trainerv1.DeleteRunRequest,
) (*trainerv1.DeleteRunResponse, error) {
	s.did = "delete " + r.GetRun()
	return &trainerv1.DeleteRunResponse{Kept: "/elsewhere"}, nil
}

func (s *trainer) ListArtifacts(
	context.Context, *trainerv1.ListArtifactsRequest,
) (*trainerv1.ListArtifactsResponse, error) {
	return &trainerv1.ListArtifactsResponse{Artifacts: []*trainerv1.Artifact{{Name: "model/config.json", Size: 7}}}, nil
}

func (s *trainer) FetchArtifact(
	r *trainerv1.FetchArtifactRequest, stream grpc.ServerStreamingServer[trainerv1.FetchArtifactResponse],
) error {
	if r.GetName() != "sub/metrics.jsonl" {
		return rpc.ToStatus(fault.New(fault.NotFound, "find artifact %s", r.GetName()))
	}
	if r.GetOffset() > uint64(len(s.file)) {
		return rpc.ToStatus(fault.New(fault.OutOfRange, "offset %d", r.GetOffset()))
	}
	rest := s.file[r.GetOffset():]
	named := &trainerv1.FetchArtifactResponse{Artifact: &trainerv1.Artifact{Name: r.GetName()}}
	if err := stream.Send(named); err != nil {
		return err
	}
	for len(rest) > 0 {
		n := min(len(rest), 3)
		if err := stream.Send(&trainerv1.FetchArtifactResponse{Data: []byte(rest[:n])}); err != nil {
			return err
		}
		if rest = rest[n:]; s.broken {
			return rpc.ToStatus(fault.New(fault.DataLoss, "read file"))
		}
	}
	return nil
}

// start serves trainers and returns their addresses and how to dial them.
func start(t *testing.T, trainers ...*trainer) ([]string, func(string) (grpc.ClientConnInterface, error)) {
	t.Helper()
	var addrs []string
	for _, tr := range trainers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		trainerv1.RegisterTrainerServiceServer(s, tr)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.Serve(l)
		}()
		t.Cleanup(func() {
			s.Stop()
			<-done
		})
		addrs = append(addrs, l.Addr().String())
	}
	conns := map[string]*grpc.ClientConn{}
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return addrs, func(addr string) (grpc.ClientConnInterface, error) {
		if c := conns[addr]; c != nil {
			return c, nil
		}
		c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		conns[addr] = c
		return c, err
	}
}

func TestRuns_AreListedChangedAndTheirFilesSent(t *testing.T) {
	tr := &trainer{runs: []*trainerv1.Run{{Name: "r", Step: 1 << 40}}, file: "0123456789"}
	addrs, dial := start(t, tr)
	s := serve(t, &backend{trainers: addrs}, console.Options{Dial: dial})
	for _, c := range []struct {
		method, path, body, want, did string
		status                        int
	}{
		{"GET", "/api/runs", "", `"step":"1099511627776"`, "", 200},
		{"POST", "/api/runs", `{"manifest":{"name":"x"},"stages":2}`, `"run":"new"`, "", 202},
		{"POST", "/api/runs", `{"manifest":"{\"name\":\"y\"}"}`, `"run":"new"`, "", 202},
		{"POST", "/api/runs", `{"manifest":{"name":"bad"}}`, `"field":"steps"`, "", 400},
		{"POST", "/api/runs", `{}`, `"field":"manifest"`, "", 400},
		{"POST", "/api/runs/r/stop", `{}`, `"name":"r"`, "stop r", 200},
		{"POST", "/api/runs/r/pause", `{}`, `"name":"r"`, "pause r", 200},
		{"POST", "/api/runs/r/resume", `{"stages":2}`, `"name":"r"`, "resume r", 200},
		{"POST", "/api/runs/r/eat", `{}`, "", "resume r", 404},
		{"GET", "/api/runs/r/stop", "", "use POST", "resume r", 405},
		{"POST", "/api/runs/none/stop", `{}`, "no trainer knows it", "resume r", 404},
		{"DELETE", "/api/runs/r", "", "/elsewhere", "delete r", 200},
		{"GET", "/api/runs/r/files", "", "model/config.json", "delete r", 200},
		{"GET", "/api/runs/r/files/sub/metrics.jsonl", "", "0123456789", "delete r", 200},
		{"GET", "/api/runs/r/files/sub/metrics.jsonl?offset=4", "", "456789", "delete r", 200},
		{"GET", "/api/runs/r/files/sub/metrics.jsonl?offset=10", "", "", "delete r", 200},
		{"GET", "/api/runs/r/files/sub/metrics.jsonl?offset=x", "", `"field":"offset"`, "delete r", 400},
		{"GET", "/api/runs/r/files/sub/metrics.jsonl?offset=11", "", "offset 11", "delete r", 400},
		{"GET", "/api/runs/r/files/none", "", "find artifact", "delete r", 404},
	} {
		status, text := call(t, c.method, s.URL+c.path, c.body, nil)
		if status != c.status || !strings.Contains(text, c.want) || tr.did != c.did {
			t.Errorf("%s %s: %d %s; %s", c.method, c.path, status, text, tr.did)
		}
	}
	if got := string(tr.started.GetManifestJson()); got != `{"name":"y"}` {
		t.Errorf("the manifest is %q", got)
	}
}

func TestRuns_FileThatBreaksOffIsNotWhole(t *testing.T) {
	tr := &trainer{runs: []*trainerv1.Run{{Name: "r"}}, file: "0123456789", broken: true}
	addrs, dial := start(t, tr)
	s := serve(t, &backend{trainers: addrs}, console.Options{Dial: dial})
	resp, err := http.Get(s.URL + "/api/runs/r/files/sub/metrics.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", text, err)
	}
}

func TestRuns_TrainerThatLeadsARunIsAsked(t *testing.T) {
	leader := &trainer{runs: []*trainerv1.Run{{Name: "r", Epoch: 2, Step: 5}, {Name: "only here"}}}
	standby := &trainer{runs: []*trainerv1.Run{{Name: "r", Epoch: 1, Step: 9}}}
	addrs, dial := start(t, standby, leader)
	s := serve(t, &backend{trainers: append(addrs, "127.0.0.1:1")}, console.Options{Dial: dial})
	_, text := call(t, http.MethodGet, s.URL+"/api/runs", "", nil)
	if strings.Count(text, `"r"`) != 1 || !strings.Contains(text, "only here") || !strings.Contains(text, `"5"`) {
		t.Errorf("the list is %s", text)
	}
	call(t, http.MethodPost, s.URL+"/api/runs/r/stop", `{}`, nil)
	if leader.did != "stop r" || standby.did != "" {
		t.Errorf("the leader did %q, the other one %q", leader.did, standby.did)
	}
}

func TestRuns_WithoutATrainer(t *testing.T) {
	s := serve(t, &backend{}, console.Options{})
	if status, text := call(t, http.MethodGet, s.URL+"/api/runs", "", nil); status != 400 ||
		!strings.Contains(text, "lamina trainer") {
		t.Errorf("%d %s", status, text)
	}
	addrs, dial := start(t)
	_ = addrs
	s = serve(t, &backend{trainers: []string{"127.0.0.1:1"}}, console.Options{Dial: dial})
	if status, text := call(t, http.MethodGet, s.URL+"/api/runs", "", nil); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, text)
	}
}

func TestRuns_TrainerThatDoesNotAnswerTakesNoTimeFromOthers(t *testing.T) {
	asked := make(chan struct{})
	silent := &trainer{list: func(ctx context.Context) error {
		select {
		case <-asked:
			return rpc.ToStatus(fault.New(fault.Unavailable, "list runs"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	other := &trainer{runs: []*trainerv1.Run{{Name: "r"}}, list: func(context.Context) error {
		close(asked)
		return nil
	}}
	addrs, dial := start(t, silent, other)
	s := serve(t, &backend{trainers: addrs}, console.Options{Dial: dial})
	if status, text := call(t, http.MethodGet, s.URL+"/api/runs", "", nil); status != http.StatusOK ||
		!strings.Contains(text, `"name":"r"`) {
		t.Errorf("%d %s", status, text)
	}
}
