package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// follow starts a training run and shows its progress until it ends.
func (c *trainCmd) follow(e *verb.Env, client trainerv1.TrainerServiceClient, manifest []byte) error {
	resp, err := client.StartRun(e.Ctx, &trainerv1.StartRunRequest{
		ManifestJson: manifest, Stages: uint32(c.Stages), Replicas: uint32(c.Replicas), Resume: c.Resume, Out: c.Out,
	})
	if err != nil {
		return rpc.FromStatus(err)
	}
	watch, err := client.WatchRun(e.Ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		return rpc.FromStatus(err)
	}
	var last *trainerv1.Run
	began, from := time.Now(), uint64(0)
	for {
		r, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if last == nil || last.GetState() != r.GetRun().GetState() {
			began, from = time.Now(), r.GetRun().GetStep()
		}
		last = r.GetRun()
		if c.Format == "text" {
			fmt.Fprintf(e.Stdout, "\r%s", progress(last, from, time.Since(began)))
		}
	}
	if c.Format == "json" {
		return errors.Join(printProto(e, last), runError(last))
	}
	fmt.Fprintln(e.Stdout)
	if last.GetState() == trainerv1.RunState_RUN_STATE_DONE {
		fmt.Fprintf(e.Stdout, "model    %s\nweights  sha256:%s\nserve it with: lamina up --model %s\n",
			last.GetModelPath(), last.GetWeightsDigest(), last.GetModelPath())
	}
	return runError(last)
}

func runError(r *trainerv1.Run) error {
	if r.GetState() == trainerv1.RunState_RUN_STATE_FAILED {
		return fault.New(fault.Internal, "run %s failed after step %d: %s", r.GetName(), r.GetStep(), r.GetError())
	}
	return nil
}

// progress returns one line about a run: a progress bar, losses, speed and the remaining time.
func progress(r *trainerv1.Run, from uint64, took time.Duration) string {
	const width = 28
	filled := 0
	if r.GetSteps() > 0 {
		filled = int(width * r.GetStep() / r.GetSteps())
	}
	left := "   ?"
	if done := r.GetStep() - from; done > 0 {
		left = (took / time.Duration(done) * time.Duration(r.GetSteps()-r.GetStep())).Round(time.Second).String()
	}
	validation := "     -"
	if v := r.GetValidationLoss(); v > 0 {
		validation = fmt.Sprintf("%.4f", v)
	}
	return fmt.Sprintf("%s [%s%s] %d/%d  loss %.4f  validation %s  norm %.2f  lr %.1e  %.0f tokens/s  %s left   ",
		r.GetName(), strings.Repeat("#", filled), strings.Repeat("-", width-filled), r.GetStep(), r.GetSteps(),
		r.GetLoss(), validation, r.GetGradientNorm(), r.GetLearningRate(), r.GetTokensPerSecond(), left)
}
