package trainer

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// recordName is the file of a run's record, in the folder of the run's name under the trainer's folder. So
// a trainer that starts again finds its runs, wherever their files are.
const recordName = "run.json"

// recordEvery is how often the record of an active run is written.
const recordEvery = 10 * time.Second

// record is what a trainer remembers of a run.
type record struct {
	Run      json.RawMessage `json:"run"`      // lamina.trainer.v1.Run
	Folder   string          `json:"folder"`   // of the run's files
	Manifest string          `json:"manifest"` // as it was given, since checkpoints name its digest
}

// record writes the run's record.
func (r *run) record() error {
	r.recording.Lock()
	defer r.recording.Unlock()
	r.mu.Lock()
	claim := r.claim
	r.mu.Unlock()
	if claim != nil && claim.Held() != nil {
		return nil // another trainer writes it now
	}
	now, _ := r.snapshot()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(now)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode the record of run %s", r.name)
	}
	dir := filepath.Join(r.service.cfg.Dir, r.name)
	if r.service.cfg.Transient {
		dir = r.dir
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.Wrap(fault.Unavailable, err, "create the folder of run %s", r.name)
	}
	err = weights.WriteFile(filepath.Join(dir, recordName), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(record{Run: text, Folder: r.dir, Manifest: string(r.raw)})
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write the record of run %s", r.name)
	}
	r.mu.Lock()
	r.recorded = time.Now()
	r.mu.Unlock()
	return nil
}

// recordLater writes the record if the last one is old. A record that cannot be written stops no run: what a
// run needs is in its checkpoints.
func (r *run) recordLater() {
	r.mu.Lock()
	old := time.Since(r.recorded) > recordEvery
	r.mu.Unlock()
	if !old {
		return
	}
	if err := r.record(); err != nil {
		r.service.log.Warn("the run's record is not up to date", "run", r.name, "error", err)
	}
}

// restore lists the runs of the trainer's folder. Records that cannot be read are left as they are. The
// caller holds mu. A transient trainer has its own run alone, whatever lies beside that run's folder.
func (s *Service) restore() {
	if s.cfg.Transient {
		return
	}
	files, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*", recordName)) // the pattern is valid
	for _, path := range files {
		r, err := s.readRecord(path)
		if err != nil {
			s.log.Warn("skip the record of a run", "path", path, "error", err)
			continue
		}
		s.runs[r.name] = r
	}
}

// maxRecord bounds a record in bytes.
const maxRecord = 16 << 20

func (s *Service) readRecord(path string) (*run, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxRecord {
		return nil, fault.New(fault.DataLoss, "more than %d bytes", maxRecord)
	}
	return s.parseRecord(filepath.Base(filepath.Dir(path)), text)
}

// parseRecord reads the record of the run with the given name.
func (s *Service) parseRecord(name string, text []byte) (*run, error) {
	var rec record
	if err := json.Unmarshal(text, &rec); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read the record")
	}
	m, err := ParseManifest([]byte(rec.Manifest))
	if err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read the record's manifest")
	}
	state := &trainerv1.Run{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(rec.Run, state); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read the record's run")
	}
	if m.Name != name || state.GetName() != name {
		return nil, fault.New(fault.DataLoss, "it is of run %q and manifest %q", state.GetName(), m.Name)
	}
	if rec.Folder == "" {
		return nil, fault.New(fault.DataLoss, "it names no folder")
	}
	r := newRun(s, m, []byte(rec.Manifest), rec.Folder)
	r.state = state
	if !final(state.GetState()) && state.GetState() != trainerv1.RunState_RUN_STATE_PAUSED {
		state.State = trainerv1.RunState_RUN_STATE_INTERRUPTED
	}
	return r, nil
}
