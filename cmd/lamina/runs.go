package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// runsGroup is the table of commands for the runs of a trainer.
type runsGroup struct {
	List   runsListCmd   `cmd:"" help:"List the runs of a trainer."`
	Show   runsShowCmd   `cmd:"" help:"Show a run: its state, replicas that were lost, have joined or are in quarantine, and spikes."`
	Watch  runsWatchCmd  `cmd:"" help:"Show the progress of a run until it ends."`
	Pause  runsPauseCmd  `cmd:"" help:"Pause a run after its current step, with a checkpoint."`
	Resume runsResumeCmd `cmd:"" help:"Continue a run that is paused, stopped, interrupted or failed."`
	Stop   runsStopCmd   `cmd:"" help:"Stop a run after its current step, with a checkpoint."`
	Delete runsDeleteCmd `cmd:"" help:"Remove a run that is not active, and all of its files."`
	Files  runsFilesCmd  `cmd:"" help:"List the files of a run."`
	Fetch  runsFetchCmd  `cmd:"" help:"Copy a file of a run to this machine."`
}

// trainerFlags name a trainer.
type trainerFlags struct {
	connectFlags
	Trainer string `help:"Address of the trainer." default:"127.0.0.1:7070" env:"LAMINA_TRAINER"`
	Format  string `help:"Output: text or json."   default:"text"                                enum:"text,json"`
}

// call calls a trainer.
func (f *trainerFlags) call(
	e *verb.Env, limit time.Duration, body func(context.Context, trainerv1.TrainerServiceClient) error,
) error {
	return f.connect(e, f.Trainer, limit, func(ctx context.Context, conn *grpc.ClientConn) error {
		return body(ctx, trainerv1.NewTrainerServiceClient(conn))
	})
}

// print prints a run.
func (f *trainerFlags) print(e *verb.Env, r *trainerv1.Run) error {
	if f.Format == "json" {
		return printProto(e, r)
	}
	fmt.Fprintf(e.Stdout, "%s: %s at step %d of %d\n", r.GetName(), stateName(r.GetState()), r.GetStep(), r.GetSteps())
	return nil
}

// haltLimit bounds the wait for a run to end its step and write a checkpoint.
const haltLimit = 10 * time.Minute

type runsListCmd struct{ trainerFlags }

// Run lists runs.
func (c *runsListCmd) Run(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.ListRuns(ctx, &trainerv1.ListRunsRequest{})
		if err != nil {
			return err
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		return listRuns(e.Stdout, resp.GetRuns())
	})
}

// listRuns prints a table of runs.
func listRuns(out io.Writer, runs []*trainerv1.Run) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RUN\tSTATE\tSTEP\tLOSS\tVALIDATION\tPARAMETERS\tLAYOUT\tMEMBERS\tQUARANTINED\tSPIKES\tSTARTED\tERROR")
	for _, r := range runs {
		fmt.Fprintf(w, "%s\t%s\t%d/%d\t%.4f\t%.4f\t%d\t%dx%d\t%d\t%d\t%d\t%s\t%s\n", r.GetName(), stateName(r.GetState()),
			r.GetStep(), r.GetSteps(), r.GetLoss(), r.GetValidationLoss(), r.GetParameters(), r.GetStages(),
			r.GetReplicas(), r.GetMembers(), len(r.GetQuarantined()), len(r.GetSpikes()),
			time.UnixMilli(r.GetStartedMs()).Format(time.DateTime), r.GetError())
	}
	return w.Flush()
}

type runsShowCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run shows a run.
func (c *runsShowCmd) Run(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.ListRuns(ctx, &trainerv1.ListRunsRequest{})
		if err != nil {
			return err
		}
		for _, r := range resp.GetRuns() {
			if r.GetName() != c.Name {
				continue
			}
			if c.Format == "json" {
				return printProto(e, r)
			}
			return showRun(e.Stdout, r)
		}
		return fault.New(fault.NotFound, "run %s: no such run", c.Name)
	})
}

// showRun prints a run and what has happened in it.
func showRun(out io.Writer, r *trainerv1.Run) error {
	fmt.Fprintln(out, runLine(r, 0, 0))
	if r.GetError() != "" {
		fmt.Fprintf(out, "error        %s\n", r.GetError())
	}
	if r.GetCheckpointError() != "" {
		fmt.Fprintf(out, "checkpoint   %s\n", r.GetCheckpointError())
	}
	fmt.Fprintf(out, "replicas     %d of %d (%s each): %d lost, %d left, %d joined, %s repeated\n",
		r.GetMembers(), r.GetReplicas(), plural.Of(r.GetStages(), "stage"), r.GetLost(), r.GetLeft(), r.GetJoined(),
		plural.Of(r.GetAborted(), "attempt"))
	for _, q := range r.GetQuarantined() {
		fmt.Fprintf(out, "quarantine   step %d: replica %d at %s: %s: %s (%s)\n", q.GetStep(), q.GetReplica(),
			q.GetAddress(), q.GetReason(), q.GetMessage(), q.GetEvidence())
	}
	if len(r.GetEvents()) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tSTEP\tEVENT\tREPLICA\tADDRESS\tMESSAGE")
	for _, e := range r.GetEvents() {
		replica := ""
		if e.Replica != nil {
			replica = fmt.Sprint(e.GetReplica())
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", time.UnixMilli(e.GetTimeMs()).Format(time.DateTime), e.GetStep(),
			e.GetKind(), replica, e.GetAddress(), e.GetMessage())
	}
	return w.Flush()
}

type runsWatchCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run shows the progress of a run. An interrupt ends the watch and not the run.
func (c *runsWatchCmd) Run(e *verb.Env) error {
	return c.call(e, 0, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		show := &progress{}
		if c.Format == "text" {
			show = newProgress(e.Stdout)
		}
		last, err := show.watch(ctx, client, c.Name)
		show.end()
		if err != nil {
			return err
		}
		if c.Format == "json" {
			return errors.Join(printProto(e, last), runError(last))
		}
		return errors.Join(printPublished(e, last), runError(last))
	})
}

type runsPauseCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run pauses a run.
func (c *runsPauseCmd) Run(e *verb.Env) error {
	return c.call(e, haltLimit, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.PauseRun(ctx, &trainerv1.PauseRunRequest{Run: c.Name})
		if err != nil {
			return err
		}
		return c.print(e, resp.GetRun())
	})
}

type runsResumeCmd struct {
	trainerFlags
	Name     string `arg:"" help:"Name of the run."`
	Stages   int    `       help:"Number of stages of each replica. Default: as before."`
	Replicas int    `       help:"Number of replicas. Default: as before."`
}

// Run resumes a run.
func (c *runsResumeCmd) Run(e *verb.Env) error {
	if c.Stages < 0 || c.Replicas < 0 {
		return fault.Field("stages", "%d stages and %d replicas: want none below 0", c.Stages, c.Replicas)
	}
	return c.call(e, askTimeout, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.ResumeRun(ctx, &trainerv1.ResumeRunRequest{
			Run: c.Name, Stages: uint32(c.Stages), Replicas: uint32(c.Replicas),
		})
		if err != nil {
			return err
		}
		return c.print(e, resp.GetRun())
	})
}

type runsStopCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run stops a run.
func (c *runsStopCmd) Run(e *verb.Env) error {
	return c.call(e, haltLimit, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.StopRun(ctx, &trainerv1.StopRunRequest{Run: c.Name})
		if err != nil {
			return err
		}
		return c.print(e, resp.GetRun())
	})
}

type runsDeleteCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run deletes a run.
func (c *runsDeleteCmd) Run(e *verb.Env) error {
	return c.call(e, haltLimit, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.DeleteRun(ctx, &trainerv1.DeleteRunRequest{Run: c.Name})
		if err == nil && resp.GetKept() != "" {
			_, err = fmt.Fprintf(e.Stdout, "The files in %s stay, because they are outside of the trainer's folder of runs.\n",
				resp.GetKept())
		}
		return err
	})
}

type runsFilesCmd struct {
	trainerFlags
	Name string `arg:"" help:"Name of the run."`
}

// Run lists the files of a run.
func (c *runsFilesCmd) Run(e *verb.Env) error {
	return c.call(e, askTimeout, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		resp, err := client.ListArtifacts(ctx, &trainerv1.ListArtifactsRequest{Run: c.Name})
		if err != nil {
			return err
		}
		if c.Format == "json" {
			return printProto(e, resp)
		}
		w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
		for _, a := range resp.GetArtifacts() {
			changed := time.UnixMilli(a.GetChangedMs()).Format(time.DateTime)
			fmt.Fprintf(w, "%s\t%d\t%s\n", a.GetName(), a.GetSize(), changed)
		}
		return w.Flush()
	})
}

type runsFetchCmd struct {
	connectFlags
	Trainer string `help:"Address of the trainer."                                                                default:"127.0.0.1:7070" env:"LAMINA_TRAINER"`
	Name    string `help:"Name of the run."                                                                                                                     arg:""`
	File    string `help:"Name of the file, as 'lamina runs files' shows it."                                                                                   arg:""`
	Out     string `help:"File to write; - writes to standard output. Default: the last part of the file's name."`
}

// Run copies a file.
func (c *runsFetchCmd) Run(e *verb.Env) error {
	f := trainerFlags{connectFlags: c.connectFlags, Trainer: c.Trainer}
	return f.call(e, 0, func(ctx context.Context, client trainerv1.TrainerServiceClient) error {
		if c.Out == "-" {
			return fetchArtifact(ctx, client, c.Name, c.File, 0, e.Stdout)
		}
		out := c.Out
		if out == "" {
			out = filepath.Base(c.File)
		}
		part := out + ".part"
		file, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "write %s", out)
		}
		err = fetchArtifact(ctx, client, c.Name, c.File, 0, file)
		if err = errors.Join(err, file.Close()); err != nil {
			return errors.Join(err, os.Remove(part))
		}
		return os.Rename(part, out)
	})
}

// fetchArtifact writes a file of a run, from an offset on. A transfer that ends early is an error.
func fetchArtifact(
	ctx context.Context, client trainerv1.TrainerServiceClient, run, name string, offset uint64, w io.Writer,
) error {
	stream, err := client.FetchArtifact(ctx, &trainerv1.FetchArtifactRequest{Run: run, Name: name, Offset: offset})
	if err != nil {
		return rpc.FromStatus(err)
	}
	size := uint64(0)
	for at := offset; ; {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if at != size {
				return fault.New(fault.DataLoss, "fetch %s of run %s: got %d bytes of %d", name, run, at, size)
			}
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if a := resp.GetArtifact(); a != nil {
			size = a.GetSize()
		}
		if _, err := w.Write(resp.GetData()); err != nil {
			return err
		}
		at += uint64(len(resp.GetData()))
	}
}
