package shard_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// The trainer may give a checkpoint up before it has asked a stage for its files, and take another snapshot, also of
// the same step.
func TestSave_TakesThePlaceOfASnapshotThatNobodyAskedFor(t *testing.T) {
	_, digests := alone(t, 3)
	c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 1))
	c.snapshot(0)
	c.full(1)
	c.snapshot(1)
	c.snapshot(1)
	if got := c.full(2); got != digests[1] {
		t.Errorf("weights are %x, want %x", got, digests[1])
	}
	if files, _, err := c.saved(1); err != nil || len(files) != 3 {
		t.Errorf("%d files are sent: %v", len(files), err)
	}
	c.snapshot(2)
	c.full(3)
	c.snapshot(3)
	if files, _, err := c.saved(3); err != nil || len(files) != 3 {
		t.Errorf("%d files are sent: %v", len(files), err)
	}
	c.end()
}

// A snapshot that a call writes is not replaced. When the call is given up it is, although the disk does not answer;
// the next one is written after that.
func TestSave_TakesThePlaceOfASnapshotThatIsGivenUp(t *testing.T) {
	for name, givenUp := range map[string]bool{"it is written": false, "it is given up": true} {
		t.Run(name, func(t *testing.T) {
			dir := shareFolder(t)
			disk := &faultyDisk{FS: checkpoint.Dir(dir), began: make(chan struct{}, 1)}
			c := newSharedRig(t, gradbus.NewMemory(busLimit), disk).train(sharing())
			begin(t, dir, 0)
			begin(t, dir, 1)
			stall := make(chan struct{})
			disk.set(nil, stall)
			c.snapshot(0)
			rig := *c.trainRig
			var cancel context.CancelFunc
			rig.ctx, cancel = context.WithCancel(c.ctx)
			defer cancel()
			first, second := make(chan error, 1), make(chan error, 1)
			save := func(r *trainRig, step uint64, result chan error) {
				_, _, err := (&conversation{r, nil}).saved(step)
				result <- err
			}
			go save(&rig, 0, first)
			<-disk.began
			if !givenUp {
				c.snapshot(0)
				if err := c.fails(); fault.CodeOf(err) != fault.FailedPrecondition {
					t.Errorf("a second snapshot: %v", err)
				}
				close(stall)
				<-first
				return
			}
			cancel()
			if err := <-first; fault.CodeOf(err) != fault.Canceled {
				t.Errorf("the call that was given up ends with %v", err)
			}
			c.full(1)
			c.snapshot(1)
			c.full(2)
			go save(c.trainRig, 1, second)
			close(stall)
			if err := <-second; err != nil {
				t.Error(err)
			}
			c.end()
			left, err := os.ReadDir(filepath.Join(dir, "run", "checkpoints", "step-00000000"))
			if err != nil || len(left) > 0 {
				t.Errorf("files are left: %v, %v", left, err)
			}
		})
	}
}
