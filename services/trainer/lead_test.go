package trainer

import (
	"testing"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// A run that somebody starts while this trainer gets ready to take it up is left alone: it waits for the lock, which
// is given back.
func TestService_TakesUpNoRunThatWasStartedMeanwhile(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	m := &Manifest{Name: "run"}
	record, started := newRun(s, m, nil, s.cfg.Dir), newRun(s, m, nil, s.cfg.Dir)
	record.state.State = trainerv1.RunState_RUN_STATE_INTERRUPTED
	if !s.unfinished(record) {
		t.Fatal("the run is finished")
	}
	started.active = &activity{}
	s.runs["run"] = started
	taken, err := s.resumeLed(t.Context(), record, &blueprint{manifest: m}, layout{1, 1}, nil)
	if taken || err != nil || s.runs["run"] != started || record.isActive() {
		t.Errorf("taken up: %v, %v; the run that was started is listed: %v", taken, err, s.runs["run"] == started)
	}
}
