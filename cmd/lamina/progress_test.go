package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// midway returns a run of two stages and three replicas that has made half of its steps.
func midway() *trainerv1.Run {
	return &trainerv1.Run{
		Name: "r", State: trainerv1.RunState_RUN_STATE_RUNNING, Step: 30, Steps: 60, Loss: 1.5, ValidationLoss: 1.25,
		ValidationBitsPerByte: 1.8, GradientNorm: 0.5, LearningRate: 0.001, TokensPerSecond: 1234, Flops: 5e9,
		PeakFlops: 1e10, Stages: 2, Replicas: 3, Members: 2, Bubble: 0.25, Parameters: 1000, StepDirectBytes: 1_660_000,
		StepGradientBytes: 2048, StartedMs: 1_700_000_000_000, Lost: 2, Joined: 1, Aborted: 2, Left: 1,
	}
}

// golden compares a text line by line.
func golden(t *testing.T, what, got string, want ...string) {
	t.Helper()
	if joined := strings.Join(want, "\n") + "\n"; got != joined {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, joined)
	}
}

func TestRunLine_HasWhatTheRunHas(t *testing.T) {
	const half = "r [##########----------] 30/60"
	const speed = "  norm 0.50  lr 1.0e-03  1234 tokens/s"
	const rest = speed + "  50 % of peak  bubble 25 %  1.66 MB a step direct  2.05 kB a step"
	const loss = "  loss 1.5000  validation 1.2500 (1.8000 bits a byte)"
	for _, c := range []struct {
		what   string
		change func(*trainerv1.Run)
		from   uint64
		took   time.Duration
		want   string
	}{
		{"a run", func(*trainerv1.Run) {}, 0, 30 * time.Second, half + loss + rest + "  30s left"},
		{"one that this watch has seen from step 20", func(*trainerv1.Run) {}, 20, 20 * time.Second,
			half + loss + rest + "  1m0s left"},
		{"one whose trainer knows how long", func(r *trainerv1.Run) { r.SecondsLeft = 7.4 }, 20, time.Second,
			half + loss + rest + "  7s left"},
		{"one seen for no step", func(*trainerv1.Run) {}, 30, time.Second, half + loss + rest},
		{"one that went back behind the first step seen", func(*trainerv1.Run) {}, 40, time.Second, half + loss + rest},
		{"preferences", func(r *trainerv1.Run) { r.Objective, r.Accuracy, r.Margin = "dpo", 0.75, 0.125 }, 30, 0,
			half + loss + "  accuracy 0.750  margin 0.1250" + rest},
		{"rewards", func(r *trainerv1.Run) { r.Objective, r.Reward, r.Mismatched = "grpo", 0.9, 0 }, 30, 0,
			half + loss + "  reward 0.900  mismatch 0" + rest},
		{"one stage, nothing exchanged", func(r *trainerv1.Run) {
			r.Stages, r.StepDirectBytes, r.StepGradientBytes, r.PeakFlops = 1, 0, 0, 0
		}, 30, 0, half + loss + speed},
		{"no bytes known", func(r *trainerv1.Run) { r.ValidationBitsPerByte = 0 }, 30, 0,
			half + "  loss 1.5000  validation 1.2500" + rest},
		{"no validation", func(r *trainerv1.Run) { r.ValidationLoss = 0 }, 30, 0, half + "  loss 1.5000" + rest},
		{"one that is done", func(r *trainerv1.Run) {
			r.Step, r.State, r.SecondsLeft = 60, trainerv1.RunState_RUN_STATE_DONE, 1
		}, 0, time.Minute, "r [####################] 60/60  done" + loss + rest},
		{"one that begins", func(r *trainerv1.Run) {
			r.Step, r.State = 0, trainerv1.RunState_RUN_STATE_STARTING
		}, 0, 0, "r [--------------------] 0/60  starting"},
	} {
		r := midway()
		c.change(r)
		golden(t, c.what, runLine(r, c.from, c.took)+"\n", c.want)
	}
}

