package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

func runError(r *trainerv1.Run) error {
	if r.GetState() == trainerv1.RunState_RUN_STATE_FAILED {
		return fault.New(fault.Internal, "run %s failed after step %d: %s", r.GetName(), r.GetStep(), r.GetError())
	}
	return nil
}

// progress shows the progress of a run: on a terminal a bar that is drawn again and again, elsewhere plain
// lines. The zero value shows nothing.
type progress struct {
	out      io.Writer
	terminal bool
	drawn    bool // a bar is on the current line

	last     *trainerv1.Run
	began    time.Time // when the run got into its state
	from     uint64    // its step then
	reported uint64    // the step of the last plain line
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// watchPatience is how long a trainer may be unreachable before a watch is given up.
const watchPatience = time.Minute

// watch shows the states of a run until it ends, and returns the last one. A watch that breaks is opened again: each
// state that it sends is whole, so nothing is missed.
func (p *progress) watch(
	ctx context.Context, client trainerv1.TrainerServiceClient, run string,
) (*trainerv1.Run, error) {
	heard := time.Now()
	for wait := time.Duration(0); ; wait = min(max(2*wait, 100*time.Millisecond), 2*time.Second) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		more, err := p.read(ctx, client, run)
		if err == nil {
			return p.last, nil
		}
		if more {
			heard, wait = time.Now(), 0
		}
		if !fault.Retryable(err) || ctx.Err() != nil || time.Since(heard) > watchPatience {
			return nil, fmt.Errorf("watch run %s: %w", run, err)
		}
	}
}

// read opens a watch and shows what it sends. It returns nil when the run has ended, and whether anything was received.
func (p *progress) read(ctx context.Context, client trainerv1.TrainerServiceClient, run string) (heard bool, _ error) {
	watch, err := client.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: run})
	if err != nil {
		return false, rpc.FromStatus(err)
	}
	for {
		r, err := watch.Recv()
		if errors.Is(err, io.EOF) && heard { // the trainer ends a watch after the last state only
			return true, nil
		}
		if err != nil {
			return heard, rpc.FromStatus(err)
		}
		p.show(r.GetRun(), time.Now())
		heard = true
	}
}

// plainLines is about how many plain lines a run has, besides those of validations and changes of state.
const plainLines = 50

// show shows a state.
func (p *progress) show(r *trainerv1.Run, now time.Time) {
	before := p.last
	if p.last = r; p.out == nil {
		return
	}
	changed := before.GetState() != r.GetState()
	if changed {
		p.began, p.from = now, r.GetStep()
	}
	p.note(before, r)
	line := runLine(r, p.from, now.Sub(p.began))
	if p.terminal {
		fmt.Fprintf(p.out, "\r%s\x1b[K", line) // and erase what is left of a longer line
		p.drawn = true
		return
	}
	validated := before.GetValidationLoss() != r.GetValidationLoss()
	if changed || validated || r.GetStep() >= p.reported+max(1, r.GetSteps()/plainLines) {
		fmt.Fprintln(p.out, line)
		p.reported = r.GetStep()
	}
}

// note shows what the run reads, once, and its sample texts when there are new ones.
func (p *progress) note(before, r *trainerv1.Run) {
	var lines []string
	if r.GetData() != before.GetData() {
		for line := range strings.SplitSeq(r.GetData(), "; ") {
			lines = append(lines, "data     "+line)
		}
	}
	if s := r.GetSamples(); len(s) > 0 &&
		(len(before.GetSamples()) == 0 || before.GetSamples()[0].GetStep() != s[0].GetStep()) {
		for _, text := range s {
			lines = append(lines, fmt.Sprintf("sample   after step %d: %q > %q", text.GetStep(), text.GetPrompt(),
				text.GetText()))
		}
	}
	for _, e := range newEvents(before, r) {
		line := fmt.Sprintf("event    step %d: %s", e.GetStep(), e.GetKind())
		if e.Replica != nil {
			line += fmt.Sprintf(" replica %d at %s", e.GetReplica(), e.GetAddress())
		}
		if e.GetMessage() != "" {
			line += ": " + e.GetMessage()
		}
		lines = append(lines, line)
	}
	for _, line := range lines {
		if p.drawn {
			line = "\r" + line + "\x1b[K"
		}
		fmt.Fprintln(p.out, line)
	}
}

