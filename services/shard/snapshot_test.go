package shard_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const token = ".lamina-00112233445566778899aabbccddeeff"

// full runs a step.
func (c *conversation) full(step uint64) uint64 {
	c.t.Helper()
	c.step(step, 0, slotCount, false)
	c.folded()
	return c.apply(step)
}

func (c *conversation) snapshot(step uint64) {
	c.t.Helper()
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Save{Save: &shardv1.Save{Step: step}}})
}

// saved calls SaveState and returns the bytes of the files that it sends, and its last frame.
func (c *conversation) saved(step uint64) (map[string][]byte, *shardv1.Saved, error) {
	return c.savedBy(step, 0)
}

// savedBy is saved of a stage.
func (c *conversation) savedBy(step uint64, stage uint32) (map[string][]byte, *shardv1.Saved, error) {
	stream, err := c.client.SaveState(c.ctx,
		&shardv1.SaveStateRequest{Chain: trainOpening(0, 1).GetChain(), Step: step, Stage: stage})
	if err != nil {
		return nil, nil, rpc.FromStatus(err)
	}
	files, name := map[string][]byte{}, ""
	for {
		r, err := stream.Recv()
		switch {
		case err != nil:
			return files, nil, rpc.FromStatus(err)
		case r.GetSaved() != nil:
			return files, r.GetSaved(), nil
		case r.GetFile() != nil:
			name = r.GetFile().GetName()
		case r.GetWritten() != nil:
			if n := uint64(len(files[name])); r.GetWritten().GetBytes() != n {
				c.t.Errorf("%s has %d bytes, %d were sent", name, r.GetWritten().GetBytes(), n)
			}
		default:
			files[name] = append(files[name], r.GetData()...)
		}
	}
}

// shareFolder returns the folder of a run that has the token of the tests.
func shareFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run", token), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sharing returns the first frame of a stage whose run is in a shared folder.
func sharing() *shardv1.TrainOpen {
	open := trainOpening(0, 1)
	open.Folder, open.Token = "run", token
	return open
}

// The snapshot is that of its step, although the stage makes further steps before it is written.
func TestSaveState_StreamsTheStateOfItsStep(t *testing.T) {
	_, digests := alone(t, 3)
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	c := r.train(trainOpening(0, 1))
	c.full(1)
	c.snapshot(1)
	for step := uint64(2); step <= 3; step++ {
		if got := c.full(step); got != digests[step-1] {
			t.Errorf("step %d beside a snapshot gives weights %x, want %x", step, got, digests[step-1])
		}
	}
	files, saved, err := c.saved(1)
	if err != nil || len(saved.GetFiles()) > 0 || len(files) != 3 {
		t.Fatalf("%d files are sent, %v are written: %v", len(files), saved, err)
	}
	c.end()
	c = r.train(trainOpening(0, 1))
	for kind, name := range map[shardv1.StateKind]string{1: "weight", 2: "moment1", 3: "moment2"} {
		source, err := weights.ParseSafetensors(name, files[name+"-001-of-001.safetensors"])
		if err != nil {
			t.Fatal(err)
		}
		for _, tensor := range source.Names() {
			data, err := source.Data(tensor)
			if err != nil {
				t.Fatal(err)
			}
			info, _ := source.Info(tensor)
			sum := wire.Checksum(data)
			err = wire.Stream(info.Shape, sum, bytes.NewReader(data), func(head *tensorv1.Tensor) error {
				c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_State{
					State: &shardv1.State{Name: tensor, Kind: kind, Tensor: head}}})
				return nil
			}, func(chunk *tensorv1.Chunk) error {
				c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Chunk{Chunk: chunk}})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1}}})
	if got := c.next().GetLoaded().GetDigest(); got != digests[0] {
		t.Errorf("loaded weights %x, want %x", got, digests[0])
	}
	if got := c.full(2); got != digests[1] {
		t.Errorf("weights after a resumed step are %x, want %x", got, digests[1])
	}
	c.end()
}

