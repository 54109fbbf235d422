package trainer

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

const (
	eventsName = "events.jsonl" // in the folder of a run
	maxEvents  = 100            // events that a run keeps
)

// The kinds of events.
const (
	eventLost        = "lost"
	eventLeft        = "left"
	eventJoined      = "joined"
	eventQuarantined = "quarantined"
	eventCleared     = "cleared"
	eventRestart     = "restart"
	eventBusOnly     = "bus only"
)

// eventLine is a line of events.jsonl.
type eventLine struct {
	Step    uint64  `json:"step"`
	Time    string  `json:"time"`
	Kind    string  `json:"kind"`
	Replica *uint32 `json:"replica,omitempty"`
	Address string  `json:"address,omitempty"`
	Message string  `json:"message,omitempty"`
}

// happened records an event in the run's state and in its folder. An event that cannot be written stops no run.
func (t *training) happened(e *trainerv1.RunEvent) {
	e.TimeMs = time.Now().UnixMilli()
	var all []*trainerv1.RunEvent
	t.run.update(func(r *trainerv1.Run) {
		r.Events = append(r.Events, e)
		r.Events = r.Events[max(0, len(r.GetEvents())-maxEvents):]
		all = append(all, r.GetEvents()...)
	})
	if t.store.Held() != nil {
		return // another trainer leads the run
	}
	err := weights.WriteFile(filepath.Join(t.run.dir, eventsName), func(w io.Writer) error {
		lines := json.NewEncoder(w)
		for _, e := range all {
			if err := lines.Encode(eventLine{Step: e.GetStep(), Kind: e.GetKind(), Replica: e.Replica,
				Time:    time.UnixMilli(e.GetTimeMs()).UTC().Format(time.RFC3339Nano),
				Address: e.GetAddress(), Message: e.GetMessage()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.run.service.log.Warn("write an event of the run", "run", t.run.name, "error", err)
	}
}

// happenedTo records an event of a replica.
func (t *training) happenedTo(c *chain, kind string, step uint64, why error) {
	replica := uint32(c.replica)
	e := &trainerv1.RunEvent{Step: step, Kind: kind, Replica: &replica, Address: c.addresses()}
	if why != nil {
		e.Message = why.Error()
	}
	t.happened(e)
}

// addresses lists where the stages of a chain listen.
func (c *chain) addresses() string {
	var out []string
	for _, s := range c.stages {
		out = append(out, s.addr)
	}
	return strings.Join(out, ", ")
}

// forgetEvents removes the events of an earlier run in the same folder.
func (t *training) forgetEvents() error {
	err := os.Remove(filepath.Join(t.run.dir, eventsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