func TestByteCount_AsPeopleReadIt(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 1_660_000: "1.66 MB",
		2_500_000_000: "2.5 GB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

// TestProgress_PlainLines has a line for each change of state, each validation and every fiftieth of the steps, and
// says what has happened once.
func TestProgress_PlainLines(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out)
	now := time.UnixMilli(0)
	show := func(seconds int, change func(*trainerv1.Run)) {
		r := &trainerv1.Run{Name: "r", State: trainerv1.RunState_RUN_STATE_RUNNING, Steps: 100, Stages: 1}
		if p.last != nil {
			r.Step, r.Loss, r.ValidationLoss = p.last.GetStep(), p.last.GetLoss(), p.last.GetValidationLoss()
			r.Data, r.Samples, r.Events = p.last.GetData(), p.last.GetSamples(), p.last.GetEvents()
		}
		change(r)
		p.show(r, now.Add(time.Duration(seconds)*time.Second))
	}
	one := uint32(1)
	lost := &trainerv1.RunEvent{Step: 3, Kind: "lost", Replica: &one, Address: "a:1", Message: "it says nothing"}
	show(0, func(r *trainerv1.Run) { r.State = trainerv1.RunState_RUN_STATE_STARTING })
	show(1, func(r *trainerv1.Run) { r.Data = "9 tokens; 1 for validation" })
	show(2, func(r *trainerv1.Run) { r.Step, r.Loss = 1, 4 })
	show(3, func(r *trainerv1.Run) { r.Step, r.Loss = 2, 3 })
	show(4, func(r *trainerv1.Run) { r.Step, r.ValidationLoss = 3, 2.5 })
	show(5, func(r *trainerv1.Run) { r.Events = []*trainerv1.RunEvent{lost} })
	show(6, func(*trainerv1.Run) {})
	show(7, func(r *trainerv1.Run) {
		r.Events = []*trainerv1.RunEvent{lost, {Step: 4, Kind: "rollback"}}
		r.Samples = []*trainerv1.SampleText{{Step: 4, Prompt: "a", Text: "b\n"}}
	})
	show(8, func(r *trainerv1.Run) { r.Step, r.State = 4, trainerv1.RunState_RUN_STATE_PAUSED })
	p.end()
	const rest = "  norm 0.00  lr 0.0e+00  0 tokens/s"
	golden(t, "the progress", out.String(),
		"r [--------------------] 0/100  starting",
		"data     9 tokens",
		"data     1 for validation",
		"r [--------------------] 0/100",
		"r [--------------------] 2/100  loss 3.0000"+rest+"  1m38s left",
		"r [--------------------] 3/100  loss 3.0000  validation 2.5000"+rest+"  1m37s left",
		"event    step 3: lost replica 1 at a:1: it says nothing",
		`sample   after step 4: "a" > "b\n"`,
		"event    step 4: rollback",
		"r [--------------------] 4/100  paused  loss 3.0000  validation 2.5000"+rest)
}

func TestListRuns_Columns(t *testing.T) {
	r := midway()
	r.Quarantined = []*trainerv1.Quarantined{{}}
	r.Spikes = []*trainerv1.Spike{{}, {}}
	failed := &trainerv1.Run{Name: "longer", State: trainerv1.RunState_RUN_STATE_FAILED, Steps: 9, Stages: 1,
		Replicas: 1, StartedMs: r.GetStartedMs(), Error: "no shard trains"}
	at := time.UnixMilli(r.GetStartedMs()).Format(time.DateTime)
	var out strings.Builder
	if err := listRuns(&out, []*trainerv1.Run{r, failed}); err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat(" ", len(at)-len("STARTED"))
	golden(t, "the table", out.String(),
		"RUN     STATE    STEP   LOSS    VALIDATION  PARAMETERS  LAYOUT  MEMBERS  QUARANTINED  SPIKES  STARTED"+pad+"  ERROR",
		"r       running  30/60  1.5000  1.2500      1000        2x3     2        1            2       "+at+"  ",
		"longer  failed   0/9    0.0000  0.0000      0           1x1     0        0            0       "+at+"  no shard trains")
}