// commit completes the checkpoint of a stage, as the trainer does.
func commit(t *testing.T, dir string, step uint64, saved *shardv1.Saved) *checkpoint.Checkpoint {
	t.Helper()
	m := checkpoint.Manifest{Step: step, Run: strings.Repeat("00", 32), Stages: 1, Replicas: 1}
	for _, f := range saved.GetFiles() {
		file := checkpoint.File{Name: f.GetName(), Kind: f.GetKind(), Bytes: int64(f.GetBytes()),
			SHA256: hex.EncodeToString(f.GetSha256())}
		for _, s := range f.GetTensors() {
			tensor := checkpoint.Tensor{Name: s.GetName(), Offset: int64(s.GetOffset()),
				SHA256: hex.EncodeToString(s.GetSha256())}
			for _, d := range s.GetShape() {
				tensor.Shape = append(tensor.Shape, int(d))
			}
			file.Tensors = append(file.Tensors, tensor)
		}
		m.Files = append(m.Files, file)
	}
	c, err := checkpoint.New(checkpoint.Dir(dir), "run/checkpoints").Commit(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func begin(t *testing.T, dir string, step uint64) {
	t.Helper()
	if err := checkpoint.New(checkpoint.Dir(dir), "run/checkpoints").Begin(step); err != nil {
		t.Fatal(err)
	}
}

func TestSaveState_SharedFolderIsWrittenAndRead(t *testing.T) {
	_, digests := alone(t, 2)
	dir := shareFolder(t)
	r := newSharedRig(t, gradbus.NewMemory(busLimit), checkpoint.Dir(dir))
	c := r.train(sharing())
	c.full(1)
	begin(t, dir, 1)
	c.snapshot(1)
	files, saved, err := c.saved(1)
	if err != nil || len(files) > 0 || len(saved.GetFiles()) != 3 {
		t.Fatalf("%d files are sent, %v are written: %v", len(files), saved, err)
	}
	c.end()
	made := commit(t, dir, 1, saved)
	if found, err := made.Verify(); err != nil || len(found) > 0 {
		t.Errorf("the checkpoint is damaged: %v, %v", found, err)
	}
	load := &shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1,
		ManifestSha256: made.Digest[:]}}}
	c = r.train(sharing())
	c.send(load)
	if got := c.next().GetLoaded().GetDigest(); got != digests[0] {
		t.Errorf("loaded weights %x, want %x", got, digests[0])
	}
	if got := c.full(2); got != digests[1] {
		t.Errorf("weights after a resumed step are %x, want %x", got, digests[1])
	}
	c.end()
	// A flipped bit is named.
	path := filepath.Join(dir, "run", "checkpoints", "step-00000001", "moment2-001-of-001.safetensors")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-9] ^= 4
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	c = r.train(sharing())
	c.send(load)
	if err := c.fails(); fault.CodeOf(err) != fault.DataLoss ||
		!strings.Contains(err.Error(), "moment2 model.norm.weight") {
		t.Errorf("got %v", err)
	}
}

func TestSaveState_FolderWithoutTheTokenIsNotShared(t *testing.T) {
	r := newSharedRig(t, gradbus.NewMemory(busLimit), checkpoint.Dir(t.TempDir()))
	stream, err := r.client.Train(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversation{r, stream}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: sharing()}})
	if opened := c.next().GetOpened(); opened == nil || opened.GetSharesFolder() {
		t.Errorf("opened %v", opened)
	}
	c.end()
}

// faultyDisk fails or stalls the writes of files.
type faultyDisk struct {
	checkpoint.FS
	mu    sync.Mutex
	err   error         // of every write
	stall chan struct{} // writes wait until it is closed; nil to go on
	began chan struct{} // gets an element when a write waits
}

type faultyFile struct {
	checkpoint.WriteFile
	disk *faultyDisk
}

func (d *faultyDisk) Create(name string) (checkpoint.WriteFile, error) {
	f, err := d.FS.Create(name)
	return &faultyFile{f, d}, err
}

func (f *faultyFile) Write(p []byte) (int, error) {
	f.disk.mu.Lock()
	err, stall := f.disk.err, f.disk.stall
	f.disk.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if stall != nil {
		select {
		case f.disk.began <- struct{}{}:
		default:
		}
		<-stall
	}
	return f.WriteFile.Write(p)
}

func (d *faultyDisk) set(err error, stall chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.stall = err, stall
}

