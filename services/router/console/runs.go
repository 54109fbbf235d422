package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

const (
	listTime = 10 * time.Second // for a trainer to list its runs
	runTime  = 2 * time.Minute  // to start or stop a run, which may have to write a checkpoint
)

type client = trainerv1.TrainerServiceClient

// owned is a run and the trainer that knows the most about it.
type owned struct {
	*trainerv1.Run
	trainer client
}

// trainers returns clients of all trainers.
func (s *server) trainers() ([]client, error) {
	addrs := s.backend.Trainers()
	if len(addrs) == 0 || s.Dial == nil {
		return nil, fault.New(fault.FailedPrecondition, "find a trainer: the mesh has none: start lamina trainer, or "+
			"lamina up, which has one")
	}
	var out []client
	for _, addr := range addrs {
		conn, err := s.Dial(addr)
		if err != nil {
			return nil, err
		}
		out = append(out, trainerv1.NewTrainerServiceClient(conn))
	}
	return out, nil
}

// allRuns asks every trainer for its runs. Trainers that share a folder of runs list the same ones: that which leads
// a run knows the most about it. A trainer that cannot be reached is left out if another one can.
func (s *server) allRuns(ctx context.Context) (map[string]owned, []client, error) {
	trainers, err := s.trainers()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	answers, failures := make([]*trainerv1.ListRunsResponse, len(trainers)), make([]error, len(trainers))
	var asking sync.WaitGroup
	for i, t := range trainers {
		// All at once, so that one that does not answer takes no time from the others.
		asking.Go(func() { answers[i], failures[i] = t.ListRuns(ctx, &trainerv1.ListRunsRequest{}) })
	}
	asking.Wait()
	runs := map[string]owned{}
	var reached []client
	var failed error
	for i, t := range trainers {
		if failures[i] != nil {
			failed = rpc.FromStatus(failures[i])
			continue
		}
		reached = append(reached, t)
		for _, r := range answers[i].GetRuns() {
			if old, ok := runs[r.GetName()]; !ok || newer(r, old.Run) {
				runs[r.GetName()] = owned{r, t}
			}
		}
	}
	if len(reached) == 0 {
		return nil, nil, failed
	}
	return runs, reached, nil
}

// newer reports whether a is a later state of a run than b.
func newer(a, b *trainerv1.Run) bool {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetChangedMs(), b.GetChangedMs()),
		cmp.Compare(a.GetStep(), b.GetStep())) > 0
}

// find returns the trainer of a run.
func (s *server) find(ctx context.Context, name string) (client, error) {
	runs, _, err := s.allRuns(ctx)
	if err != nil {
		return nil, err
	}
	run, ok := runs[name]
	if !ok {
		return nil, fault.New(fault.NotFound, "find run %q: no trainer knows it", name)
	}
	return run.trainer, nil
}

func (s *server) runs(w http.ResponseWriter, r *http.Request) {
	runs, _, err := s.allRuns(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	list := []json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(runs)) {
		text, err := marshal(runs[name].Run)
		if err != nil {
			s.fail(w, err)
			return
		}
		list = append(list, text)
	}
	s.reply(w, http.StatusOK, map[string]any{"runs": list})
}

// layoutBody is the layout of a run that goes on; 0 leaves it as it was.
type layoutBody struct {
	Stages   uint32 `json:"stages"`
	Replicas uint32 `json:"replicas"`
}

// startBody starts a run.
type startBody struct {
	layoutBody
	Manifest json.RawMessage `json:"manifest"` // an object, or its text in a string
}

func (s *server) startRun(w http.ResponseWriter, r *http.Request) {
	var body startBody
	if !s.decode(w, r, &body) {
		return
	}
	manifest := bytes.TrimSpace(body.Manifest)
	var text string
	if json.Unmarshal(manifest, &text) == nil {
		manifest = []byte(text)
	}
	if len(manifest) == 0 || string(manifest) == "null" {
		s.fail(w, fault.Field("manifest", "is missing"))
		return
	}
	_, trainers, err := s.allRuns(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), runTime)
	defer cancel()
	resp, err := trainers[0].StartRun(ctx, &trainerv1.StartRunRequest{ManifestJson: manifest, Stages: body.Stages,
		Replicas: body.Replicas})
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	s.reply(w, http.StatusAccepted, map[string]string{"run": resp.GetRun()})
}