// newEvents returns the events that came since an earlier state.
func newEvents(before, r *trainerv1.Run) []*trainerv1.RunEvent {
	all := r.GetEvents()
	if n := len(before.GetEvents()); n > 0 {
		last := before.GetEvents()[n-1]
		for i, e := range all {
			if proto.Equal(e, last) {
				return all[i+1:]
			}
		}
	}
	return all
}

// end ends the line of the bar.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out)
	}
}

// runLine returns one line about a run: a bar, losses, speed and the remaining time.
func runLine(r *trainerv1.Run, from uint64, took time.Duration) string {
	const width = 20
	filled := 0
	if r.GetSteps() > 0 {
		filled = int(width * min(r.GetStep(), r.GetSteps()) / r.GetSteps())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s [%s%s] %d/%d", r.GetName(), strings.Repeat("#", filled), strings.Repeat("-", width-filled),
		r.GetStep(), r.GetSteps())
	if s := r.GetState(); s != trainerv1.RunState_RUN_STATE_RUNNING {
		fmt.Fprintf(&b, "  %s", stateName(s))
	}
	if r.GetStep() == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "  loss %.4f", r.GetLoss())
	if v := r.GetValidationLoss(); v > 0 {
		fmt.Fprintf(&b, "  validation %.4f", v)
		if bits := r.GetValidationBitsPerByte(); bits > 0 {
			fmt.Fprintf(&b, " (%.4f bits a byte)", bits)
		}
	}
	switch r.GetObjective() {
	case objectiveDPO:
		fmt.Fprintf(&b, "  accuracy %.3f  margin %.4f", r.GetAccuracy(), r.GetMargin())
	case objectiveGRPO:
		fmt.Fprintf(&b, "  reward %.3f  mismatch %d", r.GetReward(), r.GetMismatched())
	}
	fmt.Fprintf(
		&b,
		"  norm %.2f  lr %.1e  %.0f tokens/s",
		r.GetGradientNorm(),
		r.GetLearningRate(),
		r.GetTokensPerSecond(),
	)
	if peak := r.GetPeakFlops(); peak > 0 {
		fmt.Fprintf(&b, "  %.0f %% of peak", 100*r.GetFlops()/peak)
	}
	if r.GetStages() > 1 {
		fmt.Fprintf(&b, "  bubble %.0f %%", 100*r.GetBubble())
	}
	if n := r.GetStepDirectBytes(); n > 0 {
		fmt.Fprintf(&b, "  %s a step direct", byteCount(n))
	}
	if n := r.GetStepGradientBytes(); n > 0 {
		fmt.Fprintf(&b, "  %s a step", byteCount(n))
	}
	if done := r.GetStep() - min(from, r.GetStep()); done > 0 && r.GetState() == trainerv1.RunState_RUN_STATE_RUNNING {
		left := took / time.Duration(done) * time.Duration(r.GetSteps()-min(r.GetStep(), r.GetSteps()))
		if s := r.GetSecondsLeft(); s > 0 { // the trainer knows the run from before this watch
			left = time.Duration(s * float64(time.Second))
		}
		if left > 0 { // `lamina runs show` has not watched the run
			fmt.Fprintf(&b, "  %s left", left.Round(time.Second))
		}
	}
	return b.String()
}

// byteCount writes a number of bytes as people read it: "1.66 MB".
func byteCount(n uint64) string {
	for _, unit := range []struct {
		size uint64
		name string
	}{{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if n >= unit.size {
			return fmt.Sprintf("%.3g %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// stateName returns a state as people read it: "running".
func stateName(s trainerv1.RunState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "RUN_STATE_"))
}
