package trainer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// residual is the kind of what lossy gradients have left out.
const residual = "residual"

// saving is a checkpoint that is being written.
type saving struct {
	step uint64
	done chan struct{} // closed when the others are set
	made *checkpoint.Checkpoint
	err  error
}

// begin takes a snapshot of all stages and writes it to a checkpoint while the run goes on.
// It calls before in the background, before the checkpoint says that its step is done.
func (f *fleet) begin(store *checkpoint.Store, m checkpoint.Manifest, keep checkpoint.Keep, before func() error) (
	*saving, error) {
	chains := slices.Clone(f.chains)
	err := f.each(func(c *chain, _ int, s *stage) error {
		writer := uint32(slices.Index(chains, c))
		err := f.send(s, &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Save{Save: &shardv1.Save{Step: m.Step,
			Writer: &writer, Writers: uint32(len(chains))}}})
		if f.elastic() && c.lost() != nil {
			return nil // the checkpoint fails, and the run goes on
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &saving{step: m.Step, done: make(chan struct{})}
	f.readers.Go(func() error {
		defer close(out.done)
		if out.err = before(); out.err == nil {
			out.made, out.err = f.write(store, m, chains)
		}
		if out.err == nil {
			out.err = store.Rotate(keep)
		} else if err := store.Discard(m.Step); err != nil { // makes room, which is best effort
			out.err = errors.Join(out.err, err)
		}
		return nil
	})
	return out, nil
}

// write has all stages write their files, and commits the checkpoint.
func (f *fleet) write(store *checkpoint.Store, m checkpoint.Manifest, chains []*chain) (
	*checkpoint.Checkpoint, error) {
	if err := store.Begin(m.Step); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	var mu sync.Mutex
	var g errgroup.Group
	for _, c := range chains {
		for i, s := range c.stages {
			g.Go(func() error {
				files, err := saveStage(
					ctx,
					s,
					store,
					&shardv1.SaveStateRequest{Chain: c.id, Stage: uint32(i), Step: m.Step},
				)
				if err != nil {
					cancel() // one failure ends all
					code := fault.CodeOf(err)
					if code == fault.NotFound { // the stage has ended: the step may succeed without it
						code = fault.Aborted
					}
					return fault.Wrap(code, err, "save layers %v at %s", s.spans, s.addr)
				}
				mu.Lock()
				defer mu.Unlock()
				m.Files = append(m.Files, files...)
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return store.Commit(m)
}

// saveStage has a stage write its files, or receives them.
func saveStage(ctx context.Context, s *stage, store *checkpoint.Store, q *shardv1.SaveStateRequest) (
	files []checkpoint.File, err error) {
	stream, err := s.client.SaveState(ctx, q)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	var file *checkpoint.Pending
	defer func() {
		if file != nil {
			err = errors.Join(err, file.Abort())
		}
	}()
	unexpected := func(frame any) error {
		return fault.New(fault.Internal, "save step %d: the stage answered with %T", q.GetStep(), frame)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, unexpected(nil)
		}
		if err != nil {
			return nil, rpc.FromStatus(err)
		}
		switch frame := r.GetFrame().(type) {
		case *shardv1.SaveStateResponse_File:
			if file != nil {
				return nil, unexpected(frame)
			}
			file, err = store.Create(q.GetStep(), frame.File.GetName())
		case *shardv1.SaveStateResponse_Data:
			if file == nil {
				return nil, unexpected(frame)
			}
			_, err = file.Write(frame.Data)
		case *shardv1.SaveStateResponse_Written:
			if file == nil {
				return nil, unexpected(frame)
			}
			want := savedFile(frame.Written)
			pending := file
			file = nil // Commit removes it if it fails
			var size int64
			var sum string
			if size, sum, err = pending.Commit(); err == nil && (size != want.Bytes || sum != want.SHA256) {
				err = fault.New(fault.Unavailable, "receive %s: %d bytes with SHA-256 %s, the stage sent %d with %s",
					want.Name, size, sum, want.Bytes, want.SHA256)
			}
			files = append(files, want)
		case *shardv1.SaveStateResponse_Saved:
			for _, f := range frame.Saved.GetFiles() {
				files = append(files, savedFile(f))
			}
			return files, nil
		default:
			return nil, unexpected(frame)
		}
		if err != nil {
			return nil, err
		}
	}
}

// savedFile converts the description of a file.
func savedFile(f *shardv1.SavedFile) checkpoint.File {
	out := checkpoint.File{Name: f.GetName(), Kind: f.GetKind(), Bytes: int64(min(f.GetBytes(), math.MaxInt64)),
		SHA256: hex.EncodeToString(f.GetSha256())}
	for _, t := range f.GetTensors() {
		tensor := checkpoint.Tensor{Name: t.GetName(), Offset: int64(min(t.GetOffset(), math.MaxInt64)),
			SHA256: hex.EncodeToString(t.GetSha256())}
		for _, d := range t.GetShape() {
			tensor.Shape = append(tensor.Shape, int(d))
		}
		out.Tensors = append(out.Tensors, tensor)
	}
	return out
}

// damagedError says that a checkpoint turned out to be damaged while it was read.
type damagedError struct {
	step uint64
	err  error
}

func (e *damagedError) Error() string {
	return fmt.Sprintf("checkpoint of step %d is damaged: %v", e.step, e.err)
}

func (e *damagedError) Unwrap() error { return e.err }

// findCheckpoint sets the checkpoint from which the run goes on: the newest one of at most a step that is
// not known to be damaged.
func (t *training) findCheckpoint(upTo uint64) error {
	for {
		c, err := t.store.Newest(t.run.hash, upTo, func(step uint64, err error) {
			t.skip(step, err)
		})
		if err != nil || c == nil || !t.damaged[c.Step] {
			t.last = c
			return err
		}
		if c.Step == 0 {
			return nil
		}
		upTo = c.Step - 1
	}
}

// skip marks a checkpoint as damaged.
func (t *training) skip(step uint64, err error) {
	if !t.damaged[step] {
		t.run.service.log.Warn("skip damaged checkpoint", "run", t.run.manifest.Name, "step", step, "error", err)
	}
	t.damaged[step] = true
}

// save begins a checkpoint of the last step, which is written while the run goes on.
func (t *training) save(f *fleet, step uint64) error {
	m := checkpoint.Manifest{Step: step, Run: t.run.hash, Stages: t.run.layout.stages, Replicas: len(f.chains),
		Loss: t.loss}
	if t.validation > 0 {
		v := t.validation
		m.Validation = &v
	}
	var err error
	if m.Trainer, err = t.encodeHistory(); err != nil {
		return err
	}
	delete(t.damaged, step)
	damaged := maps.Clone(t.damaged)
	keep := checkpoint.Keep{Last: t.run.manifest.KeepLast, Best: t.run.manifest.KeepBest,
		Not: func(step uint64) bool { return damaged[step] }}
	t.saving, err = f.begin(t.store, m, keep, t.ledger.sync)
	return t.superseded(err)
}

// superseded returns the error of writing a checkpoint, or a deposedError if another trainer has taken the run up. That
// trainer removes the folder that this one writes to, so files go missing, which is no damage.
func (t *training) superseded(err error) error {
	if err == nil {
		return nil
	}
	if held := t.store.Held(); held != nil {
		return &deposedError{held}
	}
	return err
}

// collect takes the result of the checkpoint that is being written, if it is finished.
func (t *training) collect() error {
	s := t.saving
	if s == nil {
		return nil
	}
	select {
	case <-s.done:
	default:
		return nil
	}
	t.saving = nil
	if s.made != nil {
		t.last = s.made
		t.run.update(func(r *trainerv1.Run) { r.CheckpointStep, r.CheckpointError = s.step, "" })
	}
	if s.err == nil {
		return nil
	}
	return t.superseded(fault.Wrap(fault.CodeOf(s.err), s.err, "write checkpoint of step %d", s.step))
}

// tolerate logs that a checkpoint could not be written. The run goes on, unless its state is not finite.
func (t *training) tolerate(err error) error {
	if deposed := new(deposedError); err == nil || fault.CodeOf(err) == fault.DataLoss || errors.As(err, &deposed) {
		return err
	}
	t.run.service.log.Warn("go on without a checkpoint", "run", t.run.manifest.Name, "error", err)
	t.run.update(func(r *trainerv1.Run) { r.CheckpointError = err.Error() })
	return nil
}

// wait waits for the checkpoint that is being written.
func (t *training) wait() error {
	if t.saving != nil {
		<-t.saving.done
	}
	return t.collect()
}

// finish writes a checkpoint of the last step, unless there is one.
func (t *training) finish(f *fleet, step uint64) error {
	if err := t.tolerate(t.wait()); err != nil {
		return err
	}
	if t.step() == step {
		return nil
	}
	if err := t.save(f, step); err != nil {
		return err
	}
	return t.wait()
}