func (s *server) stopRun(w http.ResponseWriter, r *http.Request) {
	s.changeRun(w, r, func(ctx context.Context, t client, name string) (*trainerv1.Run, error) {
		resp, err := t.StopRun(ctx, &trainerv1.StopRunRequest{Run: name})
		return resp.GetRun(), err
	})
}

func (s *server) pauseRun(w http.ResponseWriter, r *http.Request) {
	s.changeRun(w, r, func(ctx context.Context, t client, name string) (*trainerv1.Run, error) {
		resp, err := t.PauseRun(ctx, &trainerv1.PauseRunRequest{Run: name})
		return resp.GetRun(), err
	})
}

func (s *server) resumeRun(w http.ResponseWriter, r *http.Request) {
	var body layoutBody
	if !s.decode(w, r, &body) {
		return
	}
	s.changeRun(w, r, func(ctx context.Context, t client, name string) (*trainerv1.Run, error) {
		resp, err := t.ResumeRun(ctx, &trainerv1.ResumeRunRequest{Run: name, Stages: body.Stages,
			Replicas: body.Replicas})
		return resp.GetRun(), err
	})
}

// changeRun has the trainer of a run change it, and answers with the run.
func (s *server) changeRun(
	w http.ResponseWriter, r *http.Request, change func(context.Context, client, string) (*trainerv1.Run, error),
) {
	name := r.PathValue("run")
	ctx, cancel := context.WithTimeout(r.Context(), runTime)
	defer cancel()
	t, err := s.find(ctx, name)
	if err != nil {
		s.fail(w, err)
		return
	}
	run, err := change(ctx, t, name)
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	text, err := marshal(run)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, json.RawMessage(text))
}

func (s *server) deleteRun(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("run")
	t, err := s.find(r.Context(), name)
	if err != nil {
		s.fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), runTime)
	defer cancel()
	resp, err := t.DeleteRun(ctx, &trainerv1.DeleteRunRequest{Run: name})
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	s.reply(w, http.StatusOK, map[string]string{"kept": resp.GetKept()})
}

// listedFile is a file of a run.
type listedFile struct {
	Name    string `json:"name"`
	Size    uint64 `json:"size"`
	Changed int64  `json:"changed_ms"`
}

func (s *server) files(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("run")
	t, err := s.find(r.Context(), name)
	if err != nil {
		s.fail(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), listTime)
	defer cancel()
	resp, err := t.ListArtifacts(ctx, &trainerv1.ListArtifactsRequest{Run: name})
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	list := []listedFile{}
	for _, a := range resp.GetArtifacts() {
		list = append(list, listedFile{a.GetName(), a.GetSize(), a.GetChangedMs()})
	}
	s.reply(w, http.StatusOK, map[string]any{"files": list})
}

// file sends a file of a run, from a byte on. A browser saves it, whatever it contains.
func (s *server) file(w http.ResponseWriter, r *http.Request) {
	run, name := r.PathValue("run"), r.PathValue("name")
	offset, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("offset"), "0"), 10, 63)
	if err != nil {
		s.fail(w, fault.Field("offset", "want a number of bytes, got %.40q", r.URL.Query().Get("offset")))
		return
	}
	t, err := s.find(r.Context(), run)
	if err != nil {
		s.fail(w, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	pieces, err := t.FetchArtifact(ctx, &trainerv1.FetchArtifactRequest{Run: run, Name: name, Offset: offset})
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	first, err := pieces.Recv()
	if err != nil {
		s.fail(w, rpc.FromStatus(err))
		return
	}
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name)}))
	stream := httpapi.NewStream(w, "application/octet-stream", s.WriteTimeout)
	for piece := first; ; {
		if err := stream.Write(piece.GetData()); err != nil {
			return // the client has gone
		}
		if piece, err = pieces.Recv(); errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.Log.Debug("fetch a file of a run", "run", run, "name", name, "error", err)
			panic(http.ErrAbortHandler) // a cut file must not look whole
		}
	}
}
