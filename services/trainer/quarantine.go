package trainer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

const (
	quarantineDir  = "quarantine" // in the folder of a run
	maxQuarantined = 100          // reports that a run keeps
	hugeFactor     = 100          // times the moving mean of gradient norms
	hugeAfter      = 10           // steps before that mean says something
)

// evidence is the file that is kept of a gradient that was rejected.
type evidence struct {
	Step       uint64 `json:"step"`
	Attempt    uint32 `json:"attempt"`
	Replica    uint32 `json:"replica"`
	Address    string `json:"address"`
	ReportedBy string `json:"reported_by"`
	Reason     string `json:"reason"`
	Message    string `json:"message"`
	Part       string `json:"part"`
	SlotLo     uint32 `json:"slot_lo"`
	SlotHi     uint32 `json:"slot_hi"`
	Bytes      uint64 `json:"bytes"` // of the whole evidence
	XXH3       string `json:"xxh3"`  // of the whole evidence
	Data       string `json:"data"`  // its first bytes, in base64
}

// doubts are the rejections of a step because of values. If another replica computes a value that is rejected too,
// then the data is to blame and not the replicas.
type doubts struct {
	step  uint64
	first *trainerv1.Quarantined
	// data says that the gradients of this step are as they should be, whatever they look like.
	data bool
}

// begin begins a step, perhaps for the second time.
func (d *doubts) begin(step uint64) {
	if step > d.step {
		*d = doubts{step: step}
	}
}

// of returns the first rejection of a step because of values, or nil.
func (d *doubts) of(step uint64) *trainerv1.Quarantined {
	if step != d.step {
		return nil
	}
	return d.first
}

// reasonName is the name of a reason in reports.
func reasonName(r shardv1.RejectReason) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(r.String(), "REJECT_REASON_")), "_", " ")
}

// quarantine bars the replica of a rejected gradient from the run, and keeps the evidence. It returns an error if
// the gradient is what the data gives and cannot be used.
func (t *training) quarantine(f *fleet, bad *rejectedError) error {
	i := slices.IndexFunc(f.chains, func(c *chain) bool { return c.replica == int(bad.GetReplica()) })
	if i < 0 {
		return fault.New(fault.Internal, "step %d: a gradient of unknown replica %d is rejected: %s", bad.GetStep(),
			bad.GetReplica(), bad.GetMessage())
	}
	c := f.chains[i]
	addr := c.stages[t.stageOf(f, bad)].addr
	why := bad.GetReason()
	q := &trainerv1.Quarantined{Step: bad.GetStep(), Replica: bad.GetReplica(), Address: addr, Reason: reasonName(why),
		Message: bad.GetMessage(),
		Part:    fmt.Sprintf("%s slots %d-%d", bad.GetPart(), bad.GetSlotLo(), bad.GetSlotHi())}
	values := why == shardv1.RejectReason_REJECT_REASON_NOT_FINITE || why == shardv1.RejectReason_REJECT_REASON_HUGE
	if first := t.doubts.of(q.GetStep()); values && (first != nil && first.GetAddress() != addr || len(f.chains) == 1) {
		return t.acquit(q, why)
	}
	var err error
	if q.Evidence, err = t.keepEvidence(q, bad); err != nil {
		t.run.service.log.Warn("keep the evidence of a rejected gradient", "run", t.run.name, "error", err)
	}
	if values {
		t.doubts.first = q
	}
	t.banned[addr] = true
	t.run.update(func(r *trainerv1.Run) {
		r.Quarantined = append(r.Quarantined, q)
		r.Quarantined = r.Quarantined[max(0, len(r.GetQuarantined())-maxQuarantined):]
	})
	t.run.service.log.Error("quarantine a replica", "run", t.run.name, "step", q.GetStep(), "replica", q.GetReplica(),
		"address", addr, "reason", q.GetReason(), "part", q.GetPart(), "message", q.GetMessage(),
		"evidence", q.GetEvidence())
	replica := uint32(c.replica)
	t.happened(&trainerv1.RunEvent{Step: q.GetStep(), Kind: eventQuarantined, Replica: &replica, Address: addr,
		Message: q.GetReason() + ": " + q.GetPart() + ": " + q.GetMessage()})
	f.lost(c, bad)
	return nil
}