func TestShowRun_WhatHasHappened(t *testing.T) {
	r := midway()
	r.Error, r.CheckpointError = "e", "the disk is full"
	r.Quarantined = []*trainerv1.Quarantined{{Step: 4, Replica: 2, Address: "a:2", Reason: "huge", Message: "norm 1e9",
		Evidence: "bad/4.json"}}
	zero := uint32(0)
	r.Events = []*trainerv1.RunEvent{
		{Step: 3, Kind: "lost", Replica: &zero, Address: "a:1", Message: "it says nothing", TimeMs: 1_700_000_000_000},
		{Step: 12, Kind: "restart", Message: "from step 10", TimeMs: 1_700_000_001_000},
	}
	var out strings.Builder
	if err := showRun(&out, r); err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return time.UnixMilli(r.GetEvents()[i].GetTimeMs()).Format(time.DateTime) }
	pad := strings.Repeat(" ", len(at(0))-len("TIME"))
	golden(t, "the run", out.String(),
		runLine(r, 0, 0),
		"error        e",
		"checkpoint   the disk is full",
		"replicas     2 of 3 (2 stages each): 2 lost, 1 left, 1 joined, 2 attempts repeated",
		"quarantine   step 4: replica 2 at a:2: huge: norm 1e9 (bad/4.json)",
		"TIME"+pad+"  STEP  EVENT    REPLICA  ADDRESS  MESSAGE",
		fmt.Sprintf("%s  3     lost     0        a:1      it says nothing", at(0)),
		fmt.Sprintf("%s  12    restart                    from step 10", at(1)))
	if calm := midway(); showRun(&out, calm) != nil || strings.Count(out.String(), "TIME") != 1 {
		t.Errorf("a run without events: %s", out.String())
	}
}

// A run whose remaining time is not known, since nobody has watched it, is not about to end.
func TestRunLine_SaysWhatIsLeftIfItIsKnown(t *testing.T) {
	r := &trainerv1.Run{Name: "r", State: trainerv1.RunState_RUN_STATE_RUNNING, Step: 5, Steps: 10}
	if line := runLine(r, 0, 0); strings.Contains(line, "left") {
		t.Errorf("without a time: %q", line)
	}
	if line := runLine(r, 0, 10*time.Second); !strings.Contains(line, "10s left") {
		t.Errorf("5 steps in 10 s: %q", line)
	}
	if r.SecondsLeft = 7; !strings.Contains(runLine(r, 0, 0), "7s left") {
		t.Errorf("as the trainer knows: %q", runLine(r, 0, 0))
	}
}

// flakyTrainer is a trainer whose watches send the next states of states and then break, the last one after the run.
type flakyTrainer struct {
	trainerv1.TrainerServiceClient
	states [][]*trainerv1.Run // by watch; nil: the trainer cannot be reached
	opened int
}

func (f *flakyTrainer) WatchRun(
	context.Context, *trainerv1.WatchRunRequest, ...grpc.CallOption,
) (grpc.ServerStreamingClient[trainerv1.WatchRunResponse], error) {
	f.opened++
	if f.opened > len(f.states) || f.states[f.opened-1] == nil {
		return nil, status.Error(codes.Unavailable, "no connection")
	}
	return &flakyWatch{states: f.states[f.opened-1], last: f.opened == len(f.states)}, nil
}

type flakyWatch struct {
	grpc.ServerStreamingClient[trainerv1.WatchRunResponse]
	states []*trainerv1.Run
	last   bool
}

func (f *flakyWatch) Recv() (*trainerv1.WatchRunResponse, error) {
	switch {
	case len(f.states) > 0:
		r := f.states[0]
		f.states = f.states[1:]
		return &trainerv1.WatchRunResponse{Run: r}, nil
	case f.last:
		return nil, io.EOF
	}
	return nil, status.Error(codes.Unavailable, "keepalive ping failed to receive ACK within timeout")
}

func TestProgress_ABrokenWatchIsOpenedAgain(t *testing.T) {
	step := func(n uint64) *trainerv1.Run { return &trainerv1.Run{Name: "r", Step: n, Steps: 9} }
	synctest.Test(t, func(t *testing.T) {
		f := &flakyTrainer{states: [][]*trainerv1.Run{{step(1), step(2)}, nil, nil, {}, {step(5)}, {step(9)}}}
		last, err := (&progress{}).watch(t.Context(), f, "r")
		if err != nil || last.GetStep() != 9 || f.opened != 6 {
			t.Errorf("step %d after %d watches: %v", last.GetStep(), f.opened, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f, began := &flakyTrainer{states: [][]*trainerv1.Run{{step(1)}}}, time.Now()
		f.states = append(f.states, make([][]*trainerv1.Run, 1000)...)
		_, err := (&progress{}).watch(t.Context(), f, "r")
		if took := time.Since(began); fault.CodeOf(err) != fault.Unavailable ||
			took < watchPatience || took > watchPatience+3*time.Second {
			t.Errorf("an unreachable trainer is given up after %v: %v", took, err)
		}
	})
}