func TestSaveState_FullDiskHarmsNothing(t *testing.T) {
	_, digests := alone(t, 3)
	dir := shareFolder(t)
	disk := &faultyDisk{FS: checkpoint.Dir(dir)}
	c := newSharedRig(t, gradbus.NewMemory(busLimit), disk).train(sharing())
	c.full(1)
	begin(t, dir, 1)
	c.snapshot(1)
	disk.set(&os.PathError{Op: "write", Err: syscall.ENOSPC}, nil)
	if _, _, err := c.saved(1); fault.CodeOf(err) != fault.Exhausted ||
		!strings.Contains(err.Error(), "weight-001-of-001") {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "run", "checkpoints", "step-00000001"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	c.full(2)
	disk.set(nil, nil)
	begin(t, dir, 2)
	c.snapshot(2)
	if _, saved, err := c.saved(2); err != nil || len(saved.GetFiles()) != 3 {
		t.Errorf("after the disk has room again: %v, %v", saved, err)
	}
	if got := c.full(3); got != digests[2] {
		t.Errorf("weights are %x, want %x", got, digests[2])
	}
	c.end()
}

// A disk that does not answer delays no step, and the snapshot stays that of its step.
func TestSaveState_SlowDiskDelaysNoStep(t *testing.T) {
	_, digests := alone(t, 4)
	dir := shareFolder(t)
	disk := &faultyDisk{FS: checkpoint.Dir(dir), began: make(chan struct{}, 1)}
	r := newSharedRig(t, gradbus.NewMemory(busLimit), disk)
	c := r.train(sharing())
	c.full(1)
	begin(t, dir, 1)
	stall := make(chan struct{})
	disk.set(nil, stall)
	c.snapshot(1)
	type result struct {
		saved *shardv1.Saved
		err   error
	}
	results := make(chan result, 1)
	go func() {
		_, saved, err := c.saved(1)
		results <- result{saved, err}
	}()
	<-disk.began
	for step := uint64(2); step <= 4; step++ {
		if got := c.full(step); got != digests[step-1] {
			t.Errorf("step %d beside a slow disk gives weights %x, want %x", step, got, digests[step-1])
		}
	}
	close(stall)
	got := <-results
	if got.err != nil {
		t.Fatal(got.err)
	}
	c.end()
	made := commit(t, dir, 1, got.saved)
	c = r.train(sharing())
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1,
		ManifestSha256: made.Digest[:]}}})
	if got := c.next().GetLoaded().GetDigest(); got != digests[0] {
		t.Errorf("loaded weights %x, want %x", got, digests[0])
	}
	if got := c.full(2); got != digests[1] {
		t.Errorf("weights after a resumed step are %x, want %x", got, digests[1])
	}
	c.end()
}

func TestSaveState_StageThatEndsWhileItWritesLeavesNoFile(t *testing.T) {
	dir := shareFolder(t)
	disk := &faultyDisk{FS: checkpoint.Dir(dir), began: make(chan struct{}, 1)}
	c := newSharedRig(t, gradbus.NewMemory(busLimit), disk).train(sharing())
	begin(t, dir, 0)
	stall := make(chan struct{})
	disk.set(nil, stall)
	c.snapshot(0)
	results := make(chan error, 1)
	go func() {
		_, _, err := c.saved(0)
		results <- err
	}()
	<-disk.began
	c.end()
	close(stall)
	if err := <-results; fault.CodeOf(err) != fault.Aborted {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "run", "checkpoints", "step-00000000"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func TestSaveState_ValuesThatAreNotFiniteAreRefused(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(-1)} {
		c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(trainOpening(0, 1))
		values := make([]float32, 40)
		values[7] = float32(bad)
		head, _ := wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{40}, values)
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_State{
			State: &shardv1.State{Name: "model.norm.weight", Kind: 1, Tensor: head}}})
		c.snapshot(0)
		if _, _, err := c.saved(0); fault.CodeOf(err) != fault.DataLoss ||
			!strings.Contains(err.Error(), "element 7 of weight of model.norm.weight") {
			t.Errorf("%v: %v", bad, err)
		}
		c.end()
	}
}

func TestSaveState_OfAStageThatIsNotOpen(t *testing.T) {
	r := newTrainRig(t, gradbus.NewMemory(busLimit))
	stream, err := r.client.SaveState(r.ctx, &shardv1.SaveStateRequest{Chain: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); errors.Is(err, io.EOF) || fault.CodeOf(rpc.FromStatus(err)) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}