// acquit lets a replica take part again whose gradient another replica has confirmed.
func (t *training) acquit(q *trainerv1.Quarantined, why shardv1.RejectReason) error {
	if first := t.doubts.of(q.GetStep()); first != nil {
		delete(t.banned, first.GetAddress())
		t.run.update(func(r *trainerv1.Run) {
			r.Quarantined = slices.DeleteFunc(r.GetQuarantined(), func(other *trainerv1.Quarantined) bool {
				return other == first
			})
		})
		if first.GetEvidence() != "" {
			_ = os.Remove(filepath.Join(t.run.dir, filepath.FromSlash(first.GetEvidence())))
		}
		t.run.service.log.Warn("the data gives a gradient that was rejected", "run", t.run.name, "step", q.GetStep(),
			"replica", first.GetReplica(), "message", q.GetMessage())
		replica := first.GetReplica()
		t.happened(&trainerv1.RunEvent{Step: q.GetStep(), Kind: eventCleared, Replica: &replica,
			Address: first.GetAddress(), Message: "another replica has the same gradient: " + q.GetMessage()})
	}
	t.doubts.data = true
	if why == shardv1.RejectReason_REJECT_REASON_NOT_FINITE || t.run.manifest.Gradients.MaxNorm > 0 {
		return &notFiniteError{q.GetStep(), q.GetMessage()}
	}
	return nil
}

// notFiniteError says that the loss or the gradient of a step is not finite.
type notFiniteError struct {
	step uint64
	what string
}

func (e *notFiniteError) Error() string { return fmt.Sprintf("step %d: %s", e.step, e.what) }

// FaultCode returns DataLoss.
func (e *notFiniteError) FaultCode() fault.Code { return fault.DataLoss }

// stageOf returns the stage whose gradient was rejected. Gradients go between the same stages of replicas, except
// for the two parts of a tied embedding.
func (t *training) stageOf(f *fleet, bad *rejectedError) int {
	switch part := bad.GetPart(); {
	case strings.HasPrefix(part, "tied-embedding"):
		return 0
	case strings.HasPrefix(part, "tied-head"):
		return f.layout.stages - 1
	}
	return slices.Index(bad.by.chain.stages, bad.by)
}

// keepEvidence writes a report into the run's folder and returns its name there.
func (t *training) keepEvidence(q *trainerv1.Quarantined, bad *rejectedError) (string, error) {
	dir := filepath.Join(t.run.dir, quarantineDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(evidence{
		Step: q.GetStep(), Attempt: bad.GetAttempt(), Replica: q.GetReplica(), Address: q.GetAddress(),
		ReportedBy: bad.by.addr, Reason: q.GetReason(), Message: q.GetMessage(), Part: bad.GetPart(),
		SlotLo: bad.GetSlotLo(), SlotHi: bad.GetSlotHi(), Bytes: bad.GetEvidenceBytes(),
		XXH3: fmt.Sprintf("%016x", bad.GetEvidenceChecksum()),
		Data: base64.StdEncoding.EncodeToString(bad.GetEvidence()),
	}, "", "  ")
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("step-%08d-attempt-%d-replica-%d.json", q.GetStep(), bad.GetAttempt(), q.GetReplica())
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		return "", err
	}
	return path.Join(quarantineDir, name), t.trimEvidence(dir)
}

// trimEvidence removes the oldest reports of a run that has too many.
func (t *training) trimEvidence(dir string) error {
	files, err := os.ReadDir(dir) // by name, and so by step
	if err != nil {
		return err
	}
	for _, f := range files[:max(0, len(files)-maxQuarantined)] {
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// largest returns the largest norm of a node's gradient that is accepted in a step; 0 for any.
func (t *training) largest(f *fleet, step uint64) float64 {
	if t.doubts.data && t.doubts.step == step || len(f.chains) < 2 || t.norms.n < hugeAfter {
		return 0
	}
	return hugeFactor * t.norms.mean
}
